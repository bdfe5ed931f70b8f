"""The data plane by itself: what PROTOCOL §5–§7 asks of the packet path, over socketpairs."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fastderp.dataplane.plane import (
    MAX_UNREAD_BYTES,
    ClosedEvent,
    DropEvent,
    FrameEvent,
    Plane,
    PlaneError,
)
from fastderp.wire.protocol import FrameType, frame
from tests.kit.memory import resident_bytes
from tests.kit.plane import DISCO, PlanePeer, SealedPeer, dropped, events, running_plane
from tests.kit.relay import eventually

GONE, NOT_HERE = b"\0", b"\1"


@pytest.fixture(autouse=True, params=[PlanePeer, SealedPeer], ids=["plain", "records"])
def peers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs with plain sessions and again with TLS records."""
    monkeypatch.setitem(globals(), "PlanePeer", request.param)


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def plane(request: pytest.FixtureRequest) -> Iterator[Plane]:
    with running_plane(workers=request.param) as running:
        yield running


def accounted(plane: Plane) -> bool:
    """Whether every packet that came in was delivered, dropped with a reason, or handed to another relay."""
    c: dict[str, Any] = plane.counters()
    came = c["packets_received"] + c["packets_forwarded_in"]
    return bool(
        came == c["packets_sent"] + sum(dropped(plane).values()) + c["packets_forwarded_out"]
    )


def closed(plane: Plane) -> ClosedEvent:
    [event] = events(plane)
    assert isinstance(event, ClosedEvent)
    return event


@pytest.mark.parametrize("size", [0, 1, 1400, 65535, 65536])
def test_a_packet_arrives_with_its_sender_and_nothing_else_changed(plane: Plane, size: int) -> None:
    a, b = PlanePeer(plane), PlanePeer(plane)
    data = os.urandom(size)
    a.send_packet(b.key, data)
    assert b.receive() == (FrameType.RECV_PACKET, a.key + data)


def test_a_plane_sleeps_when_the_conversation_is_over(plane: Plane) -> None:
    a, b = PlanePeer(plane), PlanePeer(plane)
    for _ in range(1000):
        a.send_packet(b.key, b"well?")
        b.receive()
    used = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - used < 0.1


def test_a_packet_to_oneself_arrives(plane: Plane) -> None:
    a = PlanePeer(plane)
    a.send_packet(a.key, b"me")
    assert a.receive() == (FrameType.RECV_PACKET, a.key + b"me")


def test_frames_cut_at_any_byte_arrive_whole_and_in_order(plane: Plane) -> None:
    a, b = PlanePeer(plane), PlanePeer(plane)
    packets = [os.urandom(n) for n in (0, 1, 40, 300, 2)]
    stream = b"".join(frame(FrameType.SEND_PACKET, b.key, data) for data in packets)
    for cut in range(len(stream)):
        wire = a.seal(stream)
        a.socket.sendall(wire[:cut])
        a.socket.sendall(wire[cut:])
        for data in packets:
            assert b.receive() == (FrameType.RECV_PACKET, a.key + data)


def test_interleaved_destinations_each_get_their_own_in_order(plane: Plane) -> None:
    a, receivers = PlanePeer(plane), [PlanePeer(plane) for _ in range(100)]
    for round_ in range(20):
        a.write(b"".join(frame(FrameType.SEND_PACKET, r.key, b"%d" % round_) for r in receivers))
    for receiver in receivers:
        for round_ in range(20):
            assert receiver.receive() == (FrameType.RECV_PACKET, a.key + b"%d" % round_)


def test_what_is_written_first_comes_first(plane: Plane) -> None:
    info = frame(FrameType.SERVER_INFO, b"x" * 60)
    a = PlanePeer(plane)
    for _ in range(50):
        b = PlanePeer(plane, first=info)
        a.send_packet(b.key, b"right behind the login")
        assert b.receive() == (FrameType.SERVER_INFO, b"x" * 60)
        assert b.receive() == (FrameType.RECV_PACKET, a.key + b"right behind the login")


def test_what_is_written_first_comes_first_although_the_socket_is_full(plane: Plane) -> None:
    info = frame(FrameType.SERVER_INFO, bytes(60000))
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    ours.settimeout(10)
    key = os.urandom(32)
    plane.promote(theirs.detach(), key, first=info)
    a = PlanePeer(plane)
    a.send_packet(key, b"right behind the login")
    a.sync()
    packet = frame(FrameType.RECV_PACKET, a.key + b"right behind the login")
    with ours, ours.makefile("rb") as stream:
        assert stream.read(len(info) + len(packet)) == info + packet


def test_bytes_read_behind_the_login_are_served(plane: Plane) -> None:
    a = PlanePeer(plane)
    sent = (
        frame(FrameType.SEND_PACKET, a.key, b"early")
        + frame(FrameType.PING, b"12345678")
        + b"\x04\0"
    )
    b = PlanePeer(plane, unread=sent)
    assert a.receive() == (FrameType.RECV_PACKET, b.key + b"early")
    assert b.receive() == (FrameType.PONG, b"12345678")
    b.write(frame(FrameType.SEND_PACKET, a.key, b"rest")[2:])
    assert a.receive() == (FrameType.RECV_PACKET, b.key + b"rest")


def test_as_many_unread_bytes_as_allowed_are_served(plane: Plane) -> None:
    a = PlanePeer(plane)
    one = frame(FrameType.SEND_PACKET, a.key, bytes(8192 - 37))
    n = MAX_UNREAD_BYTES // len(one) - (PlanePeer is SealedPeer)  # records take some room
    b = PlanePeer(plane, unread=one * n)
    for _ in range(n):
        assert a.receive() == (FrameType.RECV_PACKET, b.key + bytes(8192 - 37))
    with pytest.raises(ValueError, match="unread"):
        PlanePeer(plane, unread=bytes(MAX_UNREAD_BYTES + 1))


def test_an_idle_client_keeps_no_memory_of_a_large_read(plane: Plane) -> None:
    large = frame(FrameType.HEALTH, bytes(MAX_UNREAD_BYTES // 8)) * 7
    before = resident_bytes()
    peers = [
        PlanePeer(plane, unread=large + frame(FrameType.PING, b"12345678") + b"\x06\0\0")
        for _ in range(200)
    ]
    for peer in peers:
        assert peer.receive() == (FrameType.PONG, b"12345678")
    plane.trim_memory()
    assert resident_bytes() - before < 20 << 20, "they brought 50 MiB"


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
    plane.set_rate_limit(
        1_000_000_000_000, 1_000_000_000
    )  # holds nobody back, but has them read in smaller pieces
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
    plane.start()  # the first turn reads the first piece; in the second there are an event and something to go on with
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
def test_frames_of_types_that_nobody_knows_are_counted_and_no_others(role: str) -> None:
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


def test_a_disco_packet_to_nobody_is_answered_three_times_at_once(plane: Plane) -> None:
    a, nobody = PlanePeer(plane), os.urandom(32)
    for _ in range(6):
        a.send_packet(nobody, DISCO)
    a.send_packet(nobody, b"not disco")
    assert a.receive_until_pong() == [(FrameType.PEER_GONE, nobody + NOT_HERE)] * 3
    assert dropped(plane) == {("unknown_dest", "disco"): 6, ("unknown_dest", "other"): 1}


def test_receivers_learn_of_a_departure_and_others_do_not(plane: Plane) -> None:
    a, told, untold = (PlanePeer(plane) for _ in range(3))
    a.send_packet(told.key, b"x")
    untold.send_packet(a.key, b"y")
    assert a.receive()[0] == FrameType.RECV_PACKET
    a.close()
    assert told.receive() == (FrameType.RECV_PACKET, a.key + b"x")
    assert told.receive() == (FrameType.PEER_GONE, a.key + GONE)
    closed(plane)
    untold.sync()


def test_a_second_departure_is_reported_too(plane: Plane) -> None:
    receiver, key = PlanePeer(plane), os.urandom(32)
    for _ in range(3):
        sender = PlanePeer(plane, key)
        sender.send_packet(receiver.key, b"x")
        assert receiver.receive()[0] == FrameType.RECV_PACKET
        sender.close()
        assert receiver.receive() == (FrameType.PEER_GONE, key + GONE)


def test_a_sender_whose_receivers_come_and_go_does_not_remember_all_that_ever_were() -> None:
    with running_plane(workers=1) as plane:
        sender, key = PlanePeer(plane), os.urandom(32)
        for _ in range(300):
            receiver = PlanePeer(plane, key)
            sender.send_packet(key, b"x")
            assert receiver.receive() == (FrameType.RECV_PACKET, sender.key + b"x")
            receiver.close()
            closed(plane)
        assert sum(plane.unique_senders().values()) < 10


def test_others_are_served_while_very_many_learn_of_a_departure() -> None:
    plane = Plane(workers=1)
    receivers = [PlanePeer(plane) for _ in range(1000)]
    to_all = [frame(FrameType.SEND_PACKET, receiver.key, b"") for receiver in receivers]
    popular, busy = PlanePeer(plane), PlanePeer(plane, unread=b"".join(to_all * 6))
    popular.write(b"".join(to_all))
    popular.close()
    plane.start()  # it finds both at once, and every turn brings some of each one's packets until they are all there
    with contextlib.closing(plane):
        n_before: list[int] = []
        for receiver in receivers:
            assert receiver.receive() in [
                (FrameType.RECV_PACKET, peer.key) for peer in (popular, busy)
            ]
            frames = [receiver.receive() for _ in range(7)]
            n_before.append(frames.index((FrameType.PEER_GONE, popular.key + GONE)))
        assert max(n_before) - min(n_before) >= 2, "all were told in the same turn"


def test_a_key_that_returns_while_its_departure_is_told_is_not_forgotten_by_whom_it_wrote_to(
    plane: Plane,
) -> None:
    relay, link, far = PlanePeer(plane, mesh=True), PlanePeer(plane, link=True), os.urandom(32)
    receivers, last = [PlanePeer(plane) for _ in range(600)], PlanePeer(plane)
    gone = (FrameType.PEER_GONE, far + GONE)

    def write_to(some: list[PlanePeer], data: bytes) -> None:
        relay.write(b"".join(frame(FrameType.FORWARD_PACKET, far, peer.key, data) for peer in some))
        relay.sync()

    def heard() -> list[list[tuple[int, bytes]]]:
        """Return what each receiver has heard when everybody was told of every departure so far."""
        behind = [
            os.urandom(32) for _ in range(plane.n_workers)
        ]  # the others, in each worker's line
        for key in behind:
            plane.add_forwarder(key, link.handle)
            relay.send(FrameType.FORWARD_PACKET, key, last.key, b"")
            assert last.receive() == (FrameType.RECV_PACKET, key)
        for key in behind:
            plane.remove_forwarder(key, link.handle)
        for _ in range(plane.n_workers):
            assert last.receive()[0] == FrameType.PEER_GONE
        return [receiver.receive_until_pong() for receiver in receivers]

    plane.add_forwarder(far, link.handle)
    write_to(receivers, b"1")
    plane.remove_forwarder(far, link.handle)
    plane.add_forwarder(far, link.handle)
    write_to(receivers[::2], b"2")
    before = heard()
    assert all(news[-1] == (FrameType.RECV_PACKET, far + b"2") for news in before[::2]), (
        "it is there"
    )
    plane.remove_forwarder(far, link.handle)
    for old, new in zip(before, heard(), strict=True):
        assert new == ([] if old[-1] == gone else [gone]), "everybody knows in the end that it left"


def test_what_is_remembered_of_who_wrote_to_whom_stays_under_its_cap() -> None:
    cap = 4096
    with running_plane(workers=1, told_cap_bytes=cap) as plane:
        receivers, senders = (
            [PlanePeer(plane) for _ in range(40)],
            [PlanePeer(plane) for _ in range(40)],
        )
        for sender in senders:
            for receiver in receivers:
                sender.send_packet(receiver.key, b"x")
                assert receiver.receive() == (FrameType.RECV_PACKET, sender.key + b"x")
        assert cap // 2 < plane.counters()["told_bytes"] <= cap
        first, *_, last = senders
        for sender in (first, last):
            sender.close()
            closed(plane)
        told = [receiver.receive_until_pong() for receiver in receivers]
        assert all(news in ([], [(FrameType.PEER_GONE, first.key + GONE)]) for news in told)
        assert any(told), "there was room for the first one's receivers"
        senders[1].send_packet(receivers[0].key, b"as ever")
        assert receivers[0].receive() == (FrameType.RECV_PACKET, senders[1].key + b"as ever")
        for sender in senders:
            sender.close()
        eventually(lambda: plane.counters()["told_bytes"] == 0)


def test_the_last_packets_come_before_the_news_of_the_departure(plane: Plane) -> None:
    receiver = PlanePeer(plane)
    for _ in range(50):
        sender = PlanePeer(plane)
        sender.write(frame(FrameType.SEND_PACKET, receiver.key, b"last") * 20)
        sender.close()
        for _ in range(20):
            assert receiver.receive() == (FrameType.RECV_PACKET, sender.key + b"last")
        assert receiver.receive() == (FrameType.PEER_GONE, sender.key + GONE)


def test_of_two_sessions_with_one_key_the_last_to_speak_gets_the_packets(plane: Plane) -> None:
    key, sender = os.urandom(32), PlanePeer(plane)
    old, new = PlanePeer(plane, key), PlanePeer(plane, key)

    def check(active: PlanePeer) -> None:
        sender.send_packet(key, b"x")
        assert active.receive() == (FrameType.RECV_PACKET, sender.key + b"x")

    new.sync()
    check(new)
    old.sync()
    check(old)
    new.sync()
    check(new)
    assert plane.counters()["current_dup_client_keys"] == 1
    assert plane.counters()["current_dup_client_conns"] == 2
    new.close()
    closed(plane)
    check(old)
    assert (
        plane.counters()["current_dup_client_keys"]
        == plane.counters()["current_dup_client_conns"]
        == 0
    )


def test_of_three_the_latest_speaker_left_takes_over(plane: Plane) -> None:
    key, sender = os.urandom(32), PlanePeer(plane)
    first, second, third = (PlanePeer(plane, key) for _ in range(3))
    for speaker in (second, first, third):
        speaker.sync()
    third.close()
    closed(plane)
    sender.send_packet(key, b"x")
    assert first.receive() == (FrameType.RECV_PACKET, sender.key + b"x")


def test_sessions_that_fight_over_a_key_are_sent_nothing_under_that_policy() -> None:
    with running_plane(workers=1, disable_fighters=True) as plane:
        sender, key = PlanePeer(plane), os.urandom(32)

        def receivers(*peers: PlanePeer) -> list[int]:
            """Send one packet to the key; return which of the peers got it."""
            sender.send_packet(key, b"x")
            sender.sync()
            return [
                i
                for i, peer in enumerate(peers)
                if select.select([peer.socket], [], [], 0)[0] and peer.receive()
            ]

        first, second = PlanePeer(plane, key), PlanePeer(plane, key)
        assert receivers(first, second) == [1], "the newest is active"
        second.sync()
        first.sync()
        assert receivers(first, second) == [], "both have spoken in turn"
        assert dropped(plane) == {("dup_client", "other"): 1}
        third = PlanePeer(plane, key)
        assert receivers(first, second, third) == [2], "a newcomer is not part of the fight"
        third.close()
        closed(plane)
        assert receivers(first, second) == []
        first.close()
        closed(plane)
        assert receivers(second) == [0], "whoever is left has the key"


def test_no_departure_while_another_session_has_the_key(plane: Plane) -> None:
    key, receiver = os.urandom(32), PlanePeer(plane)
    first, second = PlanePeer(plane, key), PlanePeer(plane, key)
    first.send_packet(receiver.key, b"x")
    assert receiver.receive()[0] == FrameType.RECV_PACKET
    first.close()
    closed(plane)
    receiver.sync()
    second.close()
    assert receiver.receive() == (FrameType.PEER_GONE, key + GONE)


def fill(sender: PlanePeer, to: bytes, n: int, size: int) -> None:
    """Send n packets that begin with their number; the sender's pong says that all were dealt with."""
    for i in range(n):
        sender.send_packet(to, struct.pack(">I", i) + bytes(size - 4))
    sender.sync()


def stall(plane: Plane, sender: PlanePeer, slow: PlanePeer) -> None:
    """Send until slow's socket is full, little at once, so that the rest of what it has a part of is little, too."""
    before = plane.counters()["backlog_bytes"]
    while plane.counters()["backlog_bytes"] == before:
        fill(sender, slow.key, 4, 1400)


def packet_number(receiver: PlanePeer) -> int:
    """Receive one packet of `fill`; return its number."""
    number: int = struct.unpack_from(">I", receiver.receive()[1], 32)[0]
    return number


def test_a_reader_that_stalls_keeps_the_newest_packets_and_loses_none_in_between(
    plane: Plane,
) -> None:
    sender, slow = PlanePeer(plane), PlanePeer(plane)
    fill(sender, slow.key, 3000, 1400)
    n_lost = sum(dropped(plane).values())
    assert n_lost == dropped(plane)[("queue_head", "other")] > 0
    numbers = [struct.unpack_from(">I", slow.receive()[1], 32)[0] for _ in range(3000 - n_lost)]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 2999
    assert numbers[0] == 0
    slow.sync()
    assert plane.counters()["backlog_bytes"] == 0
    assert plane.counters()["packets_received"] == plane.counters()["packets_sent"] + n_lost


def test_32_packets_of_the_largest_size_wait_for_a_stalled_reader(plane: Plane) -> None:
    sender, slow = PlanePeer(plane), PlanePeer(plane)
    slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    fill(sender, slow.key, 32, 65536)
    assert not dropped(plane)
    for i in range(32):
        assert slow.receive()[1][32:36] == struct.pack(">I", i)


@pytest.mark.parametrize("depth", [1, 7, 3000])
def test_a_queue_depth_is_how_many_packets_wait_whatever_their_size(depth: int) -> None:
    with running_plane(workers=1, queue_packets=depth) as plane:
        sender, slow = PlanePeer(plane), PlanePeer(plane)
        fill(sender, slow.key, 6000, 1400)
        n_lost = dropped(plane)[("queue_head", "other")]
        numbers = [struct.unpack_from(">I", slow.receive()[1], 32)[0] for _ in range(6000 - n_lost)]
        assert numbers[-depth:] == list(range(6000 - depth, 6000))
        assert numbers[-depth - 1] < 6000 - depth - 1, "no packet was displaced"


AGE_S = 0.1


def test_what_waited_too_long_is_dropped_when_its_sender_sends_again() -> None:
    with running_plane(workers=1, backlog_age_s=AGE_S) as plane:
        sender, slow = PlanePeer(plane), PlanePeer(plane)
        fill(sender, slow.key, 300, 1400)
        time.sleep(1.5 * AGE_S)
        fill(sender, slow.key, 1, 1400)
        n_lost = dropped(plane)[("queue_head", "other")]
        assert plane.sessions()[1].totals.dropped == n_lost
        arrived = [packet_number(slow) for _ in range(300 - n_lost + 1)]
        assert arrived == [*range(300 - n_lost), 0], (
            "all that waited is gone, from the oldest to the newest"
        )
        slow.sync()


def test_a_slow_reader_is_written_nothing_that_waited_too_long() -> None:
    with running_plane(workers=1, backlog_age_s=AGE_S) as plane:
        senders, slow = [PlanePeer(plane), PlanePeer(plane)], PlanePeer(plane)
        rounds: list[int] = []  # in which round each packet was sent, as the reader sees them
        n_written_before = []
        for round_ in range(6):
            time.sleep(1.5 * AGE_S)  # now all that waits is too old, whoever sent it
            n_written_before.append(n_written := plane.counters()["packets_sent"])
            packet = struct.pack(">I", round_) + bytes(1400)
            for _ in range(300):
                senders[round_ % 2].send_packet(slow.key, packet)
            senders[round_ % 2].sync()
            while round_ and plane.counters()["packets_sent"] == n_written:
                rounds.append(packet_number(slow))
        rounds += [
            struct.unpack_from(">I", payload, 32)[0] for _, payload in slow.receive_until_pong()
        ]
        for round_, n_written in enumerate(n_written_before):
            assert set(rounds[n_written:]) <= set(range(round_, 6)), (
                f"older ones were written in round {round_}"
            )
        assert max(rounds) == 5
        assert accounted(plane)


def test_a_reader_that_takes_nothing_is_closed_although_all_that_waits_for_it_is_too_old() -> None:
    with running_plane(workers=1, write_timeout_s=3 * AGE_S, backlog_age_s=AGE_S) as plane:
        sender, stuck = PlanePeer(plane), PlanePeer(plane)
        fill(sender, stuck.key, 300, 1400)
        assert closed(plane).reason == "write_timeout"
        assert dropped(plane)[("write_error", "other")] == 1
        assert accounted(plane)


def test_packets_of_a_queue_depth_wait_as_long_as_it_takes() -> None:
    with running_plane(workers=1, queue_packets=7, backlog_age_s=AGE_S) as plane:
        sender, slow = PlanePeer(plane), PlanePeer(plane)
        fill(sender, slow.key, 6000, 1400)
        n_lost = dropped(plane)[("queue_head", "other")]
        time.sleep(1.5 * AGE_S)
        numbers = [packet_number(slow) for _ in range(6000 - n_lost)]
        assert numbers[-7:] == list(range(6000 - 7, 6000))


def test_what_waited_too_long_for_another_relay_is_lost_too() -> None:
    with running_plane(workers=1, backlog_age_s=AGE_S) as plane:
        sender, link, far = PlanePeer(plane), PlanePeer(plane, link=True), os.urandom(32)
        plane.add_forwarder(far, link.handle)
        fill(sender, far, 300, 1400)
        time.sleep(1.5 * AGE_S)
        sender.send_packet(far, b"fresh")
        sender.sync()
        n_lost = plane.counters()["packets_forwarded_lost"]
        assert isinstance(n_lost, int) and n_lost > 0
        received = [link.receive()[1][64:] for _ in range(300 - n_lost + 1)]
        assert received[-1] == b"fresh"
        assert [struct.unpack_from(">I", data)[0] for data in received[:-1]] == list(
            range(300 - n_lost)
        )


def test_drops_are_told_of_for_watched_keys_only() -> None:
    watched, absent = os.urandom(32), os.urandom(32)
    with running_plane(workers=1, watch_drops=[os.urandom(32), watched]) as plane:
        sender = PlanePeer(plane)
        sender.send_packet(absent, b"data")
        sender.send_packet(watched, b"data")
        sender.sync()
        assert events(plane) == [DropEvent(sender.key, watched, "unknown_dest", "other")]
        slow = PlanePeer(plane, watched)
        fill(sender, watched, 1000, 1400)
        told = events(plane)
        assert set(told) == {DropEvent(sender.key, watched, "queue_head", "other")}
        assert len(told) < 200 < sum(dropped(plane).values()), "a flood is told of by its beginning"
        slow.close()


def test_a_watched_drop_of_a_forwarded_packet_names_its_first_sender() -> None:
    watched, source = os.urandom(32), os.urandom(32)
    with running_plane(workers=1, watch_drops=[watched]) as plane:
        mesh = PlanePeer(plane, mesh=True)
        mesh.send(FrameType.FORWARD_PACKET, source, watched, b"data")
        mesh.sync()
        assert events(plane) == [DropEvent(source, watched, "unknown_dest_on_fwd", "other")]


def test_the_time_packets_wait_is_averaged(plane: Plane) -> None:
    sender, slow, quick = (PlanePeer(plane) for _ in range(3))
    assert plane.counters()["average_queue_duration_ms"] == 0
    fill(sender, slow.key, 1000, 1400)
    slow.receive_until_pong()
    waited_ms = plane.counters()["average_queue_duration_ms"]
    assert isinstance(waited_ms, float) and waited_ms > 0
    for _ in range(300):
        sender.send_packet(quick.key, b"data")
        quick.receive()
    eventually(lambda: plane.counters()["average_queue_duration_ms"] == 0)


def test_packets_of_another_thread_never_seem_to_have_waited_for_centuries() -> None:
    with running_plane(workers=2, write_timeout_s=0) as plane:
        slow, *senders = [PlanePeer(plane) for _ in range(4)]
        stop = threading.Event()

        def flood(sender: PlanePeer) -> None:
            while not stop.is_set():
                sender.write(frame(FrameType.SEND_PACKET, slow.key, bytes(1400)) * 20)

        threads = [threading.Thread(target=flood, args=(sender,)) for sender in senders]
        for thread in threads:
            thread.start()
        averages: list[Any] = []
        for _ in range(3000):
            slow.read(20_000)
            averages.append(plane.counters()["average_queue_duration_ms"])
        stop.set()
        for thread in threads:
            thread.join()
        assert max(averages) < 3_600_000


def test_the_time_that_packets_wait_in_a_busy_turn_is_averaged_too() -> None:
    plane = Plane(workers=1)
    sender, receiver = PlanePeer(plane), PlanePeer(plane)
    packet = frame(FrameType.SEND_PACKET, receiver.key, b"data")
    sender.write(packet * 100)
    plane.start()  # it finds them all at once
    with contextlib.closing(plane):
        for _ in range(100):
            receiver.receive()
        eventually(lambda: 0 < plane.counters()["average_queue_duration_ms"] < 1000)  # type: ignore[operator]


def test_frames_are_counted_by_how_many_go_out_at_once(plane: Plane) -> None:
    sender, receiver = PlanePeer(plane), PlanePeer(plane)
    counts, total = [0] * 17, 0
    for n, bucket in [(1, 1), (3, 3), (10, 10), (12, 11), (60, 15), (200, 16)]:
        sender.write(frame(FrameType.SEND_PACKET, receiver.key, b"data") * n)
        for _ in range(n):
            receiver.receive()
        counts[bucket] += 1
        total += n
        expected = (counts, total)
        eventually(lambda expected=expected: plane.counters()["buffered_write_frames"] == expected)


def test_disco_packets_overtake_data_that_waits(plane: Plane) -> None:
    sender, slow = PlanePeer(plane), PlanePeer(plane)
    fill(sender, slow.key, 1000, 1400)
    sender.send_packet(slow.key, DISCO + b"now")
    sender.sync()
    seen = []
    while True:
        data = slow.receive()[1][32:]
        if data == DISCO + b"now":
            break
        seen.append(struct.unpack_from(">I", data)[0])
    assert 999 not in seen, "it waited behind everything"


def test_a_stalled_reader_does_not_hold_up_others(plane: Plane) -> None:
    sender, slow, quick = (PlanePeer(plane) for _ in range(3))
    fill(sender, slow.key, 2000, 1400)
    for i in range(200):
        sender.send_packet(quick.key, b"%d" % i)
        assert quick.receive() == (FrameType.RECV_PACKET, sender.key + b"%d" % i)


def test_senders_that_flood_a_slow_reader_cost_a_polite_one_nothing(plane: Plane) -> None:
    first, *flooders = [PlanePeer(plane) for _ in range(13)]
    polite, slow = PlanePeer(plane), PlanePeer(plane)
    fill(first, slow.key, 300, 1400)  # the socket is full of these: from here on everything waits
    for _ in range(10):
        for flooder in flooders:
            fill(flooder, slow.key, 30, 1400)
        polite.send_packet(slow.key, b"please")
        polite.sync()
    n_lost = sum(dropped(plane).values())
    assert n_lost > 1000
    sources = [slow.receive()[1][:32] for _ in range(10 + 13 * 300 - n_lost)]
    assert sources.count(polite.key) == 10
    shares = [sources.count(flooder.key) for flooder in flooders]
    assert min(shares) > 0.8 * max(shares)


@pytest.mark.parametrize(
    ("n_flooders", "options"),
    [(300, {}), (300, {"queue_packets": 100}), (1000, {})],
    ids=["300", "300, 100 packets wait", "1000"],
)
def test_more_flooders_than_there_is_room_for_cost_a_polite_sender_nothing(
    n_flooders: int, options: dict[str, int]
) -> None:
    with running_plane(workers=1, write_timeout_s=0, **options) as plane:
        mesh, slow = PlanePeer(plane, mesh=True), PlanePeer(plane)
        flooders, polite = [os.urandom(32) for _ in range(n_flooders)], os.urandom(32)
        sources: list[bytes] = []
        n_sent = 0
        every = (
            n_flooders // 50
        )  # rounds from one packet of the polite one to the next: half of its fair share
        for round_ in range(20 * every):  # each of which has room for 100 packets
            if round_ >= 10 * every and round_ % every == 0:  # the flooders are known by then
                mesh.send(FrameType.FORWARD_PACKET, polite, slow.key, bytes(1000))
                n_sent += 1
            mesh.write(
                b"".join(
                    frame(FrameType.FORWARD_PACKET, flooder, slow.key, bytes(1000))
                    for flooder in random.sample(flooders, 300)
                )
            )
            mesh.sync()
            sources += [slow.receive()[1][:32] for _ in range(100)]
        n_left = 20 * every * 300 + n_sent - sum(dropped(plane).values()) - len(sources)
        sources += [slow.receive()[1][:32] for _ in range(n_left)]
        assert sources.count(polite) == n_sent


def test_a_sender_of_large_packets_below_its_share_loses_nothing_to_flooders_of_small_ones() -> (
    None
):
    with running_plane(workers=1, write_timeout_s=0) as plane:
        mesh, slow = PlanePeer(plane, mesh=True), PlanePeer(plane)
        flooders, polite = [os.urandom(32) for _ in range(50)], os.urandom(32)
        flood = b"".join(
            frame(FrameType.FORWARD_PACKET, flooder, slow.key, bytes(100)) for flooder in flooders
        )
        please = frame(FrameType.FORWARD_PACKET, polite, slow.key, b"please" + bytes(1400))
        mesh.write(flood * 100)
        mesh.sync()
        n_read = 0
        sources: list[bytes] = []
        for _ in range(20):
            mesh.write(please + flood * 40)
            mesh.sync()
            sources += [slow.receive()[1][:32] for _ in range(1000)]
            n_read += 1000
        n_left = 20 + 50 * 900 - sum(dropped(plane).values()) - n_read
        sources += [slow.receive()[1][:32] for _ in range(n_left)]
        assert sources.count(polite) == 20


def test_backlogs_share_a_global_cap() -> None:
    with running_plane(workers=1, backlog_cap_bytes=100_000) as plane:
        sender, slow, slower = (PlanePeer(plane) for _ in range(3))
        for peer in (slow, slower):
            stall(plane, sender, peer)
            fill(sender, peer.key, 1000, 1400)
        assert plane.counters()["backlog_bytes"] < 120_000
        assert dropped(plane)


def test_whatever_waits_stays_under_the_global_cap() -> None:
    cap = 2_000_000
    with running_plane(workers=1, write_timeout_s=0, backlog_cap_bytes=cap) as plane:
        stalled = [PlanePeer(plane) for _ in range(20)]
        sender = PlanePeer(plane)
        for peer in stalled:
            stall(plane, sender, peer)
            for size in (65536, 1400, 4):
                fill(sender, peer.key, 40, size)
            assert plane.counters()["backlog_bytes"] <= cap
        assert dropped(plane)
        assert sender.receive_until_pong() == []
        for peer in [*stalled, sender]:
            peer.close()
        eventually(lambda: plane.counters()["backlog_bytes"] == 0)


def test_readers_that_fill_the_global_cap_have_nobody_closed_and_leave_everybody_a_little() -> None:
    cap = 4 << 20
    with running_plane(
        workers=1, write_timeout_s=0, backlog_age_s=0, backlog_cap_bytes=cap
    ) as plane:
        hostile = [PlanePeer(plane) for _ in range(60)]
        sender, polite, slow = (PlanePeer(plane) for _ in range(3))
        for size, n in ((65536, 8), (16000, 20), (1000, 60), (40, 100)):
            for peer in hostile:
                fill(sender, peer.key, n, size)
        assert plane.counters()["backlog_bytes"] > cap * 7 // 8
        n_lost = sum(dropped(plane).values())
        polite.write(frame(FrameType.SEND_PACKET, slow.key, bytes(60_000)) * 8)
        little = [b"%d" % i + bytes(1400) for i in range(2)]
        for data in little:
            polite.send_packet(slow.key, data)
        polite.sync()
        n_lost = sum(dropped(plane).values()) - n_lost
        received = [slow.receive() for _ in range(10 - n_lost)]
        assert received[-2:] == [(FrameType.RECV_PACKET, polite.key + data) for data in little]
        assert not plane.events()


def test_a_few_readers_cannot_take_what_all_backlogs_may_hold() -> None:
    with running_plane(
        workers=1, write_timeout_s=0, backlog_age_s=0, backlog_cap_bytes=4 << 20
    ) as plane:
        greedy, sender, slow = (
            [PlanePeer(plane) for _ in range(5)],
            PlanePeer(plane),
            PlanePeer(plane),
        )
        for peer in greedy:
            fill(sender, peer.key, 40, 65536)
        n_lost = sum(dropped(plane).values())
        fill(sender, slow.key, 250, 1400)
        assert sum(dropped(plane).values()) == n_lost
        numbers = [struct.unpack_from(">I", slow.receive()[1], 32)[0] for _ in range(250)]
        assert numbers == list(range(250))


def test_tiny_packets_of_thousands_of_senders_take_no_more_memory_than_others() -> None:
    with running_plane(workers=1, write_timeout_s=0) as plane:
        mesh, slow = PlanePeer(plane, mesh=True), PlanePeer(plane)
        fill(mesh, slow.key, 300, 1400)
        for _ in range(7000):
            mesh.send(FrameType.FORWARD_PACKET, os.urandom(32), slow.key)
        mesh.sync()
        assert plane.counters()["backlog_bytes"] < 3 * 262_144


def test_many_senders_of_tiny_packets_are_bounded_too() -> None:
    cap = 200_000
    with running_plane(workers=1, write_timeout_s=0, backlog_cap_bytes=cap) as plane:
        mesh, slow = PlanePeer(plane, mesh=True), PlanePeer(plane)
        for _ in range(3000):
            mesh.send(FrameType.FORWARD_PACKET, os.urandom(32), slow.key, bytes(60))
        mesh.sync()
        assert plane.counters()["backlog_bytes"] <= cap
        slow.close()
        mesh.close()
        eventually(lambda: plane.counters()["backlog_bytes"] == 0)


def test_who_has_most_waiting_loses_first_among_thousands_of_senders() -> None:
    with running_plane(workers=1, write_timeout_s=0) as plane:
        mesh, slow = PlanePeer(plane, mesh=True), PlanePeer(plane)
        greedy, polite = os.urandom(32), [os.urandom(32) for _ in range(1000)]
        for source in [greedy] * 6000 + polite:
            mesh.send(FrameType.FORWARD_PACKET, source, slow.key, bytes(100))
        mesh.sync()
        n_lost = sum(dropped(plane).values())
        assert n_lost > 1000, "some had to make room"
        arrived = [slow.receive()[1][:32] for _ in range(7000 - n_lost)]
        assert set(arrived) == {greedy, *polite}
        for peer in (mesh, slow):
            peer.close()


def test_a_client_that_stalls_while_thousands_leave_is_not_closed_for_it() -> None:
    with running_plane(workers=1, write_timeout_s=0) as plane:
        mesh, stalled = PlanePeer(plane, mesh=True), PlanePeer(plane)
        link = PlanePeer(plane, link=True)
        leaving = [os.urandom(32) for _ in range(20_000)]
        for key in leaving:
            plane.add_forwarder(key, link.handle)
            mesh.send(FrameType.FORWARD_PACKET, key, stalled.key, b"x")
        mesh.sync()
        for key in leaving:
            plane.remove_forwarder(key, link.handle)

        def n_dealt_with() -> int:
            counters: dict[str, Any] = plane.counters()
            return int(counters["peer_gone_lost"] + counters["peer_gone_disconnected_frames"])

        eventually(lambda: n_dealt_with() == len(leaving))
        counters = plane.counters()
        assert counters["peer_gone_lost"]
        told = [
            payload for kind, payload in stalled.receive_until_pong() if kind == FrameType.PEER_GONE
        ]
        assert len(told) == counters["peer_gone_disconnected_frames"]
        for peer in (mesh, stalled, link):
            peer.close()


def test_a_client_that_pings_while_news_pile_up_is_not_closed_for_the_pong() -> None:
    gone = frame(FrameType.PEER_GONE, bytes(32), GONE)
    with running_plane(workers=1, write_timeout_s=0, keep_alive_s=0.2) as plane:
        stalled, other = PlanePeer(plane), PlanePeer(plane)
        while not plane.counters()["peer_gone_lost"]:
            plane.send(stalled.handle, gone * 1000)
        plane.send(stalled.handle, frame(FrameType.KEEP_ALIVE) * 10)  # to the last byte
        stalled.send(FrameType.PING, b"12345678")
        stalled.send_packet(other.key, b"behind the ping")
        while other.receive() != (FrameType.RECV_PACKET, stalled.key + b"behind the ping"):
            pass
        assert (plane.counters()["got_ping"], plane.counters()["sent_pong"]) == (1, 0)
        for _ in range(3):
            assert other.receive() == (
                FrameType.KEEP_ALIVE,
                b"",
            )  # of which the stalled one's finds no room, either
        assert not plane.events()
        while stalled.receive()[0] == FrameType.PEER_GONE:
            pass
        assert {frame_type for frame_type, _ in stalled.receive_until_pong()} == {
            FrameType.KEEP_ALIVE
        }


def test_a_write_error_at_the_deadline_is_no_write_timeout() -> None:
    plane = Plane(workers=1, write_timeout_s=0.02)
    broken = PlanePeer(plane)
    while not plane.counters()["backlog_bytes"]:
        plane.send(broken.handle, frame(FrameType.HEALTH, bytes(1000)))
    broken.socket.shutdown(socket.SHUT_RD)
    deadline = time.monotonic() + 0.04  # two ticks of the timers behind it
    eventually(lambda: time.monotonic() > deadline)
    plane.start()  # it finds the error and the deadline in one turn
    with contextlib.closing(plane):
        assert closed(plane).reason == "write_error"
        assert plane.counters()["sclient_write_timeouts"] == 0


def test_a_reader_that_takes_nothing_is_closed_at_the_write_deadline() -> None:
    with running_plane(workers=1, write_timeout_s=0.2) as plane:
        sender, stuck = PlanePeer(plane), PlanePeer(plane)
        fill(sender, stuck.key, 1000, 1400)
        event = closed(plane)
        assert (event.handle, event.reason) == (stuck.handle, "write_timeout")
        assert plane.counters()["sclient_write_timeouts"] == 1
        assert dropped(plane)[("write_error", "other")] == 1, "the packet that was to be written"
        assert dropped(plane)[("gone_disconnected", "other")] > 0, "those behind it"
        assert accounted(plane)
        assert plane.counters()["backlog_bytes"] == 0


def test_the_first_packet_for_a_broken_socket_is_a_write_error_and_those_behind_it_are_not(
    plane: Plane,
) -> None:
    sender, broken = PlanePeer(plane), PlanePeer(plane)
    broken.socket.shutdown(socket.SHUT_RD)
    sender.write(frame(FrameType.SEND_PACKET, broken.key, b"data") * 100)
    assert closed(plane).reason == "write_error"
    sender.sync()
    assert dropped(plane) == {("write_error", "other"): 1, ("gone_disconnected", "other"): 99}


def test_what_waits_for_a_client_that_the_relay_closes_is_no_write_error(plane: Plane) -> None:
    sender, slow = PlanePeer(plane), PlanePeer(plane)
    fill(sender, slow.key, 300, 1400)
    plane.close_session(slow.handle)
    assert closed(plane).reason == "server"
    assert ("write_error", "other") not in dropped(plane)
    assert dropped(plane)[("gone_disconnected", "other")] > 0


@pytest.mark.parametrize("role", ["mesh", "link"])
@pytest.mark.parametrize("expected", ["client", "peer"])
def test_clients_and_mesh_peers_each_have_a_write_deadline_of_their_own(
    role: str, expected: str
) -> None:
    client_s, mesh_s = (0.2, 600) if expected == "client" else (600, 0.2)
    with running_plane(workers=1, write_timeout_s=client_s, mesh_write_timeout_s=mesh_s) as plane:
        sender, far = PlanePeer(plane), os.urandom(32)
        stuck = {"client": PlanePeer(plane), "peer": PlanePeer(plane, **{role: True})}
        plane.add_forwarder(far, stuck["peer"].handle)
        fill(sender, stuck["client"].key, 300, 1400)
        fill(sender, far, 300, 1400)
        event = closed(plane)
        assert (event.handle, event.reason) == (stuck.pop(expected).handle, "write_timeout")
        [left] = stuck.values()
        assert left.handle in {session.handle for session in plane.sessions()}


def test_a_reader_that_makes_progress_is_not_closed() -> None:
    with running_plane(workers=1, write_timeout_s=0.5) as plane:
        sender, slow = PlanePeer(plane), PlanePeer(plane)
        fill(sender, slow.key, 300, 1400)
        n = 300 - sum(dropped(plane).values())
        for _ in range(n):
            slow.receive()
            time.sleep(0.005)  # the pace of a slow reader is what is tested
        slow.sync()


def test_a_silent_client_is_kept_alive_and_a_busy_one_too() -> None:
    with running_plane(workers=1, keep_alive_s=0.1) as plane:
        silent, busy = PlanePeer(plane), PlanePeer(plane)
        started = time.monotonic()
        for _ in range(5):
            assert silent.receive() == (FrameType.KEEP_ALIVE, b"")
        assert 0.5 <= time.monotonic() - started < 5
        assert (FrameType.KEEP_ALIVE, b"") in busy.receive_until_pong()


def test_a_link_that_falls_silent_is_closed() -> None:
    with running_plane(workers=1, keep_alive_s=0.1) as plane:
        link = PlanePeer(plane, link=True)
        assert closed(plane).reason == "silent"
        with pytest.raises((EOFError, ConnectionError)):
            link.receive()


def test_a_flood_of_pings_waits_as_one_pong(plane: Plane) -> None:
    sender, slow = PlanePeer(plane), PlanePeer(plane)
    fill(sender, slow.key, 1000, 1400)
    slow.write(frame(FrameType.PING, b"12345678") * 5000)
    slow.send_packet(sender.key, b"done")
    assert sender.receive() == (FrameType.RECV_PACKET, slow.key + b"done")
    assert plane.counters()["backlog_bytes"] < 600_000
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


def test_a_ping_is_answered_although_the_relay_has_other_news_waiting(plane: Plane) -> None:
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


def test_disco_junk_leaves_a_slow_reader_half_of_its_line_for_data(plane: Plane) -> None:
    first, junk, polite, slow = (PlanePeer(plane) for _ in range(4))
    fill(first, slow.key, 300, 1400)
    polite.write(frame(FrameType.SEND_PACKET, slow.key, b"please" + bytes(1000)) * 40)
    polite.sync()
    sources: list[bytes] = []
    for _ in range(10):
        junk.write(frame(FrameType.SEND_PACKET, slow.key, DISCO + bytes(1300)) * 200)
        junk.sync()
        sources += [slow.receive()[1][:32] for _ in range(100)]
    assert sources.count(polite.key) == 40


def test_senders_that_flood_a_slow_reader_with_disco_junk_cost_a_polite_one_nothing(
    plane: Plane,
) -> None:
    first, *flooders = [PlanePeer(plane) for _ in range(5)]
    polite, slow = PlanePeer(plane), PlanePeer(plane)
    fill(first, slow.key, 300, 1400)
    for _ in range(10):
        for flooder in flooders:
            flooder.write(frame(FrameType.SEND_PACKET, slow.key, DISCO + bytes(1300)) * 100)
            flooder.sync()
        polite.send_packet(slow.key, DISCO + b"please")
        polite.sync()
    n_lost = sum(dropped(plane).values())
    assert n_lost > 1000
    sources = [slow.receive()[1][:32] for _ in range(300 + 10 + 4 * 1000 - n_lost)]
    assert sources.count(polite.key) == 10


def test_what_is_lost_with_a_connection_that_breaks_is_counted(plane: Plane) -> None:
    sender = PlanePeer(plane)
    for _ in range(100):
        receiver = PlanePeer(plane)
        sender.write(frame(FrameType.SEND_PACKET, receiver.key, bytes(1400)) * 150)
        receiver.close()
        sender.receive_until_pong()
    events(plane, 100)
    assert accounted(plane)


def test_preferred_moves_the_home_gauge_on_transitions_only(plane: Plane) -> None:
    a = PlanePeer(plane)
    for value, homes in ((b"\1", 1), (b"\2", 1), (b"\0", 0), (b"\0", 0), (b"\1", 1)):
        a.send(FrameType.NOTE_PREFERRED, value)
        a.sync()
        assert plane.counters()["current_home_connections"] == homes
    assert plane.counters()["home_moves_in"] == 0, "within 5 s of the login it is no move"
    a.close()
    closed(plane)
    assert plane.counters()["current_home_connections"] == 0


def test_changes_of_home_are_moves_once_the_client_has_settled() -> None:
    def moves(plane: Plane) -> tuple[object, object]:
        a = PlanePeer(plane)
        for value in (b"\1", b"\1", b"\0", b"\1"):
            a.send(FrameType.NOTE_PREFERRED, value)
            a.sync()
        return plane.counters()["home_moves_in"], plane.counters()["home_moves_out"]

    with running_plane(workers=1, home_settled_s=0) as plane:
        assert moves(plane) == (2, 1)
    with running_plane(workers=1, home_settled_s=600) as plane:
        assert moves(plane) == (0, 0)


def test_a_session_without_tcp_is_told_from_one_whose_kernel_fails() -> None:
    plane = Plane(workers=1)
    PlanePeer(plane)
    ours, theirs = socket.socketpair()
    fd = theirs.detach()
    plane.promote(fd, os.urandom(32))
    with contextlib.closing(plane), ours, open(os.devnull) as no_socket:
        os.dup2(no_socket.fileno(), fd)  # it belongs to the plane, which closes it
        assert plane.round_trips([1000]) == ([0, 0], 1, 1)
        assert plane.round_trips([1000]) == ([0, 0], 0, 0)


def test_closing_by_handle_and_by_key_says_who_asked(plane: Plane) -> None:
    key = os.urandom(32)
    a, b, c = PlanePeer(plane), PlanePeer(plane, key), PlanePeer(plane, key)
    assert plane.close_session(a.handle)
    assert closed(plane).reason == "server"
    assert not plane.close_session(a.handle)
    assert plane.close_key(key) == 2
    assert {event.reason for event in events(plane, 2) if isinstance(event, ClosedEvent)} == {
        "close_peer"
    }
    for peer in (a, b, c):
        with pytest.raises((EOFError, ConnectionError)):
            peer.receive()


def test_a_late_handle_is_harmless(plane: Plane) -> None:
    a = PlanePeer(plane)
    a.close()
    closed(plane)
    b = PlanePeer(plane)
    assert not plane.send(a.handle, frame(FrameType.HEALTH, b"?"))
    assert (
        not plane.send(2**63, b"") and not plane.send(0, b"") and not plane.close_session(2**40 + 7)
    )
    b.sync()


def test_frames_for_a_session_that_is_being_closed_are_not_sent() -> None:
    plane = Plane(workers=1)  # not started: nothing that is closed ends yet
    with contextlib.closing(plane):
        a, broken = PlanePeer(plane), PlanePeer(plane)
        assert plane.send(a.handle, frame(FrameType.HEALTH, b"!"))
        plane.close_session(a.handle)
        assert not plane.send(a.handle, frame(FrameType.HEALTH, b"?"))
        broken.socket.shutdown(socket.SHUT_RD)
        assert not plane.send(broken.handle, frame(FrameType.HEALTH, b"?"))


def test_answers_that_a_closing_session_does_not_get_do_not_count_as_sent(plane: Plane) -> None:
    sender, slow, nobody = PlanePeer(plane), PlanePeer(plane), os.urandom(32)
    fill(sender, slow.key, 1000, 1400)
    slow.send(FrameType.PING, b"12345678")
    slow.send_packet(nobody, DISCO)
    slow.send_packet(sender.key, b"done")
    assert sender.receive() == (FrameType.RECV_PACKET, slow.key + b"done")
    assert plane.counters()["peer_gone_not_here_frames"] == 1
    n_pongs = plane.counters()["got_ping"]
    assert plane.counters()["sent_pong"] == n_pongs
    slow.close()
    closed(plane)
    assert plane.counters()["sent_pong"] == n_pongs - 1
    assert plane.counters()["peer_gone_not_here_frames"] == 0


def test_part_of_a_frame_cannot_be_sent(plane: Plane) -> None:
    a = PlanePeer(plane)
    for part in (
        b"\x14",
        frame(FrameType.HEALTH, b"half")[:-1],
        frame(FrameType.KEEP_ALIVE) + b"\x14\0\0\0",
    ):
        with pytest.raises(ValueError, match="whole"):
            plane.send(a.handle, part)
    a.sync()


def test_a_session_closed_by_the_relay_is_told_so_in_its_records(plane: Plane) -> None:
    a, b = SealedPeer(plane), SealedPeer(plane)
    plane.close_session(a.handle)
    plane.close_key(b.key)
    for peer in (a, b):
        with pytest.raises(EOFError):
            peer.receive()
        assert peer.records is not None and peer.records.eof, "close_notify"


def test_the_closed_event_tells_the_whole_story(plane: Plane) -> None:
    a = PlanePeer(plane, addr=bytes(10) + b"\xff\xff\x7f\0\0\1", port=4711)
    b = PlanePeer(plane)
    a.send_packet(b.key, b"12345")
    b.send_packet(a.key, b"123")
    assert a.receive()[0] == FrameType.RECV_PACKET
    a.close()
    event = closed(plane)
    assert (event.key, event.reason, event.addr[-4:], event.port) == (
        a.key,
        "eof",
        b"\x7f\0\0\1",
        4711,
    )
    assert event.totals[1:] == (1, 5, 1, 3, 0)
    assert 0 < event.totals.seconds < 60


# ---- mesh


def test_mesh_frames_reach_the_control_plane(plane: Plane) -> None:
    a = PlanePeer(plane, mesh=True)
    a.send(FrameType.WATCH_CONNS)
    a.send(FrameType.CLOSE_PEER, b"k" * 32)
    assert events(plane, 2) == [
        FrameEvent(a.handle, FrameType.WATCH_CONNS, b""),
        FrameEvent(a.handle, FrameType.CLOSE_PEER, b"k" * 32),
    ]


def test_forwarded_packets_arrive_from_their_first_sender(plane: Plane) -> None:
    relay, b, far = PlanePeer(plane, mesh=True), PlanePeer(plane), os.urandom(32)
    for size in (0, 1, 1400, 65536):
        data = os.urandom(size)
        relay.send(FrameType.FORWARD_PACKET, far, b.key, data)
        assert b.receive() == (FrameType.RECV_PACKET, far + data)
    relay.send(FrameType.FORWARD_PACKET, bytes(32), b.key, b"old form")
    assert b.receive() == (FrameType.RECV_PACKET, b"old form")
    nobody = os.urandom(32)
    relay.send(FrameType.FORWARD_PACKET, far, nobody, DISCO)
    assert relay.receive_until_pong() == [(FrameType.PEER_GONE, nobody + NOT_HERE)]
    assert dropped(plane) == {("unknown_dest_on_fwd", "disco"): 1}
    assert plane.counters()["packets_forwarded_in"] == 6


def test_packets_for_a_remote_key_go_over_its_link(plane: Plane) -> None:
    a, link, far = PlanePeer(plane), PlanePeer(plane, link=True), os.urandom(32)
    plane.add_forwarder(far, link.handle)
    assert plane.counters()["clients_remote"] == 1
    sizes = (0, 1, 1400, 65536, 3)
    for size in sizes:
        a.send_packet(far, bytes(size))
    for size in sizes:
        assert link.receive() == (FrameType.FORWARD_PACKET, a.key + far + bytes(size))
    assert plane.counters()["packets_forwarded_out"] == len(sizes)
    here = PlanePeer(plane, far)
    a.send_packet(far, b"local beats mesh")
    assert here.receive() == (FrameType.RECV_PACKET, a.key + b"local beats mesh")
    here.close()
    closed(plane)
    a.send_packet(far, b"again over the link")
    assert link.receive() == (FrameType.FORWARD_PACKET, a.key + far + b"again over the link")


def test_nothing_is_forwarded_twice(plane: Plane) -> None:
    relay, link, far = PlanePeer(plane, mesh=True), PlanePeer(plane, link=True), os.urandom(32)
    plane.add_forwarder(far, link.handle)
    relay.send(FrameType.FORWARD_PACKET, os.urandom(32), far, b"x")
    relay.sync()
    assert dropped(plane) == {("unknown_dest_on_fwd", "other"): 1}


def test_the_oldest_forwarder_is_preferred_and_the_next_takes_over(plane: Plane) -> None:
    a, far = PlanePeer(plane), os.urandom(32)
    old, new = PlanePeer(plane, link=True), PlanePeer(plane, link=True)

    def counts() -> tuple[object, ...]:
        c = plane.counters()
        return (
            c["multiforwarder_created"],
            c["multiforwarder_deleted"],
            c["packet_forwarder_delete_other_value"],
        )

    plane.remove_forwarder(far, old.handle)
    plane.add_forwarder(far, old.handle)
    plane.remove_forwarder(far, new.handle)
    assert counts() == (0, 0, 1)
    plane.add_forwarder(far, new.handle)
    plane.add_forwarder(far, new.handle)
    assert counts() == (1, 0, 1)
    a.send_packet(far, b"1")
    assert old.receive()[1][64:] == b"1"
    plane.remove_forwarder(far, old.handle)
    assert counts() == (1, 1, 1)
    a.send_packet(far, b"2")
    assert new.receive()[1][64:] == b"2"
    plane.remove_forwarder(far, new.handle)
    assert plane.counters()["clients_total"] == 1


def test_receivers_learn_when_a_remote_sender_leaves_the_region(plane: Plane) -> None:
    relay, link, b, far = (
        PlanePeer(plane, mesh=True),
        PlanePeer(plane, link=True),
        PlanePeer(plane),
        os.urandom(32),
    )
    plane.add_forwarder(far, link.handle)
    relay.send(FrameType.FORWARD_PACKET, far, b.key, b"x")
    assert b.receive()[0] == FrameType.RECV_PACKET
    plane.remove_forwarder(far, link.handle)
    assert b.receive() == (FrameType.PEER_GONE, far + GONE)


def test_receivers_learn_when_a_peer_leaves_that_was_forwarded_to_them_before_it_came(
    plane: Plane,
) -> None:
    relay, b, c, far = (
        PlanePeer(plane, mesh=True),
        PlanePeer(plane),
        PlanePeer(plane),
        os.urandom(32),
    )
    for _ in range(2):  # also the next time
        for receiver in (b, c):
            relay.send(FrameType.FORWARD_PACKET, far, receiver.key, b"x")
            assert receiver.receive() == (FrameType.RECV_PACKET, far + b"x")
        here = PlanePeer(plane, far)
        here.sync()
        here.close()
        closed(plane)
        for receiver in (b, c):
            assert receiver.receive() == (FrameType.PEER_GONE, far + GONE)


def test_what_a_slow_link_loses_is_counted_once_as_forwarded(plane: Plane) -> None:
    a, link, far = PlanePeer(plane), PlanePeer(plane, link=True), os.urandom(32)
    plane.add_forwarder(far, link.handle)
    for _ in range(150):
        a.write(frame(FrameType.SEND_PACKET, far, bytes(60_000)))
    a.sync()
    assert plane.sessions()[1].totals.dropped > 0
    assert plane.counters()["packets_forwarded_out"] == 150
    assert not dropped(plane)
    link.close()
    assert closed(plane).totals.dropped > 0
    a.send_packet(far, b"x")
    a.sync()
    assert accounted(plane)


def test_forwarded_packets_without_a_sender_wait_for_a_slow_reader_too(plane: Plane) -> None:
    relay, sender, slow = PlanePeer(plane, mesh=True), PlanePeer(plane), PlanePeer(plane)
    fill(sender, slow.key, 300, 1400)
    for data in (b"", b"1", b"12345678"):
        relay.send(FrameType.FORWARD_PACKET, bytes(32), slow.key, data)
    relay.sync()
    received = [slow.receive()[1] for _ in range(300 + 3 - sum(dropped(plane).values()))]
    assert [payload for payload in received if len(payload) < 32] == [b"", b"1", b"12345678"]


def test_only_a_handle_that_once_was_can_be_a_forwarder(plane: Plane) -> None:
    with pytest.raises(ValueError, match="handle"):
        plane.add_forwarder(os.urandom(32), 1 << 32 | 4_000_000)


def test_news_over_a_link_reach_the_control_plane(plane: Plane) -> None:
    link = PlanePeer(plane, link=True)
    link.write(
        frame(FrameType.SERVER_KEY, bytes(40)) + frame(FrameType.KEEP_ALIVE) + frame(FrameType.PEER_GONE, bytes(31))
        + frame(FrameType.PEER_PRESENT, bytes(51)) + frame(FrameType.PEER_GONE, bytes(33))
    )  # fmt: skip
    assert [(e.type, len(e.payload)) for e in events(plane, 2) if isinstance(e, FrameEvent)] == [
        (FrameType.PEER_PRESENT, 51), (FrameType.PEER_GONE, 33),
    ]  # fmt: skip


def test_a_mesh_peer_that_floods_the_control_plane_is_closed(plane: Plane) -> None:
    relay = PlanePeer(plane, mesh=True)
    with pytest.raises(ConnectionError):  # nobody reads the events meanwhile
        for _ in range(1000):
            relay.write(frame(FrameType.WATCH_CONNS) * 5000)
    *frames, last = events(plane, 262_144 + 1)
    assert len(frames) < 262_144 + 100_000, "what one more read brought, at most"
    assert isinstance(last, ClosedEvent) and last.reason == "control_overflow"


def test_more_destinations_than_one_turn_holds_are_all_reached() -> None:
    with running_plane(workers=1) as plane:
        receivers = [PlanePeer(plane) for _ in range(1500)]
        sender = PlanePeer(plane)
        nobody = os.urandom(32)
        stream = b""
        for receiver in receivers:
            stream += frame(FrameType.SEND_PACKET, receiver.key, b"1") + frame(
                FrameType.PING, b"12345678"
            )
            stream += frame(FrameType.SEND_PACKET, receiver.key, b"2") + frame(
                FrameType.SEND_PACKET, nobody, DISCO
            )
            stream += frame(FrameType.SEND_PACKET, receiver.key, b"3")
        sender.write(stream)
        for receiver in receivers:
            for data in (b"1", b"2", b"3"):
                assert receiver.receive() == (FrameType.RECV_PACKET, sender.key + data)


def test_who_sends_to_very_many_at_once_does_not_hold_up_others() -> None:
    plane = Plane(workers=1)
    receivers = [PlanePeer(plane) for _ in range(300)]
    many, one, observer = (PlanePeer(plane) for _ in range(3))
    targets = [*(receiver.key for receiver in receivers), observer.key]
    many.write(b"".join(frame(FrameType.SEND_PACKET, key, b"to all") for key in targets))
    one.send_packet(observer.key, b"to one")
    plane.start()  # it finds both at once
    with contextlib.closing(plane):
        assert observer.receive() == (FrameType.RECV_PACKET, one.key + b"to one")
        assert observer.receive() == (FrameType.RECV_PACKET, many.key + b"to all")
        for receiver in receivers:
            assert receiver.receive() == (FrameType.RECV_PACKET, many.key + b"to all")


def test_who_sends_very_many_tiny_records_does_not_hold_up_others() -> None:
    plane = Plane(workers=1)
    many, one, observer = SealedPeer(plane), PlanePeer(plane), PlanePeer(plane)
    stream = (
        struct.pack(">BI", 0xFF, 3000)
        + bytes(3000)
        + frame(FrameType.SEND_PACKET, observer.key, b"from many")
    )
    many.socket.settimeout(None)
    many.socket.sendall(b"".join(many.seal(bytes([byte])) for byte in stream))
    many.close()
    one.send_packet(observer.key, b"from one")
    plane.start()  # it finds both at once
    with contextlib.closing(plane):
        assert observer.receive() == (FrameType.RECV_PACKET, one.key + b"from one")
        assert observer.receive() == (FrameType.RECV_PACKET, many.key + b"from many")
        assert observer.receive() == (FrameType.PEER_GONE, many.key + GONE)
        assert closed(plane).reason == "eof"


def test_what_was_written_to_very_many_behind_the_login_arrives_although_its_sender_is_gone() -> (
    None
):
    plane = Plane(workers=1)
    receivers = [PlanePeer(plane) for _ in range(600)]
    words = b"".join(
        frame(FrameType.SEND_PACKET, receiver.key, b"first and last words")
        for receiver in receivers
    )
    many = PlanePeer(plane, unread=words)
    many.close()
    plane.start()
    with contextlib.closing(plane):
        for receiver in receivers:
            assert receiver.receive() == (FrameType.RECV_PACKET, many.key + b"first and last words")
            assert receiver.receive() == (FrameType.PEER_GONE, many.key + GONE)


def test_what_was_written_to_very_many_before_hanging_up_arrives() -> None:
    plane = Plane(workers=1)
    receivers = [PlanePeer(plane) for _ in range(600)]
    many = PlanePeer(plane)
    many.write(
        b"".join(
            frame(FrameType.SEND_PACKET, receiver.key, b"last words") for receiver in receivers
        )
    )
    many.close()
    plane.start()
    with contextlib.closing(plane):
        for receiver in receivers:
            assert receiver.receive() == (FrameType.RECV_PACKET, many.key + b"last words")
            assert receiver.receive() == (FrameType.PEER_GONE, many.key + GONE)
        assert closed(plane).reason == "eof"


def test_senders_that_hang_up_while_they_flood_a_reader_are_heard_to_the_end() -> None:
    with running_plane(workers=1) as plane:
        slow, *flooders = [PlanePeer(plane) for _ in range(9)]
        for _ in range(
            3
        ):  # after that the reader is contended, and who sends to it read in small turns
            for flooder in flooders:
                fill(flooder, slow.key, 50, 1400)
        plane.set_rate_limit(1, 1)
        for flooder in flooders:
            fill(flooder, slow.key, 40, 1400)
            flooder.write(
                frame(FrameType.SEND_PACKET, slow.key, bytes(1400)) * 60
            )  # of these most stay in the socket
            flooder.socket.shutdown(socket.SHUT_WR)
        plane.set_rate_limit(0)
        assert {event.reason for event in events(plane, 8) if isinstance(event, ClosedEvent)} == {
            "eof"
        }
        assert plane.counters()["packets_received"] == 8 * (150 + 100)


# ---- receive rate limit


def test_a_client_over_its_rate_waits_and_loses_nothing(plane: Plane) -> None:
    plane.set_rate_limit(400_000, 1)  # the burst is raised to one largest packet
    a, b = PlanePeer(plane), PlanePeer(plane)
    started = time.monotonic()
    for i in range(100):
        a.send_packet(b.key, struct.pack(">I", i) + bytes(1400))
    for i in range(100):
        assert b.receive()[1][32:36] == struct.pack(">I", i)
    took = time.monotonic() - started
    assert took > 0.6 * (100 * 1436 - 65568) / 400_000, "it was not held back"
    assert plane.counters()["rate_limit_per_client_waited"]
    assert not dropped(plane)


def test_a_frame_as_long_as_the_burst_costs_the_whole_burst(plane: Plane) -> None:
    plane.set_rate_limit(1, 1)  # what is not there at once does not come any more
    a = PlanePeer(plane)
    a.write(struct.pack(">BI", 0x77, 65_568) + bytes(65_568))
    eventually(lambda: plane.counters()["unknown_frames"])
    a.send(FrameType.PING, b"12345678")
    eventually(lambda: plane.counters()["rate_limit_per_client_waited"])
    assert plane.counters()["got_ping"] == 0
    plane.set_rate_limit(0)
    assert a.receive() == (FrameType.PONG, b"12345678")


def test_lifting_the_limit_frees_those_who_wait(plane: Plane) -> None:
    plane.set_rate_limit(1, 1)
    a, b = PlanePeer(plane), PlanePeer(plane)
    for _ in range(60):
        a.send_packet(b.key, bytes(1400))
    for _ in range(65568 // (1400 + 32)):
        b.receive()
    plane.set_rate_limit(0)
    for _ in range(60 - 65568 // (1400 + 32)):
        b.receive()


def test_a_limit_that_changes_all_the_time_holds_nobody_for_long(plane: Plane) -> None:
    a, b = PlanePeer(plane), PlanePeer(plane)
    stop = threading.Event()
    # The two threads take turns at every packet, not every 5 ms.
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def flap() -> None:
        while not stop.is_set():
            plane.set_rate_limit(1, 1)
            plane.set_rate_limit(0)

    thread = threading.Thread(target=flap)
    thread.start()
    try:
        for i in range(2000):
            a.send_packet(b.key, struct.pack(">I", i) + bytes(1400))
            assert b.receive()[1][32:36] == struct.pack(">I", i)
    finally:
        sys.setswitchinterval(usual_s)
        stop.set()
        thread.join()


def test_a_client_that_is_held_back_keeps_little_in_the_relay(plane: Plane) -> None:
    plane.set_rate_limit(1, 1)
    a = PlanePeer(plane)
    a.socket.setblocking(False)
    wire = a.seal(frame(FrameType.SEND_PACKET, a.key, bytes(16_000)) * 20)
    with pytest.raises(BlockingIOError):
        while wire:
            wire = wire[a.socket.send(wire) :]
            select.select([], [a.socket], [], 0.2)
    a.close()


def test_mesh_peers_are_not_limited(plane: Plane) -> None:
    plane.set_rate_limit(1, 1)
    a, b = PlanePeer(plane, mesh=True), PlanePeer(plane)
    for _ in range(200):
        a.send_packet(b.key, bytes(1400))
    for _ in range(200):
        b.receive()


# ---- all together


def test_many_threads_of_traffic_and_churn_leave_nothing_behind() -> None:
    """Every packet is delivered or counted as dropped, and the tables end as empty as they began."""
    with running_plane(workers=3) as plane:
        sink = PlanePeer(plane)
        keys = [os.urandom(32) for _ in range(40)]

        def churn(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(60):
                peer = PlanePeer(plane, rng.choice(keys))
                for _ in range(rng.randrange(30)):
                    to = rng.choice(keys)
                    data = DISCO if rng.random() < 0.2 else bytes(rng.randrange(3000))
                    peer.send_packet(to, data)
                if rng.random() < 0.5:
                    peer.receive_until_pong()
                if rng.random() < 0.2:
                    plane.close_session(peer.handle)
                peer.close()

        threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        events(plane, 6 * 60)
        counters = plane.counters()
        assert counters["current_connections"] == counters["clients_total"] == 1
        assert counters["current_dup_client_keys"] == counters["backlog_bytes"] == 0
        assert accounted(plane)
        sink.sync()


def random_stream(rng: random.Random, keys: list[bytes]) -> bytes:
    """Some frames, mostly good ones."""
    stream = bytearray()
    for _ in range(rng.randrange(1, 60)):
        key = rng.choice(keys)
        data = rng.choice((b"", b"x", DISCO, bytes(1400), bytes(rng.randrange(5000)), bytes(65536)))
        kind = rng.randrange(100)
        if kind < 70:
            stream += frame(FrameType.SEND_PACKET, key, data)
        elif kind < 80:
            stream += frame(FrameType.FORWARD_PACKET, rng.choice((bytes(32), *keys)), key, data)
        elif kind < 90:
            stream += frame(FrameType.PING, b"12345678" + bytes(rng.randrange(900)))
        elif kind < 98:
            stream += struct.pack(">BI", rng.randrange(256), n := rng.randrange(3000)) + bytes(n)
        else:
            stream += struct.pack(">BI", rng.randrange(256), rng.randrange(2**32))
    return bytes(stream)


def random_life(plane: Plane, rng: random.Random, keys: list[bytes]) -> None:
    """One session that sends random frames in random pieces, reads or does not, and ends in some way."""
    peer = PlanePeer(
        plane, rng.choice(keys), mesh=rng.random() < 0.3, first=frame(FrameType.SERVER_INFO, bytes(60)),
        unread=random_stream(rng, keys)[:100_000] if rng.random() < 0.2 else b"",
    )  # fmt: skip
    peer.socket.setblocking(False)
    wire = peer.seal(random_stream(rng, keys))
    if rng.random() < 0.1:
        spoilt = bytearray(wire)
        spoilt[rng.randrange(len(wire))] ^= 1 << rng.randrange(8)
        wire = bytes(spoilt)
    with contextlib.suppress(OSError):
        while wire:
            n = rng.choice((1, 5, 37, 1000, 100_000))
            with contextlib.suppress(BlockingIOError):
                wire = wire[peer.socket.send(wire[:n]) :]
            if rng.random() < 0.5:
                with contextlib.suppress(BlockingIOError):
                    peer.socket.recv(rng.choice((1, 1000, 100_000)))
            if rng.random() < 0.02:
                break
    if rng.random() < 0.2:
        plane.close_session(peer.handle)
    peer.close()


@pytest.mark.parametrize("seed", range(4))
def test_random_frames_cuts_and_ends_are_survived_and_accounted_for(seed: int) -> None:
    with running_plane(workers=2, write_timeout_s=1, backlog_cap_bytes=1_000_000) as plane:
        bystanders = [PlanePeer(plane), PlanePeer(plane)]
        link = PlanePeer(plane, link=True)
        far = os.urandom(32)
        plane.add_forwarder(far, link.handle)
        keys = [far, link.key, *(os.urandom(32) for _ in range(6))]
        n_lives = 150

        def lives(seed: int) -> None:
            rng = random.Random(seed)
            for i in range(n_lives):
                random_life(plane, rng, keys)
                if i % 50 == 0:
                    plane.set_rate_limit(rng.choice((0, 5_000_000)))

        threads = [threading.Thread(target=lives, args=(10 * seed + i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        n_closed = 0
        while n_closed < 3 * n_lives + 1:
            n_closed += sum(isinstance(event, ClosedEvent) for event in events(plane))
            if n_closed == 3 * n_lives:
                link.close()
        for thread in threads:
            thread.join()
        for one, other in (bystanders, reversed(bystanders)):
            one.send_packet(other.key, b"as ever")
            assert other.receive() == (FrameType.RECV_PACKET, one.key + b"as ever")
            one.sync()
        assert accounted(plane)
        assert plane.counters()["current_connections"] == plane.counters()["clients_local"] == 2
        assert plane.counters()["current_dup_client_keys"] == plane.counters()["backlog_bytes"] == 0
        assert plane.counters()["events_lost"] == 0


def test_a_plane_with_impossible_options_touches_nobody_else() -> None:
    before = os.fstat(0)
    negative = ("write_timeout_s", "mesh_write_timeout_s", "home_settled_s", "backlog_age_s")
    for options in ({"workers": 300}, {"keep_alive_s": 0}, *({name: -1} for name in negative)):
        with pytest.raises(ValueError):
            Plane(**options)  # type: ignore[arg-type]
    assert os.path.samestat(before, os.fstat(0)), "descriptor 0 was closed"


def test_events_can_be_taken_a_few_at_a_time(plane: Plane) -> None:
    mesh = PlanePeer(plane, mesh=True)
    for i in range(10):
        mesh.send(FrameType.CLOSE_PEER, bytes([i]) * 32)
    mesh.sync()
    taken: list[bytes] = []
    sizes = []
    while select.select([plane.fileno()], [], [], 0)[0]:
        batch = plane.events(4)
        sizes.append(len(batch))
        taken += [event.payload for event in batch if isinstance(event, FrameEvent)]
    assert taken == [bytes([i]) * 32 for i in range(10)]
    assert sizes == [4, 4, 2]
    assert plane.events(4) == []


# ---- what is known of a session


def test_the_name_of_a_clients_program_is_told_with_its_session(plane: Plane) -> None:
    named, unnamed = PlanePeer(plane, app_name=b"tailscale" * 3), PlanePeer(plane)
    names = {session.handle: session.app_name for session in plane.sessions()}
    assert names == {named.handle: b"tailscale" * 3, unnamed.handle: b""}
    named.close()
    assert closed(plane).app_name == b"tailscale" * 3
    unnamed.close()
    assert closed(plane).app_name == b""
    with pytest.raises(ValueError, match="app_name"):
        PlanePeer(plane, app_name=bytes(33))


@pytest.mark.parametrize("n_senders", [1, 10, 1000])
def test_the_number_of_peers_that_sent_to_a_session_is_estimated(n_senders: int) -> None:
    with running_plane(workers=1, sender_cardinality=True) as plane:
        mesh, receiver = PlanePeer(plane, mesh=True), PlanePeer(plane)
        other = PlanePeer(plane)
        sources = [os.urandom(32) for _ in range(n_senders)]
        for source in sources * 2:
            mesh.send(FrameType.FORWARD_PACKET, source, receiver.key, b"")
            receiver.receive()
        senders = {session.handle: session.senders for session in plane.sessions()}
        assert abs(senders[receiver.handle] - n_senders) <= 0.3 * n_senders
        assert senders[other.handle] == senders[mesh.handle] == 0
        other.send_packet(mesh.key, b"")
        mesh.receive()
        assert {s.handle: s.senders for s in plane.sessions()}[mesh.handle] == 1


def test_senders_are_not_counted_unless_asked_for(plane: Plane) -> None:
    a, b = PlanePeer(plane), PlanePeer(plane)
    a.send_packet(b.key, b"x")
    b.receive()
    assert [session.senders for session in plane.sessions()] == [0, 0]


def test_a_closed_plane_refuses_and_tells_the_rest() -> None:
    plane = Plane(workers=2)
    plane.start()
    peers = [PlanePeer(plane) for _ in range(5)]
    plane.close()
    assert {event.reason for event in plane.events() if isinstance(event, ClosedEvent)} == {
        "shutdown"
    }
    for peer in peers:
        with pytest.raises((EOFError, ConnectionError)):
            peer.receive()
    with pytest.raises(PlaneError, match="closed"):
        PlanePeer(plane)
    with pytest.raises(PlaneError, match="closed"):
        plane.start()
