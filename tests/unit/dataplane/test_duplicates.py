"""Sessions that share a key (PROTOCOL §6.3)."""

from __future__ import annotations

import os
import select

import pytest

from fastderp.dataplane.plane import Plane
from fastderp.wire.protocol import FrameType
from tests.kit.plane import PlanePeer, closed, dropped, running_plane

pytestmark = pytest.mark.usefixtures("peers")


def test_of_two_sessions_with_one_key_the_last_to_send_gets_the_packets(plane: Plane) -> None:
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


def test_of_three_the_latest_remaining_sender_takes_over(plane: Plane) -> None:
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


def test_the_sessions_of_a_key_are_found_all_or_as_many_as_asked_for(plane: Plane) -> None:
    key = os.urandom(32)
    assert plane.handles(key) == [] and not plane.is_connected(key)
    sessions = [PlanePeer(plane, key) for _ in range(12)]
    found = plane.handles(key)
    assert sorted(found) == sorted(session.handle for session in sessions)
    assert [plane.handles(key, n) for n in (1, 8, 9, 100)] == [
        found[:1], found[:8], found[:9], found
    ]  # fmt: skip
    assert plane.is_connected(key)
