"""The shares of senders at a receiver that reads less than they send."""

from __future__ import annotations

import os
import random
import struct

import pytest

from fastderp.dataplane.plane import Plane
from fastderp.wire.protocol import FrameType, frame
from tests.kit.plane import DISCO, PlanePeer, dropped, fill, running_plane

pytestmark = pytest.mark.usefixtures("peers")


def test_disco_packets_overtake_data_that_waits(plane: Plane) -> None:
    sender, slow = PlanePeer(plane), PlanePeer(plane)
    fill(sender, slow.key, 1000, 1400)
    sender.send_packet(slow.key, DISCO + b"now")
    sender.sync()
    seen = []
    while True:
        data = slow.receive()[1][32:]
        if data == DISCO + b"now":
            break
        seen.append(struct.unpack_from(">I", data)[0])
    assert 999 not in seen, "it waited behind everything"


def test_a_stalled_reader_does_not_delay_others(plane: Plane) -> None:
    sender, slow, quick = (PlanePeer(plane) for _ in range(3))
    fill(sender, slow.key, 2000, 1400)
    for i in range(200):
        sender.send_packet(quick.key, b"%d" % i)
        assert quick.receive() == (FrameType.RECV_PACKET, sender.key + b"%d" % i)


def test_senders_that_flood_a_slow_reader_cost_a_slow_sender_nothing(plane: Plane) -> None:
    first, *flooders = [PlanePeer(plane) for _ in range(13)]
    polite, slow = PlanePeer(plane), PlanePeer(plane)
    fill(first, slow.key, 300, 1400)  # the socket is full of these: from here on everything waits
    for _ in range(10):
        for flooder in flooders:
            fill(flooder, slow.key, 30, 1400)
        polite.send_packet(slow.key, b"please")
        polite.sync()
    n_lost = sum(dropped(plane).values())
    assert n_lost > 1000
    sources = [slow.receive()[1][:32] for _ in range(10 + 13 * 300 - n_lost)]
    assert sources.count(polite.key) == 10
    shares = [sources.count(flooder.key) for flooder in flooders]
    assert min(shares) > 0.8 * max(shares)


@pytest.mark.parametrize(
    ("n_flooders", "options"),
    [(300, {}), (300, {"queue_packets": 100}), (1000, {})],
    ids=["300", "300, 100 packets wait", "1000"],
)
def test_more_flooding_senders_than_a_lane_holds_cost_a_slow_sender_nothing(
    n_flooders: int, options: dict[str, int]
) -> None:
    with running_plane(workers=1, **options) as plane:
        mesh, slow = PlanePeer(plane, mesh=True), PlanePeer(plane)
        flooders, polite = [os.urandom(32) for _ in range(n_flooders)], os.urandom(32)
        sources: list[bytes] = []
        n_sent = 0
        # rounds from one packet of the slow sender to the next: half of its fair share
        every = n_flooders // 50
        for round_ in range(20 * every):  # each of which has room for 100 packets
            # the flooding senders have a charge after ten rounds
            if round_ >= 10 * every and round_ % every == 0:
                mesh.send(FrameType.FORWARD_PACKET, polite, slow.key, bytes(1000))
                n_sent += 1
            mesh.write(
                b"".join(
                    frame(FrameType.FORWARD_PACKET, flooder, slow.key, bytes(1000))
                    for flooder in random.sample(flooders, 300)
                )
            )
            mesh.sync()
            sources += [slow.receive()[1][:32] for _ in range(100)]
        n_left = 20 * every * 300 + n_sent - sum(dropped(plane).values()) - len(sources)
        sources += [slow.receive()[1][:32] for _ in range(n_left)]
        assert sources.count(polite) == n_sent


def test_a_sender_of_large_packets_below_its_share_loses_nothing_to_floods_of_small_ones() -> None:
    with running_plane(workers=1) as plane:
        mesh, slow = PlanePeer(plane, mesh=True), PlanePeer(plane)
        flooders, polite = [os.urandom(32) for _ in range(50)], os.urandom(32)
        flood = b"".join(
            frame(FrameType.FORWARD_PACKET, flooder, slow.key, bytes(100)) for flooder in flooders
        )
        please = frame(FrameType.FORWARD_PACKET, polite, slow.key, b"please" + bytes(1400))
        mesh.write(flood * 100)
        mesh.sync()
        n_read = 0
        sources: list[bytes] = []
        for _ in range(20):
            mesh.write(please + flood * 40)
            mesh.sync()
            sources += [slow.receive()[1][:32] for _ in range(1000)]
            n_read += 1000
        n_left = 20 + 50 * 900 - sum(dropped(plane).values()) - n_read
        sources += [slow.receive()[1][:32] for _ in range(n_left)]
        assert sources.count(polite) == 20


def test_the_sender_with_most_waiting_loses_first_among_thousands() -> None:
    with running_plane(workers=1) as plane:
        mesh, slow = PlanePeer(plane, mesh=True), PlanePeer(plane)
        greedy, polite = os.urandom(32), [os.urandom(32) for _ in range(1000)]
        for source in [greedy] * 6000 + polite:
            mesh.send(FrameType.FORWARD_PACKET, source, slow.key, bytes(100))
        mesh.sync()
        n_lost = sum(dropped(plane).values())
        assert n_lost > 1000, "some had to make room"
        arrived = [slow.receive()[1][:32] for _ in range(7000 - n_lost)]
        assert set(arrived) == {greedy, *polite}
        for peer in (mesh, slow):
            peer.close()


def test_disco_junk_leaves_data_half_of_a_slow_readers_throughput(plane: Plane) -> None:
    first, junk, polite, slow = (PlanePeer(plane) for _ in range(4))
    fill(first, slow.key, 300, 1400)
    polite.write(frame(FrameType.SEND_PACKET, slow.key, b"please" + bytes(1000)) * 40)
    polite.sync()
    sources: list[bytes] = []
    for _ in range(10):
        junk.write(frame(FrameType.SEND_PACKET, slow.key, DISCO + bytes(1300)) * 200)
        junk.sync()
        sources += [slow.receive()[1][:32] for _ in range(100)]
    assert sources.count(polite.key) == 40


def test_senders_that_flood_a_slow_reader_with_disco_junk_cost_a_slow_sender_nothing(
    plane: Plane,
) -> None:
    first, *flooders = [PlanePeer(plane) for _ in range(5)]
    polite, slow = PlanePeer(plane), PlanePeer(plane)
    fill(first, slow.key, 300, 1400)
    for _ in range(10):
        for flooder in flooders:
            flooder.write(frame(FrameType.SEND_PACKET, slow.key, DISCO + bytes(1300)) * 100)
            flooder.sync()
        polite.send_packet(slow.key, DISCO + b"please")
        polite.sync()
    n_lost = sum(dropped(plane).values())
    assert n_lost > 1000
    sources = [slow.receive()[1][:32] for _ in range(300 + 10 + 4 * 1000 - n_lost)]
    assert sources.count(polite.key) == 10
