"""Random frames, cuts and ends from several threads: all is accounted for."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import threading

import pytest

from fastderp.dataplane.plane import ClosedEvent, Plane
from fastderp.wire.protocol import FrameType, frame
from tests.kit.plane import DISCO, PlanePeer, accounted, events, running_plane

pytestmark = [pytest.mark.usefixtures("peers"), pytest.mark.threads]


def test_traffic_and_churn_of_many_threads_leave_no_state() -> None:
    """Every packet is delivered or counted as dropped, and the tables end as empty as they began."""
    with running_plane(workers=3) as plane:
        sink = PlanePeer(plane)
        keys = [os.urandom(32) for _ in range(40)]

        def churn(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(60):
                peer = PlanePeer(plane, rng.choice(keys))
                for _ in range(rng.randrange(30)):
                    to = rng.choice(keys)
                    data = DISCO if rng.random() < 0.2 else bytes(rng.randrange(3000))
                    peer.send_packet(to, data)
                if rng.random() < 0.5:
                    peer.receive_until_pong()
                if rng.random() < 0.2:
                    rng.choice((plane.close_session, plane.leave))(peer.handle)
                peer.close()

        threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        events(plane, 6 * 60)
        counters = plane.counters()
        assert counters["current_connections"] == counters["clients_total"] == 1
        assert counters["current_dup_client_keys"] == counters["backlog_bytes"] == 0
        assert accounted(plane)
        sink.sync()


def random_stream(rng: random.Random, keys: list[bytes]) -> bytes:
    """Some frames, mostly good ones."""
    stream = bytearray()
    for _ in range(rng.randrange(1, 60)):
        key = rng.choice(keys)
        data = rng.choice((b"", b"x", DISCO, bytes(1400), bytes(rng.randrange(5000)), bytes(65536)))
        kind = rng.randrange(100)
        if kind < 70:
            stream += frame(FrameType.SEND_PACKET, key, data)
        elif kind < 80:
            stream += frame(FrameType.FORWARD_PACKET, rng.choice((bytes(32), *keys)), key, data)
        elif kind < 90:
            stream += frame(FrameType.PING, b"12345678" + bytes(rng.randrange(900)))
        elif kind < 98:
            stream += struct.pack(">BI", rng.randrange(256), n := rng.randrange(3000)) + bytes(n)
        else:
            stream += struct.pack(">BI", rng.randrange(256), rng.randrange(2**32))
    return bytes(stream)


def random_life(plane: Plane, rng: random.Random, keys: list[bytes]) -> None:
    """One session that sends random frames in random pieces, reads or does not, and ends in some way."""
    peer = PlanePeer(
        plane, rng.choice(keys), mesh=rng.random() < 0.3, first=frame(FrameType.SERVER_INFO, bytes(60)),
        unread=random_stream(rng, keys)[:100_000] if rng.random() < 0.2 else b"",
    )  # fmt: skip
    peer.socket.setblocking(False)
    wire = peer.seal(random_stream(rng, keys))
    if rng.random() < 0.1:
        spoilt = bytearray(wire)
        spoilt[rng.randrange(len(wire))] ^= 1 << rng.randrange(8)
        wire = bytes(spoilt)
    with contextlib.suppress(OSError):
        while wire:
            n = rng.choice((1, 5, 37, 1000, 100_000))
            with contextlib.suppress(BlockingIOError):
                wire = wire[peer.socket.send(wire[:n]) :]
            if rng.random() < 0.5:
                with contextlib.suppress(BlockingIOError):
                    peer.socket.recv(rng.choice((1, 1000, 100_000)))
            if rng.random() < 0.02:
                break
    if rng.random() < 0.2:
        plane.close_session(peer.handle)
    peer.close()


@pytest.mark.parametrize("seed", range(4))
def test_random_frames_cuts_and_ends_are_accounted_for(seed: int) -> None:
    with running_plane(
        workers=2, write_timeout_s=1, keep_alive_s=3600, backlog_cap_bytes=1_000_000
    ) as plane:
        bystanders = [PlanePeer(plane), PlanePeer(plane)]
        link = PlanePeer(plane, link=True)
        far = os.urandom(32)
        plane.add_forwarder(far, link.handle)
        keys = [far, link.key, *(os.urandom(32) for _ in range(6))]
        n_lives = 150

        def lives(seed: int) -> None:
            rng = random.Random(seed)
            for i in range(n_lives):
                random_life(plane, rng, keys)
                if i % 50 == 0:
                    plane.set_rate_limits([(rng.choice((0, 5_000_000)), 0)])

        threads = [threading.Thread(target=lives, args=(10 * seed + i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        n_closed = 0
        while n_closed < 3 * n_lives + 1:
            n_closed += sum(isinstance(event, ClosedEvent) for event in events(plane))
            if n_closed == 3 * n_lives:
                link.close()
        for thread in threads:
            thread.join()
        for one, other in (bystanders, reversed(bystanders)):
            one.send_packet(other.key, b"as ever")
            assert other.receive() == (FrameType.RECV_PACKET, one.key + b"as ever")
            one.sync()
        assert accounted(plane)
        assert plane.counters()["current_connections"] == plane.counters()["clients_local"] == 2
        assert plane.counters()["current_dup_client_keys"] == plane.counters()["backlog_bytes"] == 0
        assert plane.counters()["events_lost"] == 0
