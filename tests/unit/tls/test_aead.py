"""Keyrings: many sessions share a few expanded keys, without an effect on their packets."""

import os

import pytest

from fastderp.dataplane.plane import Plane
from fastderp.wire.protocol import FrameType, frame
from tests.kit.plane import SealedPeer, running_plane
from tests.kit.records import SUITES

N_SESSIONS = 200  # more per direction than the places of a worker's keyring


def around(peers: list[SealedPeer]) -> None:
    """Have each client send to the next one, and check that every packet arrives."""
    data = os.urandom(100)
    for sender, receiver in zip(peers, peers[1:] + peers[:1], strict=True):
        sender.send_packet(receiver.key, data)
    for sender, receiver in zip(peers, peers[1:] + peers[:1], strict=True):
        assert receiver.receive() == (FrameType.RECV_PACKET, sender.key + data)


def mixed(plane: Plane, n: int) -> list[SealedPeer]:
    """Log clients in with each suite in turn."""
    suites = list(SUITES)
    return [SealedPeer(plane, suite=suites[i % len(suites)]) for i in range(n)]


@pytest.mark.parametrize("workers", [1, 2])
def test_more_sessions_than_expanded_keys_of_all_suites_are_served(workers: int) -> None:
    with running_plane(workers=workers) as plane:
        peers = mixed(plane, N_SESSIONS)
        for _ in range(3):
            around(peers)
        for peer in peers:
            peer.close()


def test_a_changed_key_is_not_mistaken_for_the_previous_one() -> None:
    with running_plane(workers=1) as plane:
        peers = mixed(plane, 6)
        for _ in range(4):
            around(peers)
            for peer in peers:
                assert peer.records is not None
                peer.records.ask_key_update()
        for peer in peers:
            peer.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_threads_that_pause_in_the_middle_of_a_frame_lose_nothing(workers: int) -> None:
    with running_plane(workers=workers) as plane:
        a, b = mixed(plane, 2)
        data = os.urandom(60_000)
        sealed = [a.seal(frame(FrameType.SEND_PACKET, b.key, data)) for _ in range(20)]
        for number, wire in enumerate(sealed):
            cut = len(wire) * number // len(sealed)
            a.socket.sendall(wire[:cut])
            plane.trim()
            a.socket.sendall(wire[cut:])
            assert b.receive() == (FrameType.RECV_PACKET, a.key + data)
        a.close()
        b.close()
