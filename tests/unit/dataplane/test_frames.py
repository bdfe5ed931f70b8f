"""Which frames are acted on, skipped, or close their connection (PROTOCOL §5); pings."""

from __future__ import annotations

import contextlib
import socket
import struct

import pytest

from fastderp.dataplane.plane import Plane
from fastderp.wire.protocol import FrameType, frame
from tests.kit.plane import GONE, PlanePeer, closed, count, dropped, fill, running_plane

pytestmark = pytest.mark.usefixtures("peers")


@pytest.mark.parametrize(
    ("frame_type", "size"),
    [
        (FrameType.SEND_PACKET, 31), (FrameType.SEND_PACKET, 65569), (FrameType.SEND_PACKET, 2**32 - 1),
        (FrameType.NOTE_PREFERRED, 0), (FrameType.NOTE_PREFERRED, 2), (FrameType.PING, 7), (FrameType.PING, 1001),
        (FrameType.WATCH_CONNS, 1), (FrameType.CLOSE_PEER, 31),
    ],
)  # fmt: skip
def test_a_frame_of_a_wrong_size_closes_its_connection_only(
    plane: Plane, frame_type: FrameType, size: int
) -> None:
    a, b = PlanePeer(plane), PlanePeer(plane)
    a.send_packet(b.key, b"before")
    a.write(struct.pack(">BI", frame_type, size))
    assert b.receive() == (FrameType.RECV_PACKET, a.key + b"before")
    assert b.receive() == (FrameType.PEER_GONE, a.key + GONE)
    with pytest.raises((EOFError, ConnectionError)):
        a.receive()
    event = closed(plane)
    assert (event.handle, event.reason) == (a.handle, "bad_frame_size")
    b.sync()


def test_nothing_behind_a_forbidden_frame_is_acted_on_although_it_is_read_in_pieces() -> None:
    plane = Plane(workers=1)
    # It delays no client, but reads them in smaller pieces.
    plane.set_rate_limits([(1_000_000_000_000, 1_000_000_000)])
    piece = 66_560
    receiver = PlanePeer(plane)
    offender = PlanePeer(plane, unread=frame(FrameType.SEND_PACKET, receiver.key, b"before"))
    good = frame(FrameType.SEND_PACKET, receiver.key, b"behind")
    offender.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
    offender.socket.settimeout(
        None
    )  # with a timeout it would wait until three quarters of that are free
    offender.write((struct.pack(">BI", 0xFF, piece // 2 - 5) + bytes(piece // 2 - 5)) * 2)
    offender.write(frame(FrameType.NOTE_PREFERRED) + bytes(piece - 5))
    offender.write(good * 100)
    # The first turn reads the first piece; in the second there are an event and unread bytes.
    plane.start()
    with contextlib.closing(plane):
        assert closed(plane).reason == "bad_frame_size"
        assert receiver.receive() == (FrameType.RECV_PACKET, offender.key + b"before")
        assert receiver.receive_until_pong() == [(FrameType.PEER_GONE, offender.key + GONE)]


@pytest.mark.parametrize(
    "sent",
    [
        frame(FrameType.FORWARD_PACKET, bytes(64)),
        frame(FrameType.WATCH_CONNS),
        frame(FrameType.CLOSE_PEER, bytes(32)),
    ],
    ids=["ForwardPacket", "WatchConns", "ClosePeer"],
)
def test_a_mesh_frame_from_an_ordinary_client_closes_it(plane: Plane, sent: bytes) -> None:
    a = PlanePeer(plane)
    a.write(sent)
    assert closed(plane).reason == "frame_not_permitted"


@pytest.mark.parametrize(
    "frame_type", [0x01, 0x02, 0x03, 0x05, 0x06, 0x08, 0x09, 0x13, 0x14, 0x15, 0x16, 0xFF]
)
@pytest.mark.parametrize("size", [0, 5, 65_568])
def test_other_frames_of_any_legal_size_are_discarded(
    plane: Plane, frame_type: int, size: int
) -> None:
    a = PlanePeer(plane)
    a.write(struct.pack(">BI", frame_type, size) + bytes(size))
    a.sync()
    assert plane.counters()["unknown_frames"] == (frame_type not in set(FrameType))


@pytest.mark.parametrize("frame_type", [0x01, 0x14, 0x16, 0xFF])
@pytest.mark.parametrize("mesh", [False, True], ids=["client", "mesh"])
def test_another_frame_longer_than_any_packet_closes_its_connection(
    plane: Plane, frame_type: int, mesh: bool
) -> None:
    a = PlanePeer(plane, mesh=mesh)
    a.write(struct.pack(">BI", frame_type, 65_569))
    assert closed(plane).reason == "bad_frame_size"


def test_a_link_discards_longer_frames_as_a_client_does(plane: Plane) -> None:
    link = PlanePeer(plane, link=True)
    link.write(struct.pack(">BI", 0x77, 1_000_000) + bytes(1_000_000))
    link.sync()


@pytest.mark.parametrize("role", ["client", "mesh", "link"])
def test_frames_of_unknown_types_are_counted_and_no_others(role: str) -> None:
    unknown = sorted(set(range(256)) - set(FrameType))
    with running_plane(workers=1) as plane:
        peer = PlanePeer(plane, **({} if role == "client" else {role: True}))
        for n, frame_type in enumerate(unknown, 1):
            peer.write(struct.pack(">BI", frame_type, 3) + b"???")
            peer.sync()
            assert plane.counters()["unknown_frames"] == n
        for frame_type in (
            FrameType.SERVER_KEY,
            FrameType.KEEP_ALIVE,
            FrameType.PONG,
            FrameType.HEALTH,
        ):
            peer.send(frame_type, bytes(8))
        peer.sync()
        assert plane.counters()["unknown_frames"] == len(unknown)


@pytest.mark.parametrize("size", [7, 1001])
def test_a_ping_of_a_wrong_size_counts_as_received(plane: Plane, size: int) -> None:
    a = PlanePeer(plane)
    a.write(struct.pack(">BI", FrameType.PING, size))
    assert closed(plane).reason == "bad_frame_size"
    assert (plane.counters()["got_ping"], plane.counters()["sent_pong"]) == (1, 0)


def test_only_the_first_eight_bytes_of_a_ping_come_back(plane: Plane) -> None:
    a = PlanePeer(plane)
    a.send(FrameType.PING, b"12345678" + bytes(992))
    assert a.receive() == (FrameType.PONG, b"12345678")
    assert plane.counters()["got_ping"] == plane.counters()["sent_pong"] == 1


def test_a_flood_of_pings_waits_as_one_pong(plane: Plane) -> None:
    sender, slow = PlanePeer(plane), PlanePeer(plane)
    fill(sender, slow.key, 1000, 1400)
    slow.write(frame(FrameType.PING, b"12345678") * 5000)
    slow.send_packet(sender.key, b"done")
    assert sender.receive() == (FrameType.RECV_PACKET, slow.key + b"done")
    assert count(plane, "backlog_bytes") < 600_000
    received = [slow.receive()[0] for _ in range(1000 - sum(dropped(plane).values()) + 1)]
    received += [frame_type for frame_type, _ in slow.receive_until_pong()]
    assert received.count(FrameType.PONG) == 1
    counters = plane.counters()
    assert (counters["got_ping"], counters["sent_pong"]) == (1 + 5000 + 1, 1 + 1 + 1), (
        "the sender's, the flood, the last"
    )


def test_pings_written_at_once_are_answered_by_the_pong_for_the_first() -> None:
    plane = Plane(workers=1)
    talker, other = PlanePeer(plane), PlanePeer(plane)
    packet = frame(FrameType.SEND_PACKET, other.key, b"in between")
    pings = [frame(FrameType.PING, struct.pack(">Q", i)) for i in range(500)]
    talker.write(packet.join(pings))
    plane.start()  # it finds them all at once
    with contextlib.closing(plane):
        for _ in range(499):
            assert other.receive() == (FrameType.RECV_PACKET, talker.key + b"in between")
        assert talker.receive() == (FrameType.PONG, bytes(8))
        talker.sync()
        assert (plane.counters()["got_ping"], plane.counters()["sent_pong"]) == (501, 2)


def test_a_ping_is_answered_although_other_frames_wait(plane: Plane) -> None:
    sender, slow, leaver = (PlanePeer(plane) for _ in range(3))
    leaver.send_packet(slow.key, b"x")
    leaver.sync()
    fill(sender, slow.key, 1000, 1400)
    leaver.close()
    closed(plane)
    sender.sync()
    slow.send(FrameType.PING, b"12345678")
    slow.send_packet(sender.key, b"done")
    assert sender.receive() == (FrameType.RECV_PACKET, slow.key + b"done")
    received = [slow.receive() for _ in range(1 + 1000 - sum(dropped(plane).values()) + 2)]
    assert (FrameType.PEER_GONE, leaver.key + GONE) in received
    assert (FrameType.PONG, b"12345678") in received
