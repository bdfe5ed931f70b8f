"""`fastderp.testing`: a relay for the tests of programs."""

import asyncio

import pytest

import fastderp.testing
from fastderp import ConnectionState, MeshKey, NodePrivate, RateLimit, ReceivedPacket, ServerInfo
from fastderp.errors import DialError


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
async def test_clients_of_a_local_relay_exchange_packets(tls: bool) -> None:
    async with (
        fastderp.testing.relay(tls=tls) as relay,
        relay.client() as ann,
        relay.client() as bob,
    ):
        assert ann.server_public_key == relay.public_key == relay.server.public_key
        await ann.send(bob.public_key, b"hello")
        assert await bob.recv() == ServerInfo()
        assert await bob.recv() == ReceivedPacket(ann.public_key, b"hello")


async def test_a_local_relay_accepts_a_servers_arguments() -> None:
    key, secret = NodePrivate.generate(), MeshKey.generate()
    limit = RateLimit(100_000, 100_000)
    async with (
        fastderp.testing.relay(private_key=key, mesh_key=secret, rate_limit=limit) as relay,
        relay.client() as client,
    ):
        assert relay.public_key == key.public_key
        assert relay.server.mesh_key == secret
        assert client.server_public_key == key.public_key


async def test_a_restarted_relay_keeps_its_key_and_address() -> None:
    async with fastderp.testing.relay() as relay, relay.client(reconnect=True) as client:
        url, key = relay.url, relay.public_key
        await relay.stop()
        with pytest.raises(RuntimeError, match="stopped"):
            _ = relay.server
        with pytest.raises(DialError):
            await relay.client().connect()
        await relay.start()
        async with asyncio.timeout(10):
            while await client.recv_with_generation() != (ServerInfo(), 2):
                pass
        assert client.state is ConnectionState.CONNECTED
        assert (relay.url, relay.public_key) == (url, key)
        await relay.restart()
        async with asyncio.timeout(10):
            assert await client.recv_with_generation() == (ServerInfo(), 3)


async def test_a_local_relay_has_no_url_before_its_first_start() -> None:
    relay = fastderp.testing.LocalRelay()
    with pytest.raises(RuntimeError, match="never started"):
        relay.client()
    await relay.start()
    url = relay.url
    await relay.stop()
    assert relay.url == url


async def test_a_local_relay_leaves_nothing_behind() -> None:
    before = asyncio.all_tasks()
    async with fastderp.testing.relay() as relay:
        pass
    await relay.stop()
    assert asyncio.all_tasks() == before
