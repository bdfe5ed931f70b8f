"""The effects of the forwarder table on packets. PROTOCOL §7.5, §16 lines 20 and 21."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from itertools import cycle, pairwise

import pytest

from fastderp.dataplane.plane import ClosedEvent, Plane
from fastderp.wire.protocol import FrameType
from tests.kit.plane import PlanePeer, events, running_plane

N_PACKETS = 5000
# fewer packets than a link surely keeps
IN_FLIGHT = 8


@pytest.fixture
def plane() -> Iterator[Plane]:
    with running_plane(workers=2) as running:
        yield running


def leave(plane: Plane, peer: PlanePeer) -> None:
    """Close the peer and wait for the plane's event."""
    peer.close()
    assert isinstance(events(plane)[0], ClosedEvent)


def test_withdrawing_a_forwarder_of_a_local_client_leaves_it_local(plane: Plane) -> None:
    a, here, link = PlanePeer(plane), PlanePeer(plane), PlanePeer(plane, link=True)
    plane.add_forwarder(here.key, link.handle)
    plane.remove_forwarder(here.key, link.handle)
    here.send_packet(a.key, b"hello")
    a.send_packet(here.key, b"still here?")
    assert here.receive() == (FrameType.RECV_PACKET, a.key + b"still here?")
    leave(plane, here)
    assert a.receive() == (FrameType.RECV_PACKET, here.key + b"hello")
    assert a.receive() == (FrameType.PEER_GONE, here.key + b"\0")
    assert plane.counters()["clients_total"] == 1
    assert plane.counters()["packet_forwarder_delete_other_value"] == 0


def test_a_client_that_moves_to_another_relay_is_not_gone(plane: Plane) -> None:
    a, here, link = PlanePeer(plane), PlanePeer(plane), PlanePeer(plane, link=True)
    here.send_packet(a.key, b"hello")
    assert a.receive() == (FrameType.RECV_PACKET, here.key + b"hello")
    plane.add_forwarder(here.key, link.handle)
    leave(plane, here)
    a.sync()
    assert plane.counters()["clients_total"] == 2
    a.send_packet(here.key, b"over there")
    assert link.receive() == (FrameType.FORWARD_PACKET, a.key + here.key + b"over there")
    plane.remove_forwarder(here.key, link.handle)
    assert a.receive() == (FrameType.PEER_GONE, here.key + b"\0")


def test_withdrawing_an_unannounced_key_changes_nothing(plane: Plane) -> None:
    a, link, other, far = (
        PlanePeer(plane),
        PlanePeer(plane, link=True),
        PlanePeer(plane, link=True),
        os.urandom(32),
    )
    plane.remove_forwarder(far, link.handle)
    plane.remove_forwarder(a.key, link.handle)
    assert plane.counters()["packet_forwarder_delete_other_value"] == 0
    plane.add_forwarder(far, link.handle)
    plane.remove_forwarder(far, other.handle)
    assert plane.counters()["packet_forwarder_delete_other_value"] == 1
    a.send_packet(far, b"x")
    assert link.receive() == (FrameType.FORWARD_PACKET, a.key + far + b"x")


def test_every_packet_takes_one_route_while_routes_come_and_go(plane: Plane) -> None:
    a, far = PlanePeer(plane), os.urandom(32)
    links = [PlanePeer(plane, link=True) for _ in range(3)]
    plane.add_forwarder(far, links[0].handle)
    stop = threading.Event()

    def take_turns() -> None:
        # The link in use leaves while packets flow; the next one comes before it leaves.
        for current, following in pairwise(cycle(links)):
            plane.add_forwarder(far, following.handle)
            plane.remove_forwarder(far, current.handle)
            if stop.is_set():
                return

    changer = threading.Thread(target=take_turns)
    changer.start()
    taken: list[PlanePeer] = []
    try:
        for first in range(0, N_PACKETS, IN_FLIGHT):
            sent = [n.to_bytes(4) for n in range(first, first + IN_FLIGHT)]
            for data in sent:
                a.send_packet(far, data)
            arrived = forwarded(links, IN_FLIGHT)
            assert sorted(payload for _, payload in arrived) == [
                a.key + far + data for data in sent
            ]
            taken += [link for link, _ in arrived]
    finally:
        stop.set()
        changer.join()
    a.sync()
    assert not select.select([link.socket for link in links], [], [], 0)[0]
    assert plane.counters()["packets_forwarded_out"] == N_PACKETS
    assert len(set(taken)) > 1


def forwarded(links: list[PlanePeer], n_packets: int) -> list[tuple[PlanePeer, bytes]]:
    """Return `n` forwarded packets, each with its link."""
    by_socket = {link.socket: link for link in links}
    packets: list[tuple[PlanePeer, bytes]] = []
    while len(packets) < n_packets:
        ready, _, _ = select.select(by_socket, [], [], 30)
        assert ready, f"only {len(packets)} of {n_packets} packets"
        for sock in ready:
            frame_type, payload = by_socket[sock].receive()
            assert frame_type == FrameType.FORWARD_PACKET
            packets.append((by_socket[sock], payload))
    return packets
