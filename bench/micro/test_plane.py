"""Micro benchmarks of a data plane with one worker thread over socketpairs: CPU time of fixed work.

The time is that of the worker, the kernel and the bench itself.
"""

import select
import socket
import time
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastderp.dataplane.plane import ClosedEvent, Plane
from fastderp.wire.protocol import FrameType, frame

PACKETS = 64
SESSIONS = 200
SIZE = 1400

pytestmark = pytest.mark.benchmark(
    timer=time.process_time, min_time=0.002, max_time=0.2, warmup=False
)


@pytest.fixture
def plane() -> Iterator[Plane]:
    plane = Plane(workers=1)
    plane.start()
    yield plane
    plane.close()


def key(number: int) -> bytes:
    return number.to_bytes(32)


def join(plane: Plane, number: int) -> socket.socket:
    """Return the client's end of a new session."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    plane.promote(theirs.detach(), key(number))
    return ours


@pytest.mark.parametrize("limit", [0, 1 << 40], ids=["without a limit", "below a limit"])
def test_64_packets_through_a_worker(benchmark: BenchmarkFixture, plane: Plane, limit: int) -> None:
    """Relay packets from one session to another; the second case also counts them for a rate."""
    plane.set_rate_limit(limit, limit)
    sender, receiver = join(plane, 1), join(plane, 2)
    packets = frame(FrameType.SEND_PACKET, key(2), bytes(SIZE)) * PACKETS
    n_bytes = len(packets)
    buffer = bytearray(n_bytes)

    def relay() -> None:
        sender.sendall(packets)
        n_left = n_bytes  # the relay replaces the receiver's key by the sender's
        while n_left:
            n_left -= receiver.recv_into(buffer)

    benchmark(relay)
    sender.close()
    receiver.close()


def test_a_session_begins_and_ends(benchmark: BenchmarkFixture, plane: Plane) -> None:
    """Promote a descriptor, close the peer, and read the report of the end."""

    def live() -> ClosedEvent:
        join(plane, 1).close()
        while True:
            select.select([plane.fileno()], [], [], 10)
            for event in plane.events():
                if isinstance(event, ClosedEvent):
                    return event

    assert benchmark(live).reason == "eof"


@pytest.fixture
def crowd(plane: Plane) -> Iterator[Plane]:
    clients = [join(plane, number) for number in range(1, SESSIONS + 1)]
    yield plane
    for client in clients:
        client.close()


def test_report_200_sessions(benchmark: BenchmarkFixture, crowd: Plane) -> None:
    """Build the reports of all sessions, for a debug page or a watcher."""
    assert len(benchmark(crowd.sessions)) == SESSIONS


def test_report_the_counters(benchmark: BenchmarkFixture, crowd: Plane) -> None:
    """Sum the counters up, for the metrics page."""
    assert benchmark(crowd.counters)["accepts"] == SESSIONS
