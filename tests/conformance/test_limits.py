"""Rates and estimates of single clients. PROTOCOL §6.8, §6.10, §16 lines 32–34 and 37."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from fastderp.dataplane.plane import ClosedEvent, Plane
from fastderp.wire.protocol import FrameType, frame
from tests.kit.plane import PlanePeer, events, running_plane

LARGEST_FRAME_BYTES = 65568
BURST = bytes(LARGEST_FRAME_BYTES - 32)


@pytest.fixture
def plane() -> Iterator[Plane]:
    with running_plane(workers=1) as running:
        yield running


def waited(plane: Plane) -> int:
    n = plane.counters()["rate_limit_per_client_waited"]
    assert isinstance(n, int)
    return n


def test_without_a_limit_no_client_waits(plane: Plane) -> None:
    a, b = PlanePeer(plane), PlanePeer(plane)
    for _ in range(20):
        a.send_packet(b.key, BURST)
        assert b.receive() == (FrameType.RECV_PACKET, a.key + BURST)
    assert waited(plane) == 0


def test_the_largest_frame_passes_the_smallest_burst_and_the_next_when_the_bucket_is_full_again(
    plane: Plane,
) -> None:
    plane.set_rate_limits([(10 * LARGEST_FRAME_BYTES, 1)])
    a, b = PlanePeer(plane), PlanePeer(plane)
    began_s = time.monotonic()
    for _ in range(3):
        a.send_packet(b.key, BURST)
        assert b.receive() == (FrameType.RECV_PACKET, a.key + BURST)
    # The second and the third packet each need a full bucket, which takes a tenth of a second.
    assert time.monotonic() - began_s > 0.19


def test_a_frame_as_large_as_the_burst_is_taken_when_the_bucket_is_full(plane: Plane) -> None:
    n_payload = LARGEST_FRAME_BYTES  # a longer one closes its connection
    plane.set_rate_limits([(2 * LARGEST_FRAME_BYTES, 1)])
    a, b = PlanePeer(plane), PlanePeer(plane)
    packet = frame(FrameType.SEND_PACKET, b.key, BURST)
    unknown = bytes([0x7F]) + n_payload.to_bytes(4) + bytes(n_payload)  # its bytes count, too
    # At once: after a pause the bucket would be full again, and no frame would wait.
    a.write(packet + unknown + packet)
    assert b.receive() == (FrameType.RECV_PACKET, a.key + BURST)
    assert b.receive() == (FrameType.RECV_PACKET, a.key + BURST)
    assert waited(plane) == 2


def test_a_client_that_waits_for_its_rate_can_leave(plane: Plane) -> None:
    plane.set_rate_limits([(1, 0)])
    a, b = PlanePeer(plane), PlanePeer(plane)
    a.send_packet(b.key, BURST)
    assert b.receive()[1] == a.key + BURST
    a.send_packet(b.key, b"next year")
    while not waited(plane):
        b.sync()
    # one count per wait of any length
    assert waited(plane) == 1
    plane.close_key(a.key)
    closed = events(plane)[0]
    assert isinstance(closed, ClosedEvent) and closed.key == a.key
    assert b.receive() == (FrameType.PEER_GONE, a.key + b"\0")


def test_both_connections_of_a_key_are_limited(plane: Plane) -> None:
    b, key = PlanePeer(plane), os.urandom(32)
    twins = [PlanePeer(plane, key), PlanePeer(plane, key)]
    plane.set_rate_limits([(1, 0)])
    for n, twin in enumerate(twins, start=1):
        twin.send_packet(b.key, BURST)
        assert b.receive()[1] == key + BURST
        twin.send_packet(b.key, b"later")
        while waited(plane) < n:
            b.sync()
    plane.set_rate_limits([(0, 0)])
    assert [b.receive()[1] for _ in twins] == [key + b"later"] * 2


def test_distinct_senders_are_counted_once_each(plane: Plane) -> None:
    b = PlanePeer(plane)
    assert plane.unique_senders().get(b.handle, 0) == 0
    senders = [PlanePeer(plane) for _ in range(100)]
    for _ in range(3):
        for sender in senders:
            sender.send_packet(b.key, b"x")
            assert b.receive()[1][:32] == sender.key
    assert 85 <= plane.unique_senders()[b.handle] <= 115
