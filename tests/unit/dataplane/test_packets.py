"""How packets arrive, and that one sender does not hold up others."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time

import pytest

from fastderp.dataplane.plane import MAX_UNREAD_BYTES, ClosedEvent, Plane
from fastderp.wire.protocol import FrameType, frame
from tests.kit.memory import resident_bytes
from tests.kit.plane import DISCO, GONE, PlanePeer, SealedPeer, closed, events, fill, running_plane

pytestmark = pytest.mark.usefixtures("peers")


@pytest.mark.parametrize("size", [0, 1, 1400, 65535, 65536])
def test_a_packet_arrives_with_its_sender_and_nothing_else_changed(plane: Plane, size: int) -> None:
    a, b = PlanePeer(plane), PlanePeer(plane)
    data = os.urandom(size)
    a.send_packet(b.key, data)
    assert b.receive() == (FrameType.RECV_PACKET, a.key + data)


def test_a_plane_without_traffic_sleeps(plane: Plane) -> None:
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


def test_frames_arrive_in_the_order_of_writing(plane: Plane) -> None:
    info = frame(FrameType.SERVER_INFO, b"x" * 60)
    a = PlanePeer(plane)
    for _ in range(50):
        b = PlanePeer(plane, first=info)
        a.send_packet(b.key, b"right behind the login")
        assert b.receive() == (FrameType.SERVER_INFO, b"x" * 60)
        assert b.receive() == (FrameType.RECV_PACKET, a.key + b"right behind the login")


def test_frames_arrive_in_the_order_of_writing_although_the_socket_is_full(plane: Plane) -> None:
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


def test_an_idle_client_releases_the_memory_of_a_large_read(plane: Plane) -> None:
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


def test_a_sender_to_very_many_does_not_delay_others() -> None:
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


def test_very_many_tiny_records_do_not_delay_others() -> None:
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


def test_packets_to_very_many_after_the_login_arrive_although_the_sender_has_closed() -> None:
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


def test_packets_to_very_many_before_a_close_arrive() -> None:
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


def test_senders_that_close_while_they_flood_a_reader_are_read_to_the_end() -> None:
    with running_plane(workers=1) as plane:
        slow, *flooders = [PlanePeer(plane) for _ in range(9)]
        for _ in range(
            3
        ):  # after that the reader is contended, and its senders are read in small turns
            for flooder in flooders:
                fill(flooder, slow.key, 50, 1400)
        plane.set_rate_limits([(1, 1)])
        for flooder in flooders:
            fill(flooder, slow.key, 40, 1400)
            flooder.write(
                frame(FrameType.SEND_PACKET, slow.key, bytes(1400)) * 60
            )  # of these most stay in the socket
            flooder.socket.shutdown(socket.SHUT_WR)
        plane.set_rate_limits([(0, 0)])
        assert {event.reason for event in events(plane, 8) if isinstance(event, ClosedEvent)} == {
            "eof"
        }
        assert plane.counters()["packets_received"] == 8 * (150 + 100)
