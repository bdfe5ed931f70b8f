"""A session that has to leave: what waits for it is written, what it sends is relayed."""

from __future__ import annotations

import pytest

from fastderp.dataplane.plane import Plane
from fastderp.wire.protocol import FrameType, frame
from tests.kit.plane import PlanePeer, closed, dropped, running_plane
from tests.kit.relay import eventually

pytestmark = pytest.mark.usefixtures("peers")


def backlog_for(plane: Plane, peer: PlanePeer, sender: PlanePeer) -> int:
    """Send packets until some wait for the peer; return how many were sent."""
    n = 0
    # A session that has reached its write deadline since has dropped them.
    while not plane.counters()["backlog_bytes"] and not dropped(plane):
        for _ in range(20):
            sender.send_packet(peer.key, n.to_bytes(1400, "big"))
            n += 1
        sender.sync()
    return n


def test_what_waits_for_a_leaving_client_is_written_before_its_session_closes(
    plane: Plane,
) -> None:
    sender, peer = PlanePeer(plane), PlanePeer(plane)
    n = backlog_for(plane, peer, sender)
    assert plane.leave(peer.handle)
    assert [peer.receive() for _ in range(n)] == [
        (FrameType.RECV_PACKET, sender.key + number.to_bytes(1400, "big")) for number in range(n)
    ]
    with pytest.raises(EOFError):
        peer.receive()
    peer.close()
    assert closed(plane).reason == "drain"


def test_what_a_leaving_client_sends_before_it_closes_is_relayed(plane: Plane) -> None:
    peer, other = PlanePeer(plane), PlanePeer(plane)
    assert plane.leave(peer.handle)
    with pytest.raises(EOFError):
        peer.receive()
    peer.send_packet(other.key, b"the last one")
    assert other.receive() == (FrameType.RECV_PACKET, peer.key + b"the last one")
    peer.close()
    assert other.receive() == (FrameType.PEER_GONE, peer.key + b"\0")


def test_what_a_leaving_client_sends_over_its_rate_is_relayed(plane: Plane) -> None:
    plane.set_rate_limits([(1 << 20, 0)])
    peer, other = PlanePeer(plane), PlanePeer(plane)
    assert plane.leave(peer.handle)
    with pytest.raises(EOFError):
        peer.receive()
    packets = [number.to_bytes(1400, "big") for number in range(60)]  # the bucket holds 45
    peer.write(b"".join(frame(FrameType.SEND_PACKET, other.key, packet) for packet in packets))
    assert [other.receive()[1][32:] for _ in packets] == packets
    peer.close()
    assert closed(plane).reason == "drain"


def test_a_leaving_client_is_not_told_that_its_key_is_in_use_elsewhere(plane: Plane) -> None:
    peer, other = PlanePeer(plane), PlanePeer(plane)
    assert plane.leave(peer.handle)
    assert not plane.set_duplicate(peer.handle, True)
    with pytest.raises(EOFError):
        peer.receive()
    peer.send_packet(other.key, b"the last one")
    assert other.receive() == (FrameType.RECV_PACKET, peer.key + b"the last one")


def test_packets_for_a_client_that_is_leaving_count_as_dropped(plane: Plane) -> None:
    sender, peer = PlanePeer(plane), PlanePeer(plane)
    n = backlog_for(plane, peer, sender)
    plane.leave(peer.handle)
    sender.send_packet(peer.key, b"too late")
    sender.sync()
    assert dropped(plane) == {("gone_disconnected", "other"): 1}
    assert len([peer.receive() for _ in range(n)]) == n
    assert not plane.send(peer.handle, frame(FrameType.KEEP_ALIVE))


def test_a_session_leaves_once(plane: Plane) -> None:
    peer = PlanePeer(plane)
    assert plane.leave(peer.handle)
    assert not plane.leave(peer.handle)
    peer.close()
    closed(plane)
    assert not plane.leave(peer.handle)
    assert not plane.leave(0) and not plane.leave(2**40)


def test_a_leaving_client_that_never_closes_is_closed() -> None:
    with running_plane(workers=1) as plane:
        peer = PlanePeer(plane)
        plane.leave(peer.handle)
        assert closed(plane).reason == "drain"
        assert not peer.socket.recv(100) or peer.records


def test_a_leaving_client_that_reads_nothing_is_closed_at_the_write_deadline() -> None:
    with running_plane(workers=1, write_timeout_s=0.2) as plane:
        sender, stuck = PlanePeer(plane), PlanePeer(plane)
        backlog_for(plane, stuck, sender)
        plane.leave(stuck.handle)
        event = closed(plane)
        assert (event.handle, event.reason) == (stuck.handle, "write_timeout")
        eventually(lambda: plane.counters()["backlog_bytes"] == 0)


def test_every_thread_that_runs_answers_when_it_is_asked(plane: Plane) -> None:
    assert plane.stuck_workers() == []
    eventually(lambda: plane.stuck_workers() == [])
