"""Write deadlines, keep-alives and the time packets wait (PROTOCOL §6.6)."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastderp.dataplane.counters import DELAY_BOUNDS
from fastderp.dataplane.plane import Plane
from fastderp.wire.protocol import FrameType, frame
from tests.kit.plane import PlanePeer, accounted, closed, dropped, fill, running_plane
from tests.kit.relay import eventually

pytestmark = pytest.mark.usefixtures("peers")


def average_queue_ms(plane: Plane) -> float:
    average = plane.counters()["average_queue_duration_ms"]
    assert isinstance(average, float)
    return average


def delays(plane: Plane) -> tuple[list[int], float]:
    """Return the histogram of the packets' delays: the counts by bucket, and the seconds."""
    histogram: Any = plane.counters()["queue_delay_seconds"]
    counts, seconds = histogram
    return counts, seconds


def test_the_time_packets_wait_is_averaged(plane: Plane) -> None:
    sender, slow, quick = (PlanePeer(plane) for _ in range(3))
    assert plane.counters()["average_queue_duration_ms"] == 0
    fill(sender, slow.key, 1000, 1400)
    slow.receive_until_pong()
    waited_ms = plane.counters()["average_queue_duration_ms"]
    assert isinstance(waited_ms, float) and waited_ms > 0

    def quick_packets_make_it_zero() -> bool:
        for _ in range(300):
            sender.send_packet(quick.key, b"data")
            quick.receive()
        return average_queue_ms(plane) == 0

    eventually(quick_packets_make_it_zero)


def test_every_written_packet_counts_once_in_the_histogram_of_delays(plane: Plane) -> None:
    def all_are_counted() -> bool:
        return sum(delays(plane)[0]) == plane.counters()["packets_sent"]

    sender, slow, quick = (PlanePeer(plane) for _ in range(3))
    sender.send_packet(quick.key, b"data")
    quick.receive()
    eventually(lambda: delays(plane) == ([1, *[0] * len(DELAY_BOUNDS)], 0))
    fill(sender, slow.key, 1000, 1400)
    eventually(all_are_counted)
    slow.receive_until_pong()
    eventually(all_are_counted)
    counts, seconds = delays(plane)
    at_least = sum(n * bound for n, bound in zip(counts[1:], DELAY_BOUNDS, strict=True))
    assert 0 < at_least <= seconds


@pytest.mark.threads
def test_packets_of_another_thread_have_no_negative_waiting_time() -> None:
    with running_plane(workers=2) as plane:
        slow, *senders = [PlanePeer(plane) for _ in range(4)]
        stop = threading.Event()

        def flood(sender: PlanePeer) -> None:
            while not stop.is_set():
                sender.write(frame(FrameType.SEND_PACKET, slow.key, bytes(1400)) * 20)

        threads = [threading.Thread(target=flood, args=(sender,)) for sender in senders]
        for thread in threads:
            thread.start()
        averages: list[float] = []
        for _ in range(3000):
            slow.read(20_000)
            averages.append(average_queue_ms(plane))
        stop.set()
        for thread in threads:
            thread.join()
        assert max(averages) < 3_600_000


def test_the_time_that_packets_wait_in_a_busy_turn_is_averaged_too() -> None:
    plane = Plane(workers=1)
    sender, receiver = PlanePeer(plane), PlanePeer(plane)
    packet = frame(FrameType.SEND_PACKET, receiver.key, b"data")
    sender.write(packet * 100)
    plane.start()  # it finds them all at once
    with contextlib.closing(plane):
        for _ in range(100):
            receiver.receive()
        eventually(lambda: 0 < average_queue_ms(plane) < 1000)


def test_a_write_error_at_the_deadline_is_no_write_timeout() -> None:
    plane = Plane(workers=1, write_timeout_s=0.02)
    broken = PlanePeer(plane)
    while not plane.counters()["backlog_bytes"]:
        plane.send(broken.handle, frame(FrameType.HEALTH, bytes(1000)))
    broken.socket.shutdown(socket.SHUT_RD)
    deadline = time.monotonic() + 0.04  # two ticks of the timers later
    eventually(lambda: time.monotonic() > deadline)
    plane.start()  # it finds the error and the deadline in one turn
    with contextlib.closing(plane):
        assert closed(plane).reason == "write_error"
        assert plane.counters()["sclient_write_timeouts"] == 0


def test_a_reader_that_takes_nothing_is_closed_at_the_write_deadline() -> None:
    with running_plane(workers=1, write_timeout_s=0.2) as plane:
        sender, stuck = PlanePeer(plane), PlanePeer(plane)
        fill(sender, stuck.key, 1000, 1400)
        event = closed(plane)
        assert (event.handle, event.reason) == (stuck.handle, "write_timeout")
        assert plane.counters()["sclient_write_timeouts"] == 1
        assert dropped(plane)[("write_error", "other")] == 1, "the packet that was to be written"
        assert dropped(plane)[("gone_disconnected", "other")] > 0, "those behind it"
        assert accounted(plane)
        assert plane.counters()["backlog_bytes"] == 0


def test_only_the_first_packet_for_a_broken_socket_is_a_write_error(
    plane: Plane,
) -> None:
    sender, broken = PlanePeer(plane), PlanePeer(plane)
    broken.socket.shutdown(socket.SHUT_RD)
    sender.write(frame(FrameType.SEND_PACKET, broken.key, b"data") * 100)
    assert closed(plane).reason == "write_error"
    sender.sync()
    assert dropped(plane) == {("write_error", "other"): 1, ("gone_disconnected", "other"): 99}


def test_packets_for_a_client_that_the_relay_closes_are_no_write_error(plane: Plane) -> None:
    sender, slow = PlanePeer(plane), PlanePeer(plane)
    fill(sender, slow.key, 300, 1400)
    plane.close_session(slow.handle)
    assert closed(plane).reason == "server"
    assert ("write_error", "other") not in dropped(plane)
    assert dropped(plane)[("gone_disconnected", "other")] > 0


@pytest.mark.parametrize("role", ["mesh", "link"])
@pytest.mark.parametrize("expected", ["client", "peer"])
def test_clients_and_mesh_peers_have_separate_write_deadlines(role: str, expected: str) -> None:
    client_s, mesh_s = (0.2, 600) if expected == "client" else (600, 0.2)
    with running_plane(workers=1, write_timeout_s=client_s, mesh_write_timeout_s=mesh_s) as plane:
        sender, far = PlanePeer(plane), os.urandom(32)
        stuck = {"client": PlanePeer(plane), "peer": PlanePeer(plane, **{role: True})}
        plane.add_forwarder(far, stuck["peer"].handle)
        fill(sender, stuck["client"].key, 300, 1400)
        fill(sender, far, 300, 1400)
        event = closed(plane)
        assert (event.handle, event.reason) == (stuck.pop(expected).handle, "write_timeout")
        [left] = stuck.values()
        assert left.handle in {session.handle for session in plane.sessions()}


def test_a_reader_that_makes_progress_is_not_closed() -> None:
    with running_plane(workers=1, write_timeout_s=1) as plane:
        sender, slow = PlanePeer(plane), PlanePeer(plane)
        # In one write: the reader has to begin within the deadline.
        sender.write(frame(FrameType.SEND_PACKET, slow.key, bytes(1400)) * 300)
        sender.sync()
        n = 300 - sum(dropped(plane).values())
        for _ in range(n):
            slow.receive()
            time.sleep(0.01)  # the pace of a slow reader is what is tested
        slow.sync()


def test_a_silent_client_is_kept_alive_and_a_busy_one_too() -> None:
    with running_plane(workers=1, keep_alive_s=0.1) as plane:
        started = time.monotonic()
        silent, busy = PlanePeer(plane), PlanePeer(plane)
        for _ in range(5):
            assert silent.receive() == (FrameType.KEEP_ALIVE, b"")
        assert time.monotonic() - started >= 0.5
        assert (FrameType.KEEP_ALIVE, b"") in busy.receive_until_pong()


def test_a_timer_of_the_kernel_that_expires_early_ends_no_keep_alives() -> None:
    libc = ctypes.CDLL(None)
    before = timer_descriptors()
    with running_plane(workers=1, keep_alive_s=0.3) as plane:
        silent = PlanePeer(plane)
        (timer,) = timer_descriptors() - before
        at_once = (ctypes.c_long * 4)(0, 0, 0, 1)  # an itimerspec: no interval, the first ns
        assert libc.timerfd_settime(timer, 1, at_once, None) == 0
        for _ in range(2):
            assert silent.receive() == (FrameType.KEEP_ALIVE, b"")


def timer_descriptors() -> set[int]:
    return {
        int(entry.name)
        for entry in Path("/proc/self/fd").iterdir()
        if "timerfd" in os.path.realpath(entry)
    }


def test_a_silent_link_is_closed() -> None:
    with running_plane(workers=1, keep_alive_s=0.1) as plane:
        link = PlanePeer(plane, link=True)
        assert closed(plane).reason == "silent"
        with pytest.raises((EOFError, ConnectionError)):
            link.receive()


def test_a_client_behind_a_proxy_is_kept_alive_in_five_sixths_of_the_time() -> None:
    started = time.monotonic()
    plane = Plane(workers=1, keep_alive_s=0.6)
    proxied = [PlanePeer(plane, behind_proxy=True) for _ in range(10)]
    direct = [PlanePeer(plane) for _ in range(10)]
    plane.start()
    with contextlib.closing(plane):
        # The one worker sends them in the order in which they are due, which epoll preserves.
        order = arrivals([*direct, *proxied])
        first = next(order)
        assert time.monotonic() - started >= 0.5
        assert {first, *itertools.islice(order, 9)} == set(proxied)
        assert set(order) == set(direct)
        assert time.monotonic() - started >= 0.6
        for peer in (*direct, *proxied):
            assert peer.receive() == (FrameType.KEEP_ALIVE, b"")


def arrivals(peers: list[PlanePeer]) -> Iterator[PlanePeer]:
    """Yield each peer when its first bytes have arrived, in the order of arrival."""
    by_descriptor = {peer.socket.fileno(): peer for peer in peers}
    with select.epoll() as poll:
        for descriptor in by_descriptor:
            poll.register(descriptor, select.EPOLLIN | select.EPOLLONESHOT)
        for _ in peers:
            [(descriptor, _)] = poll.poll(10, 1)
            yield by_descriptor[descriptor]
