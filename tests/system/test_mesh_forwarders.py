"""Packet forwarders that a program adds; the choice among several. PROTOCOL §7.5, §16."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from itertools import cycle, pairwise

import pytest

from fastderp.client import HTTPClient
from fastderp.server.mesh.forwarders import PacketForwarder
from fastderp.wire.keys import MeshKey, NodePrivate, NodePublic
from tests.kit.peer import DISCO, GONE, Peer
from tests.kit.relay import PATIENCE_S, Relay, eventually

Packet = tuple[NodePublic, NodePublic, bytes]


class Collector:
    """A forwarder that keeps its packets."""

    def __init__(self) -> None:
        self.packets: list[Packet] = []

    def forward_packet(self, source: NodePublic, destination: NodePublic, data: bytes) -> None:
        self.packets.append((source, destination, data))


@pytest.fixture
def relay(start_relay: Callable[..., Relay]) -> Relay:
    return start_relay()


@pytest.fixture
def key() -> NodePublic:
    """A key that is not connected here."""
    return NodePrivate.generate().public_key


def add(relay: Relay, key: NodePublic, forwarder: PacketForwarder) -> None:
    relay.call(relay.server.add_packet_forwarder, key, forwarder)


def remove(relay: Relay, key: NodePublic, forwarder: PacketForwarder) -> None:
    relay.call(relay.server.remove_packet_forwarder, key, forwarder)


def multi(relay: Relay) -> tuple[int, int, int]:
    """Return the counts of multi-forwarders, of ended ones, and of removals that met another."""
    metrics = relay.metrics()
    names = (
        "multiforwarder_created",
        "multiforwarder_deleted",
        "packet_forwarder_delete_other_value",
    )
    created, deleted, other = (metrics[f"derp_{name}"] for name in names)
    return created, deleted, other


def remote_keys(relay: Relay) -> int:
    return int(relay.metrics()["derp_clients_remote"])


def sent(client: Peer, key: NodePublic, data: bytes, to: Collector) -> None:
    """Send a packet and wait for it to come out of one forwarder."""
    client.send_packet(key, data)
    eventually(lambda: to.packets[-1:] == [(client.public, key, data)])


def test_packets_for_a_key_elsewhere_go_to_its_forwarder(relay: Relay, key: NodePublic) -> None:
    forwarder = Collector()
    with relay.login() as client:
        add(relay, key, forwarder)
        for size in (0, 1, 1400, 65536):
            sent(client, key, b"x" * size, forwarder)
        assert remote_keys(relay) == 1
        remove(relay, key, forwarder)
        assert remote_keys(relay) == 0
        client.send_packet(key, DISCO + bytes(56))
        assert client.read_frame() == (GONE, key.raw + b"\1")
    eventually(
        lambda: relay.call(relay.server.consistency_check) == []
    )  # the client is about to leave


def test_removing_what_was_not_added_does_nothing(relay: Relay, key: NodePublic) -> None:
    remove(relay, key, Collector())
    forwarder = Collector()
    add(relay, key, forwarder)
    remove(relay, NodePrivate.generate().public_key, forwarder)
    assert multi(relay) == (0, 0, 0)
    remove(relay, key, Collector())
    assert multi(relay) == (0, 0, 1)
    with relay.login() as client:
        sent(client, key, b"still there", forwarder)


def test_of_several_forwarders_the_oldest_is_used(relay: Relay, key: NodePublic) -> None:
    first, second, third = Collector(), Collector(), Collector()
    with relay.login() as client:
        add(relay, key, first)
        add(relay, key, second)
        add(relay, key, second)
        add(relay, key, third)
        assert multi(relay) == (1, 0, 0)
        sent(client, key, b"1", first)
        remove(relay, key, Collector())
        sent(client, key, b"2", first)
        remove(relay, key, first)
        sent(client, key, b"3", second)
        assert multi(relay) == (1, 0, 0)
        remove(relay, key, third)
        assert multi(relay) == (1, 1, 0)
        sent(client, key, b"4", second)


def test_a_local_client_comes_before_a_forwarder_and_leaves_it_there(relay: Relay) -> None:
    forwarder, private = Collector(), NodePrivate.generate()
    key = private.public_key
    with relay.login() as client:
        with relay.login(key=private) as local:
            add(relay, key, forwarder)
            client.send_packet(key, b"local")
            assert local.read_packet() == (client.public, b"local")
            remove(relay, key, forwarder)
            client.send_packet(key, b"still local")
            assert local.read_packet() == (client.public, b"still local")
            add(relay, key, forwarder)
        relay.wait_connected(key, False)
        sent(client, key, b"now elsewhere", forwarder)


def test_receivers_get_peer_gone_when_the_last_route_to_a_sender_is_gone(relay: Relay) -> None:
    forwarder, private = Collector(), NodePrivate.generate()
    with relay.login() as receiver, relay.login(key=private) as sender:
        sender.send_packet(receiver.public, b"x")
        receiver.read_packet()
        add(relay, private.public_key, forwarder)
        sender.close()
        relay.wait_connected(private.public_key, False)
        assert receiver.sync() == []
        remove(relay, private.public_key, forwarder)
        assert receiver.read_frame() == (GONE, private.public_key.raw + b"\0")


def test_every_packet_goes_to_exactly_one_forwarder_while_they_are_added_and_removed(
    relay: Relay, key: NodePublic
) -> None:
    forwarders = [Collector() for _ in range(4)]
    add(relay, key, forwarders[0])
    over = threading.Event()

    def take_turns() -> None:
        # The forwarder in use leaves while packets flow; the next one is added before.
        for current, following in pairwise(cycle(forwarders)):
            add(relay, key, following)
            remove(relay, key, current)
            if over.is_set():
                return

    def n_used() -> int:
        return sum(bool(forwarder.packets) for forwarder in forwarders)

    n_sent = 0
    restless = threading.Thread(target=take_turns)
    restless.start()
    try:
        with relay.login() as client:
            # On a busy machine the first thousands pass between two turns.
            while n_sent < 5000 or n_used() < 2:
                client.send_packet(key, n_sent.to_bytes(4, "big"))
                n_sent += 1
            eventually(lambda: sum(len(forwarder.packets) for forwarder in forwarders) == n_sent)
    finally:
        over.set()
        restless.join()
    received = sorted(
        int.from_bytes(data, "big") for forwarder in forwarders for _, _, data in forwarder.packets
    )
    assert received == list(range(n_sent))


def test_packets_that_wait_for_a_removed_forwarder_still_arrive(
    relay: Relay, key: NodePublic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastderp.server.mesh.forwarders.LINGER_S", PATIENCE_S)

    class Gated:
        def __init__(self) -> None:
            self.packets: list[Packet] = []
            self.gate = asyncio.Event()

        async def forward_packet(
            self, source: NodePublic, destination: NodePublic, data: bytes
        ) -> None:
            await self.gate.wait()
            self.packets.append((source, destination, data))

    forwarder = Gated()
    add(relay, key, forwarder)
    with relay.login() as client:
        for _ in range(40):
            client.send_packet(key, bytes(65536))
        client.sync()
        assert relay.metrics()["fastderp_backlog_bytes"] > 1 << 20
        remove(relay, key, forwarder)
        relay.call(forwarder.gate.set)
        eventually(lambda: len(forwarder.packets) == 40)
    assert relay.metrics()["fastderp_packets_forwarded_lost_total"] == 0


def test_a_removed_forwarder_is_freed(
    relay: Relay, key: NodePublic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastderp.server.mesh.forwarders.LINGER_S", 0.01)
    forwarder = Collector()
    is_there = weakref.ref(forwarder)
    add(relay, key, forwarder)
    remove(relay, key, forwarder)
    del forwarder
    eventually(lambda: gc.collect() >= 0 and is_there() is None)


def test_a_forwarder_that_fails_loses_only_that_packet(
    relay: Relay, key: NodePublic, caplog: pytest.LogCaptureFixture
) -> None:
    class Moody(Collector):
        def forward_packet(self, source: NodePublic, destination: NodePublic, data: bytes) -> None:
            if data == b"bad":
                raise RuntimeError("not this one")
            super().forward_packet(source, destination, data)

    caplog.set_level("INFO", "fastderp")
    forwarder = Moody()
    add(relay, key, forwarder)
    with relay.login() as client:
        client.send_packet(key, b"bad")
        sent(client, key, b"good", forwarder)
    assert "a packet forwarder failed: not this one" in caplog.text


def test_a_slow_forwarder_delays_no_client(relay: Relay, key: NodePublic) -> None:
    class Slow:
        def __init__(self) -> None:
            self.is_busy = threading.Event()

        async def forward_packet(
            self, source: NodePublic, destination: NodePublic, data: bytes
        ) -> None:
            self.is_busy.set()
            await asyncio.Event().wait()

    forwarder = Slow()
    add(relay, key, forwarder)
    with relay.login() as client, relay.login() as other:
        for _ in range(300):
            client.send_packet(key, bytes(65536))
        client.send_packet(other.public, b"x")
        assert other.read_packet() == (client.public, b"x")
        assert forwarder.is_busy.wait(PATIENCE_S)
        assert relay.metrics()["fastderp_packets_forwarded_lost_total"] > 0
        assert relay.metrics()["fastderp_backlog_bytes"] < 8 << 20


def test_our_client_is_a_forwarder(start_relay: Callable[..., Relay], relay: Relay) -> None:
    secret = MeshKey.generate()
    elsewhere = start_relay(mesh_key=secret)

    async def client() -> HTTPClient:
        return HTTPClient(
            f"http://127.0.0.1:{elsewhere.port}/derp", NodePrivate.generate(), mesh_key=secret
        )

    forwarder = relay.run(client())
    with relay.login() as a, elsewhere.login() as b:
        add(relay, b.public, forwarder)
        a.send_packet(b.public, b"through a client")
        assert b.read_packet() == (a.public, b"through a client")
    relay.run(forwarder.close())
