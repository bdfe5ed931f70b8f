"""The receive rate limit (PROTOCOL §6.8)."""

from __future__ import annotations

import select
import struct
import sys
import threading
import time

import pytest

from fastderp.dataplane.plane import Plane
from fastderp.wire.protocol import FrameType, frame
from tests.kit.plane import PlanePeer, closed, count, dropped, running_plane
from tests.kit.relay import eventually

pytestmark = pytest.mark.usefixtures("peers")

RATE = b"this relay limits the rate of this client, and delays packets above the limit"
DUPLICATE = (
    b"another connection uses the same node key, and packets go to the one that sent last; "
    b"was a machine's state copied?"
)
HELD_BACK = (FrameType.HEALTH, RATE)
HEALTHY = (FrameType.HEALTH, b"")
KEEP_ALIVE = (FrameType.KEEP_ALIVE, b"")
TOO_MUCH = frame(FrameType.SEND_PACKET, bytes(32), bytes(1400)) * 50


def next_health(peer: PlanePeer) -> tuple[int, bytes]:
    """Return the next frame but keep-alives."""
    while (received := peer.receive()) == KEEP_ALIVE:
        pass
    return received


def held_back(plane: Plane) -> int:
    n = plane.counters()["clients_held_back"]
    assert isinstance(n, int)
    return n


def test_a_client_over_its_rate_waits_and_loses_nothing(plane: Plane) -> None:
    plane.set_rate_limits([(400_000, 1)])  # the burst is raised to one largest packet
    a, b = PlanePeer(plane), PlanePeer(plane)
    started = time.monotonic()
    # In one write: a sender that is slow itself would not be held back.
    a.write(
        b"".join(
            frame(FrameType.SEND_PACKET, b.key, struct.pack(">I", i) + bytes(1400))
            for i in range(100)
        )
    )
    for i in range(100):
        assert b.receive()[1][32:36] == struct.pack(">I", i)
    took = time.monotonic() - started
    assert took > 0.6 * (100 * 1436 - 65568) / 400_000, "it was not held back"
    assert plane.counters()["rate_limit_per_client_waited"]
    assert not dropped(plane)


def test_a_frame_as_long_as_the_burst_costs_the_whole_burst(plane: Plane) -> None:
    plane.set_rate_limits([(1, 1)])  # what is not there at once does not come any more
    a = PlanePeer(plane)
    a.write(struct.pack(">BI", 0x77, 65_568) + bytes(65_568))
    eventually(lambda: plane.counters()["unknown_frames"])
    a.send(FrameType.PING, b"12345678")
    eventually(lambda: plane.counters()["rate_limit_per_client_waited"])
    assert plane.counters()["got_ping"] == 0
    plane.set_rate_limits([(0, 0)])
    assert a.receive() == HELD_BACK
    assert a.receive() == (FrameType.PONG, b"12345678")


def test_lifting_the_limit_frees_waiting_senders(plane: Plane) -> None:
    plane.set_rate_limits([(1, 1)])
    a, b = PlanePeer(plane), PlanePeer(plane)
    for _ in range(60):
        a.send_packet(b.key, bytes(1400))
    for _ in range(65568 // (1400 + 32)):
        b.receive()
    plane.set_rate_limits([(0, 0)])
    for _ in range(60 - 65568 // (1400 + 32)):
        b.receive()


def test_a_limit_that_changes_constantly_delays_no_client_for_long(plane: Plane) -> None:
    a, b = PlanePeer(plane), PlanePeer(plane)
    stop = threading.Event()
    # The two threads take turns at every packet, not every 5 ms.
    usual_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def flap() -> None:
        while not stop.is_set():
            plane.set_rate_limits([(1, 1)])
            plane.set_rate_limits([(0, 0)])

    thread = threading.Thread(target=flap)
    thread.start()
    try:
        for i in range(2000):
            a.send_packet(b.key, struct.pack(">I", i) + bytes(1400))
            assert b.receive()[1][32:36] == struct.pack(">I", i)
    finally:
        sys.setswitchinterval(usual_s)
        stop.set()
        thread.join()


def test_a_client_that_is_held_back_keeps_little_in_the_relay(plane: Plane) -> None:
    plane.set_rate_limits([(1, 1)])
    a = PlanePeer(plane)
    a.socket.setblocking(False)
    wire = a.seal(frame(FrameType.SEND_PACKET, a.key, bytes(16_000)) * 20)
    with pytest.raises(BlockingIOError):
        while wire:
            wire = wire[a.socket.send(wire) :]
            select.select([], [a.socket], [], 0.2)
    a.close()


def test_mesh_peers_are_not_limited(plane: Plane) -> None:
    plane.set_rate_limits([(1, 1)])
    a, b = PlanePeer(plane, mesh=True), PlanePeer(plane)
    for _ in range(200):
        a.send_packet(b.key, bytes(1400))
    for _ in range(200):
        b.receive()


def test_a_client_is_told_once_that_it_is_held_back_and_once_that_it_is_over() -> None:
    with running_plane(workers=1, rate_calm_s=2) as plane:
        plane.set_rate_limits([(1_000_000, 0)])
        a = PlanePeer(plane)
        a.write(TOO_MUCH * 5)  # a burst, then many waits that follow each other
        assert a.receive_until_pong() == [HELD_BACK]
        assert count(plane, "rate_limit_per_client_waited") > 1
        assert a.receive() == HEALTHY
        assert held_back(plane) == 0
        a.write(TOO_MUCH * 5)
        assert a.receive_until_pong() == [HELD_BACK]
        assert held_back(plane) == 1
        a.close()
        closed(plane)
        assert held_back(plane) == 0


def test_a_client_that_waits_for_long_is_not_told_that_it_is_over_meanwhile() -> None:
    with running_plane(workers=1, rate_calm_s=0.01, keep_alive_s=0.1) as plane:
        plane.set_rate_limits([(1, 0)])
        a = PlanePeer(plane)
        a.write(TOO_MUCH)
        assert next_health(a) == HELD_BACK
        for _ in range(3):
            assert a.receive() == KEEP_ALIVE
        plane.set_rate_limits([(0, 0)])
        assert next_health(a) == HEALTHY


def test_each_class_of_clients_has_its_own_limit(plane: Plane) -> None:
    plane.set_rate_limits([(1, 1), (0, 0), (1, 1 << 20)])
    default, free, burst = (PlanePeer(plane, rate_class=number) for number in range(3))
    for client in (free, burst):
        client.write(TOO_MUCH * 5)
        client.sync()
    default.write(TOO_MUCH)
    assert default.receive() == HELD_BACK


def test_a_client_may_change_its_class_while_it_is_held_back(plane: Plane) -> None:
    plane.set_rate_limits([(1, 1), (0, 0)])
    a = PlanePeer(plane)
    a.write(TOO_MUCH)
    assert a.receive() == HELD_BACK
    plane.set_rate_class(a.handle, 1)
    plane.set_rate_limits([(1, 1), (0, 0)])
    a.sync()


def test_more_limits_than_classes_are_refused_and_change_nothing(plane: Plane) -> None:
    plane.set_rate_limits([(1, 1)])
    with pytest.raises(ValueError, match="at most 256 rate limits, not 257"):
        plane.set_rate_limits([(0, 0)] * 257)
    a = PlanePeer(plane)
    a.write(TOO_MUCH)
    assert a.receive() == HELD_BACK


def test_a_health_frame_names_every_problem_and_the_end_of_one_keeps_the_other() -> None:
    with running_plane(workers=1, rate_calm_s=2) as plane:
        plane.set_rate_limits([(1_000_000, 0)])
        a = PlanePeer(plane)
        assert plane.set_duplicate(a.handle, True)
        assert not plane.set_duplicate(a.handle, True), "it was told"
        assert a.receive() == (FrameType.HEALTH, DUPLICATE)
        a.write(TOO_MUCH * 5)
        assert a.receive_until_pong() == [(FrameType.HEALTH, DUPLICATE + b"; " + RATE)]
        assert a.receive() == (FrameType.HEALTH, DUPLICATE)
        assert plane.set_duplicate(a.handle, False)
        assert a.receive() == HEALTHY
        a.close()
        closed(plane)
        assert not plane.set_duplicate(a.handle, True), "it is gone"
