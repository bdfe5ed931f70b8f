"""The relay's API and its view of clients. ARCHITECTURE §8, PROTOCOL §16 lines 18 and 26."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fastderp import MeshKey, NodePrivate, NodePublic, Server
from fastderp.wire.login import ClientInfo
from tests.kit.peer import WATCH
from tests.kit.relay import Relay, eventually

StartRelay = Callable[..., Relay]


def test_only_the_relays_own_mesh_key_makes_a_mesh_peer(start_relay: StartRelay) -> None:
    secret = MeshKey.generate()
    relay = start_relay(mesh_key=secret)
    for shown, welcome in ((secret, True), (MeshKey.generate(), False), (MeshKey(), False)):
        with relay.connect() as peer:
            peer.login(relay.server.public_key, json=b'{"meshKey":"%s"}' % shown.text.encode())
            peer.send_frame(WATCH)
            if welcome:
                peer.sync()
            else:
                assert peer.is_closed()


def test_duplicate_gauges_return_to_zero_when_one_connection_is_left(
    start_relay: StartRelay,
) -> None:
    relay = start_relay()
    key = NodePrivate.generate()

    def gauges() -> tuple[object, ...]:
        metrics = relay.metrics()
        return (
            metrics["derp_current_dup_client_keys"],
            metrics["derp_current_dup_client_conns"],
            metrics["derp_clients_local"],
        )

    with relay.login() as sender, relay.login(key=key) as old:
        assert gauges() == (0, 0, 2)
        with relay.login(key=key):
            assert gauges() == (1, 2, 2)
        eventually(lambda: gauges() == (0, 0, 2))
        sender.send_packet(key.public_key, b"to who is left")
        while (received := old.read_frame())[0] != 5:
            pass
        assert received[1] == sender.public.raw + b"to who is left"
        assert relay.metrics()["derp_total_dup_client_conns"] == 1


def test_the_policy_for_shared_keys_can_be_chosen(start_relay: StartRelay) -> None:
    relay = start_relay(disable_fighters=True, duplicate_health=False)
    key = NodePrivate.generate()
    with relay.login() as sender, relay.login(key=key) as first, relay.login(key=key) as second:
        assert second.sync() == first.sync() == []
        sender.send_packet(key.public_key, b"to whom?")
        assert sender.sync() == first.sync() == second.sync() == []
        assert relay.metrics()["derp_packets_dropped"]["dup_client", "other"] == 1
        assert relay.call(relay.server.consistency_check) == []


def test_duplicates_are_consistent(start_relay: StartRelay) -> None:
    relay = start_relay()
    key = NodePrivate.generate()
    with relay.login(key=key), relay.login(key=key), relay.login():
        assert relay.call(relay.server.consistency_check) == []


def test_a_server_has_its_settings_as_attributes(start_relay: StartRelay) -> None:
    async def verify(key: NodePublic, info: ClientInfo, ip: str) -> bool:
        return True

    identity, secret = NodePrivate.generate(), MeshKey.generate()
    server = start_relay(
        private_key=identity, mesh_key=secret, verify=verify, write_timeout=3.5
    ).server
    assert (server.private_key, server.public_key) == (identity, identity.public_key)
    assert (server.mesh_key, server.has_mesh_key) == (secret, True)
    assert server.verify is verify
    assert server.write_timeout == 3.5
    server.write_timeout, server.login_timeout = 0.3, 4.5
    assert (server.write_timeout, server.login_timeout) == (0.3, 4.5)
    with pytest.raises(ValueError, match="write_timeout"):
        server.write_timeout = -1
    with pytest.raises(AttributeError):
        server.private_key = NodePrivate.generate()  # type: ignore[misc]
    assert isinstance(server, Server)
    assert not start_relay().server.has_mesh_key


def test_the_metacert_of_a_server_names_its_key(start_relay: StartRelay) -> None:
    server = start_relay().server
    assert f"derpkey{server.public_key.hex}".encode() in server.meta_cert


def test_expvar_has_the_names_of_the_reference(start_relay: StartRelay) -> None:
    relay = start_relay()
    with relay.login():
        tree = relay.call(relay.server.expvar)
    assert tree["gauge_current_connections"] == 1
    assert tree["accepts"] == 1
    assert tree["counter_packets_received_kind"] == {"disco": 0, "other": 0}
