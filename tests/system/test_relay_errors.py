"""Effects of a handler, task or call that fails on the rest. RELIABILITY F36."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import pytest

from fastderp.server.accept.connection import Connection
from fastderp.server.mesh import forwarders, links
from fastderp.server.mesh.links import LinkState
from fastderp.wire.keys import MeshKey, NodePrivate, NodePublic
from fastderp.wire.protocol import FrameType, frame
from tests.kit.relay import Relay, eventually

SECRET = MeshKey.generate()
MESH_PEER = b'{"meshKey":"%s","version":2}' % SECRET.text.encode()
StartRelay = Callable[..., Relay]


@pytest.fixture
def relay(start_relay: StartRelay) -> Relay:
    return start_relay(mesh_key=SECRET)


def failing(*_: object) -> None:
    raise OSError(errno.EMFILE, "Too many open files")


def internal_errors(relay: Relay, task: str) -> int:
    return int(relay.metrics()["fastderp_internal_errors_total"].get(task, 0))


def test_watchers_get_every_departure_although_its_log_line_fails(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_before = internal_errors(relay, "session end")
    with relay.login(json=MESH_PEER) as watcher:
        watcher.send(frame(FrameType.WATCH_CONNS))
        crowd = [relay.login() for _ in range(20)]
        eventually(lambda: relay.metrics()["derp_watchers"] == 1)
        monkeypatch.setattr("fastderp.server.observe.connection_log.address_text", failing)
        left = {peer.public.raw for peer in crowd}
        for peer in crowd:
            peer.close()
        while left:
            frame_type, payload = watcher.read_frame()
            if frame_type == FrameType.PEER_GONE:
                left.discard(payload[:32])
        eventually(lambda: internal_errors(relay, "session end") == n_before + 20)
        assert relay.call(relay.server.consistency_check) == []


def test_a_mesh_link_is_restored_although_another_handler_of_its_end_fails(
    relay: Relay, start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "FIRST_RETRY_S", 0.01)
    other = start_relay(mesh_key=SECRET)
    relay.call(relay.server.set_mesh_peers, [f"http://127.0.0.1:{other.port}/derp"])

    def is_up() -> bool:
        states = relay.metrics()["fastderp_mesh_links"]
        return any(value for (_, state), value in states.items() if state == LinkState.UP)

    eventually(is_up)
    region = relay.server._region
    monkeypatch.setattr(region.presence, "left", failing)
    monkeypatch.setattr(region.forwarders, "closed", failing)
    assert other.call(other.server._plane.close_key, relay.server.public_key.raw) == 1
    eventually(lambda: sum(relay.metrics()["fastderp_mesh_connects_total"].values()) == 2)
    eventually(is_up)


def test_a_peer_whose_request_meets_an_internal_error_is_disconnected_and_others_stay(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = relay.server._region
    with relay.login() as client, relay.login(json=MESH_PEER) as watcher:
        with monkeypatch.context() as patch:
            patch.setattr(region.presence, "watch", failing)
            watcher.send(frame(FrameType.WATCH_CONNS))
            assert watcher.is_closed()
        assert client.sync() == []


def test_a_forwarder_without_descriptors_gets_a_session_when_there_are_some(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Collector:
        def __init__(self) -> None:
            self.packets: list[bytes] = []

        def forward_packet(self, source: NodePublic, destination: NodePublic, data: bytes) -> None:
            self.packets.append(data)

    monkeypatch.setattr(forwarders, "RETRY_S", 0.01)
    key, forwarder = NodePrivate.generate().public_key, Collector()
    relay.call(relay.server.add_packet_forwarder, key, forwarder)
    region = relay.server._region
    refusals: list[int] = []
    pair = socket.socketpair

    def refuses_thrice() -> tuple[socket.socket, socket.socket]:
        if len(refusals) < 3:
            refusals.append(1)
            failing()
        return pair()

    with relay.login() as client:
        [carrier] = region.forwarders._carriers.values()
        monkeypatch.setattr("fastderp.server.mesh.forwarders.socket.socketpair", refuses_thrice)
        relay.call(relay.server._plane.close_session, carrier.handle)
        eventually(lambda: len(refusals) == 3 and region.forwarders._carriers)
        eventually(lambda: region.forwarders.keys == {key.raw})

        def arrives() -> bool:
            client.send_packet(key, b"again")
            return bool(forwarder.packets)

        eventually(arrives)
        assert relay.call(relay.server.consistency_check) == []


def test_a_connection_that_fails_at_the_end_of_the_relay_keeps_nothing_open(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = start_relay()
    with relay.connect() as first, relay.connect() as second, relay.login() as client:
        eventually(lambda: relay.metrics()["fastderp_connections_not_logged_in"] == 2)
        leave = Connection.leave

        def leave_with_error(connection: Connection) -> None:
            leave(connection)
            failing()

        monkeypatch.setattr(Connection, "leave", leave_with_error)
        relay.run(relay.server.close())
        for peer in (first, second, client):
            assert peer.is_closed()
