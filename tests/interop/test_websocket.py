"""WebSockets: tailscale's browser client at fastderp, ours at derper and fastderp."""

import asyncio
import secrets
from dataclasses import asdict
from pathlib import Path

import pytest

from fastderp import (
    ConnectionClosed,
    ConnectionLost,
    HTTPClient,
    NodePrivate,
    PeerGone,
    PeerGoneReason,
    ReceivedPacket,
    ServerInfo,
)
from fastderp.wire.protocol import MAX_PACKET_SIZE

from .conftest import StartRelay
from .exchange import Terms
from .gokit import GoClient, GoPrograms, plain_environment
from .relays import Relay, Transport

# The first build of the Go programs takes minutes and counts for the first test.
pytestmark = pytest.mark.timeout(600)

EVERY_SIZE = Terms(packets=2000, max_size=65536, window=16, seed=7)


def websocket_environment(relay: Relay) -> dict[str, str]:
    """Return the environment in which a Go client opens a WebSocket and trusts the relay."""
    trust = {"SSL_CERT_FILE": str(relay.root)} if relay.root else {}
    return plain_environment(TS_DEBUG_DERP_WS_CLIENT="1", **trust)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
async def test_a_go_client_over_websocket_and_one_without_exchange_packets(
    go_programs: GoPrograms, start_fastderp: StartRelay, tls: bool
) -> None:
    async with start_fastderp(tls=tls) as relay:
        flags = relay.go_flags(Transport.FAST_START if tls else Transport.PLAIN)
        async with (
            await GoClient.start(
                go_programs.derpkit, *flags, environment=websocket_environment(relay)
            ) as a,
            await GoClient.start(go_programs.derpkit, *flags) as b,
        ):
            b.begin("exchange", peer=a.key, answer=True, **asdict(EVERY_SIZE))
            await b.next("armed")
            done = await a.do("exchange", 100, peer=b.key, **asdict(EVERY_SIZE))
            answered = await b.finish(100)
            assert done["result"]["packets"] == answered["result"]["packets"] == EVERY_SIZE.packets
            assert "\nderp_websocket_accepts 1\n" in relay.metrics_page()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("kind", ["derper", "fastderp"])
async def test_our_client_over_websocket_and_one_without_exchange_packets(
    start_each_derper: StartRelay, start_fastderp: StartRelay, kind: str, tls: bool
) -> None:
    async with {"derper": start_each_derper, "fastderp": start_fastderp}[kind](tls=tls) as relay:
        inside = HTTPClient(
            relay.url.replace("http", "ws", 1), NodePrivate.generate(), cafile=relay.root
        )
        outside = HTTPClient(relay.url, NodePrivate.generate(), cafile=relay.root)
        async with inside, outside, asyncio.timeout(60):
            assert await inside.recv() == await outside.recv() == ServerInfo()
            for size in (0, 1, 1400, 16384, MAX_PACKET_SIZE):
                data = secrets.token_bytes(size)
                await inside.send(outside.public_key, data)
                assert await outside.recv() == ReceivedPacket(inside.public_key, data)
                await outside.send(inside.public_key, data)
                assert await inside.recv() == ReceivedPacket(outside.public_key, data)
            await inside.close()
            assert await outside.recv() == PeerGone(inside.public_key, PeerGoneReason.DISCONNECTED)
        assert "\nderp_websocket_accepts 1\n" in relay.metrics_page()


@pytest.mark.parametrize("kind", ["derper", "fastderp"])
async def test_our_client_reports_every_end_over_websocket_as_without(
    start_each_derper: StartRelay, start_fastderp: StartRelay, tmp_path: Path, kind: str
) -> None:
    start = {"derper": start_each_derper, "fastderp": start_fastderp}[kind]
    async with start("-verify-clients", f"-socket={tmp_path / 'absent'}") as relay:
        async with HTTPClient(
            relay.url.replace("http", "ws", 1), NodePrivate.generate(), lazy=True
        ) as stranger:
            with pytest.raises(ConnectionLost, match="instead of accepting the login"):
                await asyncio.wait_for(stranger.recv(), 20)
    async with (
        start() as relay,
        HTTPClient(relay.url.replace("http", "ws", 1), NodePrivate.generate()) as client,
    ):
        assert await client.recv() == ServerInfo()
        await relay.kill()
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(client.recv(), 20)
        await relay.start()
        assert await client.recv_with_generation() == (ServerInfo(), 2)
        await client.forward_packet(client.public_key, client.public_key, b"")
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(client.recv(), 20)
