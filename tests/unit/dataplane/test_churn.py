"""Sessions that open and close in the same slots while several workers write to them.

The thread sanitizer runs this load.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable
from functools import partial

import pytest

from fastderp.dataplane.plane import ClosedEvent, Plane
from fastderp.wire.protocol import FrameType, frame
from tests.kit.plane import DISCO, PlanePeer, SealedPeer, events, running_plane

N_WORKERS = 4
N_LIVES = 60


def flood(plane: Plane, keys: list[bytes], stop: threading.Event, seed: int) -> None:
    """Send to keys whose sessions end and begin again until told to stop."""
    rng = random.Random(seed)
    peer = PlanePeer(plane, mesh=True)
    while not stop.is_set():
        to = rng.choice(keys)
        packet = frame(
            FrameType.FORWARD_PACKET, os.urandom(32), to, rng.choice((DISCO, bytes(1400)))
        )
        # Not within `suppress`: a write that gave up would leave part of a frame.
        peer.socket.settimeout(60)
        peer.write(packet * rng.randrange(1, 40))
        peer.socket.settimeout(0.01)
        with contextlib.suppress(TimeoutError):
            peer.socket.recv(65536)
    peer.close()


def churn(plane: Plane, keys: list[bytes], kind: type[PlanePeer], seed: int) -> None:
    """Log in, read a little or nothing, leave."""
    rng = random.Random(seed)
    for _ in range(N_LIVES):
        peer = kind(plane, rng.choice(keys), app_name=b"churn")
        peer.send_packet(rng.choice(keys), bytes(1400))
        if rng.random() < 0.5:
            with contextlib.suppress(OSError, EOFError):
                peer.receive()
        if rng.random() < 0.2:
            rng.choice((plane.close_session, plane.leave))(peer.handle)
        peer.close()


def watch(plane: Plane, stop: threading.Event) -> None:
    """Read all tables from another thread, as pages and metrics do."""
    rate = 0
    while not stop.is_set():
        for session in plane.sessions():
            plane.send(session.handle, frame(FrameType.HEALTH, b""))
        plane.round_trips([1000])
        plane.tcp_infos()
        plane.counters()
        plane.unique_senders()
        rate = 50_000_000 - rate
        plane.set_rate_limits([(rate, 0)])


@pytest.mark.threads
@pytest.mark.parametrize("kind", [PlanePeer, SealedPeer], ids=["plain", "records"])
def test_slots_reused_under_several_workers_leave_no_state(
    kind: type[PlanePeer],
) -> None:
    with running_plane(workers=N_WORKERS, sender_cardinality=True) as plane:
        keys = [os.urandom(32) for _ in range(12)]
        stop = threading.Event()
        floods: list[Callable[[], None]] = [
            partial(flood, plane, keys, stop, seed) for seed in range(3)
        ]
        watchers = [threading.Thread(target=work) for work in (*floods, lambda: watch(plane, stop))]
        lives = [
            threading.Thread(target=churn, args=(plane, keys, kind, seed)) for seed in range(4)
        ]
        for thread in (*watchers, *lives):
            thread.start()
        for thread in lives:
            thread.join()
        stop.set()
        for thread in watchers:
            thread.join()
        ended = [e for e in events(plane, 4 * N_LIVES + 3) if isinstance(e, ClosedEvent)]
        assert len(ended) == 4 * N_LIVES + 3
        counters = plane.counters()
        assert counters["current_connections"] == counters["clients_total"] == 0
        assert counters["backlog_bytes"] == counters["gone_watchers_bytes"] == 0
