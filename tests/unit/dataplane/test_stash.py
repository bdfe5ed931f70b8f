"""Frames that clients do not complete, and frames that wait for the relay. RELIABILITY F45."""

from __future__ import annotations

import os
from functools import partial

import pytest

from fastderp.dataplane.plane import ClosedEvent, Plane
from fastderp.wire.protocol import FrameType, frame
from tests.kit.plane import PlanePeer, count, events, running_plane
from tests.kit.relay import eventually

pytestmark = pytest.mark.usefixtures("peers")

PART = 60_000  # bytes of each incomplete frame
KEPT = 4096  # bytes of a session besides the budget
CAP = 4 * 65_536  # bytes: room for four of them


def begin(peer: PlanePeer) -> None:
    peer.write(frame(FrameType.SEND_PACKET, os.urandom(32), bytes(65_536))[:PART])


def holds(plane: Plane, n: int) -> bool:
    return count(plane, "stash_bytes") >= n


def held(plane: Plane, *peers: PlanePeer) -> None:
    """Begin a frame at each peer, one after the other, and wait until the plane holds them."""
    for peer in peers:
        enough = count(plane, "stash_bytes") + PART
        begin(peer)
        eventually(partial(holds, plane, enough))


def finish(peer: PlanePeer) -> None:
    """Complete the frame; a pong confirms it."""
    peer.write(bytes(5 + 32 + 65_536 - PART))
    peer.sync()


def closed_for_it(plane: Plane, n: int) -> set[bytes]:
    """Return the keys of the next n sessions that end, all for an incomplete frame."""
    ends = events(plane, n)
    assert {event.reason for event in ends if isinstance(event, ClosedEvent)} == {
        "incomplete_frame"
    }
    return {event.key for event in ends if isinstance(event, ClosedEvent)}


def test_incomplete_frames_that_hold_too_much_end_the_oldest_of_them() -> None:
    with running_plane(workers=1, stash_cap_bytes=CAP) as plane:
        peers = [PlanePeer(plane) for _ in range(4)]
        held(plane, *peers)
        finish(peers[0])
        held(plane, peers[0])
        late = [PlanePeer(plane) for _ in range(2)]
        for peer in late:
            begin(peer)
        assert closed_for_it(plane, 2) == {peers[1].key, peers[2].key}
        for peer in (peers[0], peers[3], *late):
            finish(peer)
        assert count(plane, "stash_bytes") == 0
        assert not plane.events()


def test_a_byte_now_and_then_does_not_make_an_incomplete_frame_younger() -> None:
    with running_plane(workers=1, stash_cap_bytes=CAP) as plane:
        trickling, *others = (PlanePeer(plane) for _ in range(5))
        held(plane, trickling, *others[:3])
        before = count(plane, "stash_bytes")
        trickling.write(bytes(1))
        eventually(lambda: count(plane, "stash_bytes") > before)
        begin(others[3])
        assert closed_for_it(plane, 1) == {trickling.key}


@pytest.mark.threads
def test_many_clients_that_stop_within_a_frame_stay_within_the_budget() -> None:
    with running_plane(workers=2, stash_cap_bytes=CAP) as plane:
        good = [PlanePeer(plane) for _ in range(2)]
        hostile = [PlanePeer(plane) for _ in range(60)]
        for peer in hostile:
            begin(peer)
        ends = closed_for_it(plane, 56)
        eventually(lambda: count(plane, "stash_bytes") <= CAP)
        assert not ends & {peer.key for peer in good}
        for peer, other in (good, good[::-1]):
            peer.send_packet(other.key, b"data")
            assert other.receive() == (FrameType.RECV_PACKET, peer.key + b"data")
        for peer in hostile:
            peer.close()
        eventually(lambda: count(plane, "stash_bytes") == 0)


def test_incomplete_frames_of_mesh_peers_end_no_session() -> None:
    with running_plane(workers=1, stash_cap_bytes=0) as plane:
        mesh, client = PlanePeer(plane, mesh=True), PlanePeer(plane)
        begin(mesh)
        client.sync()
        finish(mesh)
        begin(client)
        assert closed_for_it(plane, 1) == {client.key}


def test_small_incomplete_frames_end_no_session() -> None:
    with running_plane(workers=1, stash_cap_bytes=0) as plane:
        sender, receiver = PlanePeer(plane), PlanePeer(plane)
        packet = frame(FrameType.SEND_PACKET, receiver.key, bytes(1400))
        for i in range(1, 40):
            sender.write(packet[: i * 35])
            receiver.sync()
            sender.write(packet[i * 35 :])
            assert receiver.receive() == (FrameType.RECV_PACKET, sender.key + bytes(1400))
        assert not plane.events()


def test_clients_over_their_rate_are_read_in_small_pieces_when_their_frames_hold_too_much() -> None:
    with running_plane(workers=1, stash_cap_bytes=CAP) as plane:
        plane.set_rate_limits([(1, 65_568)])
        senders = [PlanePeer(plane) for _ in range(40)]
        burst = frame(FrameType.SEND_PACKET, os.urandom(32), bytes(1000)) * 66
        for peer in senders:
            peer.send_packet(os.urandom(32), bytes(65_500))
            peer.sync()
            peer.write(burst)
        eventually(lambda: count(plane, "clients_held_back") == len(senders))
        # Each of the others holds up to a TLS record besides a piece, instead of 66,560 bytes.
        assert CAP < count(plane, "stash_bytes") < CAP + 2 * 65_536 + 35 * (16_384 + KEPT)
        plane.set_rate_limits([])
        for peer in senders:
            peer.receive_until_pong()
        assert count(plane, "packets_received") == 40 * 67
        assert count(plane, "stash_bytes") == 0
        assert not plane.events()
