"""Micro benchmarks of a data plane with one worker thread over socketpairs: CPU time of fixed work.

The time is that of the worker, the kernel and the bench itself.
"""

import asyncio
import contextlib
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastderp.dataplane.plane import ClosedEvent, Plane
from fastderp.server.mesh.presence import Arrival, Presence
from fastderp.wire.protocol import FrameType, PeerGoneReason, frame, peer_gone_payload

PACKETS = 64
SESSIONS = 200
SIZE = 1400

pytestmark = pytest.mark.benchmark(
    timer=time.process_time, min_time=0.002, max_time=0.1, warmup=False
)


@pytest.fixture
def plane() -> Iterator[Plane]:
    plane = Plane(workers=1)
    plane.start()
    yield plane
    plane.close()


def key(number: int) -> bytes:
    return number.to_bytes(32)


def join(plane: Plane, number: int, **kind: Any) -> tuple[socket.socket, int]:
    """Return the client's end of a new session, and the session's handle."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    return ours, plane.promote(theirs.detach(), key(number), **kind)


def read(end: socket.socket, n_bytes: int, buffer: bytearray) -> None:
    """Read exactly `n_bytes`."""
    while n_bytes:
        n_bytes -= end.recv_into(buffer, min(n_bytes, len(buffer)))


def relay(
    benchmark: BenchmarkFixture,
    source: socket.socket,
    sink: socket.socket,
    data: bytes,
    n_relayed: int,
) -> None:
    """Write frames to one session, and read `n_relayed` bytes from another."""
    buffer = bytearray(n_relayed)

    def once() -> None:
        source.sendall(data)
        read(sink, n_relayed, buffer)

    benchmark(once)
    source.close()
    sink.close()


@pytest.mark.parametrize("limit", [0, 1 << 40], ids=["no-limit", "limit"])
def test_64_packets_through_a_worker(benchmark: BenchmarkFixture, plane: Plane, limit: int) -> None:
    """Relay packets from one session to another; the second case also counts them for a rate."""
    plane.set_rate_limits([(limit, limit)])
    (sender, _), (receiver, _) = join(plane, 1), join(plane, 2)
    packets = frame(FrameType.SEND_PACKET, key(2), bytes(SIZE)) * PACKETS
    # the relay replaces the receiver's key by the sender's
    relay(benchmark, sender, receiver, packets, len(packets))


def test_64_packets_to_a_mesh_link(benchmark: BenchmarkFixture, plane: Plane) -> None:
    """Forward packets to the relay that has their receiver."""
    (sender, _), (link, handle) = join(plane, 1), join(plane, 2, link=True)
    plane.add_forwarder(key(3), handle)
    packets = frame(FrameType.SEND_PACKET, key(3), bytes(SIZE)) * PACKETS
    forwarded = frame(FrameType.FORWARD_PACKET, key(1), key(3), bytes(SIZE)) * PACKETS
    relay(benchmark, sender, link, packets, len(forwarded))


def test_64_packets_from_a_mesh_peer(benchmark: BenchmarkFixture, plane: Plane) -> None:
    """Deliver packets that another relay forwards."""
    (peer, _), (receiver, _) = join(plane, 1, mesh=True), join(plane, 2)
    forwarded = frame(FrameType.FORWARD_PACKET, key(3), key(2), bytes(SIZE)) * PACKETS
    delivered = frame(FrameType.RECV_PACKET, key(3), bytes(SIZE)) * PACKETS
    relay(benchmark, peer, receiver, forwarded, len(delivered))


def test_64_clients_come_and_go_for_a_watcher(benchmark: BenchmarkFixture, plane: Plane) -> None:
    """Announce clients to a mesh peer that watches, until it has read the announcements."""
    watcher, handle = join(plane, 1, mesh=True)
    presence = Presence(plane)
    arrivals = [
        Arrival(key(number), bytes(12) + bytes([127, 0, 0, 1]), 40000, False, False, False)
        for number in range(2, 2 + PACKETS)
    ]
    gone = frame(FrameType.PEER_GONE, peer_gone_payload(key(2), PeerGoneReason.DISCONNECTED))
    n_bytes = sum(len(arrival.frame()) + len(gone) for arrival in arrivals)
    buffer = bytearray(n_bytes)

    async def announce() -> None:
        for arrival in arrivals:
            presence.arrived(arrival)
        presence.flush()
        for arrival in arrivals:
            presence.left(0, arrival.key)
        presence.flush()

    def once() -> None:
        loop.run_until_complete(announce())
        read(watcher, n_bytes, buffer)

    with contextlib.closing(asyncio.new_event_loop()) as loop:
        presence.watch(handle)
        read(watcher, len(arrivals[0].frame()), buffer)  # the list: the watcher itself
        benchmark(once)
    watcher.close()


def test_a_key_leaves_and_64_receivers_get_peer_gone(
    benchmark: BenchmarkFixture, plane: Plane
) -> None:
    receivers = [join(plane, number)[0] for number in range(2, 2 + PACKETS)]
    packets = b"".join(
        frame(FrameType.SEND_PACKET, key(number), b"") for number in range(2, 2 + PACKETS)
    )
    n_packet = len(packets) // PACKETS
    n_gone = len(frame(FrameType.PEER_GONE, peer_gone_payload(key(1), PeerGoneReason.DISCONNECTED)))
    buffer = bytearray(64)

    def sends_to_all() -> tuple[tuple[socket.socket], dict[str, object]]:
        sender, _ = join(plane, 1)
        sender.sendall(packets)
        for receiver in receivers:
            read(receiver, n_packet, buffer)
        return (sender,), {}

    def leaves(sender: socket.socket) -> None:
        sender.close()
        for receiver in receivers:
            read(receiver, n_gone, buffer)

    benchmark.pedantic(  # type: ignore[no-untyped-call]
        leaves, setup=sends_to_all, rounds=200, warmup_rounds=10
    )
    for receiver in receivers:
        receiver.close()


def test_a_session_begins_and_ends(benchmark: BenchmarkFixture, plane: Plane) -> None:
    """Promote a descriptor, close the peer, and read the report of the end."""

    def live() -> ClosedEvent:
        join(plane, 1)[0].close()
        while True:
            select.select([plane.fileno()], [], [], 10)
            for event in plane.events():
                if isinstance(event, ClosedEvent):
                    return event

    assert benchmark(live).reason == "eof"


@pytest.fixture
def crowd(plane: Plane) -> Iterator[Plane]:
    clients = [join(plane, number)[0] for number in range(1, SESSIONS + 1)]
    yield plane
    for client in clients:
        client.close()


def test_report_200_sessions(benchmark: BenchmarkFixture, crowd: Plane) -> None:
    """Build the reports of all sessions, for a debug page or a watcher."""
    assert len(benchmark(crowd.sessions)) == SESSIONS


def test_report_the_counters(benchmark: BenchmarkFixture, crowd: Plane) -> None:
    """Sum the counters up, for the metrics page."""
    assert benchmark(crowd.counters)["current_connections"] == SESSIONS
