"""PeerGone frames: for keys that are not here or have left (PROTOCOL §6.4, §6.7)."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pytest

from fastderp.dataplane.plane import Plane
from fastderp.wire.protocol import FrameType, frame
from tests.kit.plane import DISCO, GONE, NOT_HERE, PlanePeer, closed, count, dropped, running_plane
from tests.kit.relay import eventually

pytestmark = pytest.mark.usefixtures("peers")


def test_a_disco_packet_to_an_absent_key_is_answered_three_times_at_once(plane: Plane) -> None:
    a, nobody = PlanePeer(plane), os.urandom(32)
    a.write(frame(FrameType.SEND_PACKET, nobody, DISCO) * 6)
    a.send_packet(nobody, b"not disco")
    assert a.receive_until_pong() == [(FrameType.PEER_GONE, nobody + NOT_HERE)] * 3
    assert dropped(plane) == {("unknown_dest", "disco"): 6, ("unknown_dest", "other"): 1}


def test_receivers_get_peer_gone_for_a_departure_and_others_do_not(plane: Plane) -> None:
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


def test_memory_of_a_sender_follows_its_connected_receivers() -> None:
    with running_plane(workers=1) as plane:
        sender, key = PlanePeer(plane), os.urandom(32)
        for _ in range(300):
            receiver = PlanePeer(plane, key)
            sender.send_packet(key, b"x")
            assert receiver.receive() == (FrameType.RECV_PACKET, sender.key + b"x")
            receiver.close()
            closed(plane)
        assert sum(plane.unique_senders().values()) < 10


def test_others_are_served_while_very_many_get_peer_gone() -> None:
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


def test_a_key_that_returns_during_its_departure_keeps_its_gone_watchers(
    plane: Plane,
) -> None:
    relay, link, far = PlanePeer(plane, mesh=True), PlanePeer(plane, link=True), os.urandom(32)
    receivers, last = [PlanePeer(plane) for _ in range(600)], PlanePeer(plane)
    gone = (FrameType.PEER_GONE, far + GONE)

    def write_to(some: list[PlanePeer], data: bytes) -> None:
        relay.write(b"".join(frame(FrameType.FORWARD_PACKET, far, peer.key, data) for peer in some))
        relay.sync()

    def heard() -> list[list[tuple[int, bytes]]]:
        """Return what each receiver got, once all were told of every departure so far."""
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
    assert all(frames[-1] == (FrameType.RECV_PACKET, far + b"2") for frames in before[::2]), (
        "it is there"
    )
    plane.remove_forwarder(far, link.handle)
    for old, new in zip(before, heard(), strict=True):
        assert new == ([] if old[-1] == gone else [gone]), "everybody knows in the end that it left"


def test_memory_of_gone_watchers_stays_under_its_cap() -> None:
    cap = 4096
    with running_plane(workers=1, gone_watchers_cap_bytes=cap) as plane:
        receivers, senders = (
            [PlanePeer(plane) for _ in range(40)],
            [PlanePeer(plane) for _ in range(40)],
        )
        for sender in senders:
            for receiver in receivers:
                sender.send_packet(receiver.key, b"x")
                assert receiver.receive() == (FrameType.RECV_PACKET, sender.key + b"x")
        assert cap // 2 < count(plane, "gone_watchers_bytes") <= cap
        first, *_, last = senders
        for sender in (first, last):
            sender.close()
            closed(plane)
        told = [receiver.receive_until_pong() for receiver in receivers]
        assert all(frames in ([], [(FrameType.PEER_GONE, first.key + GONE)]) for frames in told)
        assert any(told), "there was room for the first one's receivers"
        senders[1].send_packet(receivers[0].key, b"as ever")
        assert receivers[0].receive() == (FrameType.RECV_PACKET, senders[1].key + b"as ever")
        for sender in senders:
            sender.close()
        eventually(lambda: plane.counters()["gone_watchers_bytes"] == 0)


def test_the_last_packets_come_before_the_peer_gone(plane: Plane) -> None:
    receiver = PlanePeer(plane)
    for _ in range(50):
        sender = PlanePeer(plane)
        sender.write(frame(FrameType.SEND_PACKET, receiver.key, b"last") * 20)
        sender.close()
        for _ in range(20):
            assert receiver.receive() == (FrameType.RECV_PACKET, sender.key + b"last")
        assert receiver.receive() == (FrameType.PEER_GONE, sender.key + GONE)


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


def test_receivers_get_peer_gone_when_a_remote_sender_leaves_the_region(plane: Plane) -> None:
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


def test_receivers_get_peer_gone_for_a_peer_forwarded_before_it_connected(
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


def test_a_client_that_stalls_while_thousands_leave_is_not_closed() -> None:
    with running_plane(workers=1) as plane:
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


def test_a_client_that_pings_while_frames_accumulate_is_not_closed() -> None:
    gone = frame(FrameType.PEER_GONE, bytes(32), GONE)
    plane = Plane(workers=1, keep_alive_s=0.2, backlog_age_s=0, write_timeout_s=0)
    stalled, other = PlanePeer(plane), PlanePeer(plane)
    while not plane.counters()["peer_gone_lost"]:
        plane.send(stalled.handle, gone * 1000)
    plane.send(stalled.handle, frame(FrameType.KEEP_ALIVE) * 10)  # to the last byte
    plane.start()  # from here on keep-alives are due, and find no room
    with contextlib.closing(plane):
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
