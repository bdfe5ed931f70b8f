"""Mesh peers and links to other relays (PROTOCOL §7)."""

from __future__ import annotations

import os

import pytest

from fastderp.dataplane.plane import ClosedEvent, FrameEvent, Plane
from fastderp.wire.protocol import FrameType, frame
from tests.kit.plane import DISCO, NOT_HERE, PlanePeer, accounted, closed, dropped, events, fill

pytestmark = pytest.mark.usefixtures("peers")


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


def test_packets_lost_on_a_slow_link_are_counted_once_as_forwarded(plane: Plane) -> None:
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


def test_a_key_of_another_relay_has_no_session_here_to_close(plane: Plane) -> None:
    link, far = PlanePeer(plane, link=True), os.urandom(32)
    plane.add_forwarder(far, link.handle)
    assert plane.handles(far) == []
    assert not plane.is_connected(far)
    assert plane.close_key(far) == 0


def test_frames_over_a_link_reach_the_control_plane(plane: Plane) -> None:
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
    with pytest.raises(ConnectionError):  # the test reads no events meanwhile
        for _ in range(1000):
            relay.write(frame(FrameType.WATCH_CONNS) * 5000)
    *frames, last = events(plane, 262_144 + 1)
    assert len(frames) < 262_144 + 100_000, "what one more read brought, at most"
    assert isinstance(last, ClosedEvent) and last.reason == "control_overflow"
