"""fastderp's client library against the real derper (PROTOCOL 4, 6, 7 and 13)."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fastderp import (
    Client,
    ConnectionClosed,
    ConnectionLost,
    DerpError,
    DerpNode,
    DerpRegion,
    DialError,
    HTTPClient,
    MeshKey,
    NodePrivate,
    NodePublic,
    PeerGone,
    PeerGoneReason,
    PeerPresent,
    PeerPresentFlags,
    Pong,
    ReceivedPacket,
    ServerInfo,
    run_watch_connection_loop,
)
from fastderp.net.stream import Stream
from fastderp.net.upgrade import upgrade
from fastderp.wire.protocol import MAX_PACKET_SIZE
from tests.kit.ports import free_ports

from .conftest import StartRelay
from .relays import Relay

pytestmark = pytest.mark.timeout(600)

T = TypeVar("T")
DISCO_MAGIC = b"TS\xf0\x9f\x92\xac"
# derper may be silent for a minute; expected frames come at once.
PATIENCE_S = 30.0


@pytest.fixture
async def relay(start_each_derper: StartRelay) -> AsyncIterator[Relay]:
    async with start_each_derper() as relay:
        yield relay


@asynccontextmanager
async def logged_in(
    relay: Relay, key: NodePrivate | None = None, **options: Any
) -> AsyncIterator[HTTPClient]:
    """Yield a client whose login the relay has answered."""
    options = {"cafile": relay.root, "control_messages": True} | options
    async with HTTPClient(relay.url, key or NodePrivate.generate(), **options) as client:
        assert await client.recv() == ServerInfo()
        yield client


async def next_of(client: HTTPClient | Client, kind: type[T]) -> T:
    async with asyncio.timeout(PATIENCE_S):
        while not isinstance(message := await client.recv(), kind):
            pass
        return message


async def test_packets_of_any_size_arrive_with_their_source(relay: Relay) -> None:
    async with logged_in(relay) as alice, logged_in(relay) as bob:
        for size in (0, 1, 1400, MAX_PACKET_SIZE):
            data = secrets.token_bytes(size)
            await alice.send(bob.public_key, data)
            assert await next_of(bob, ReceivedPacket) == ReceivedPacket(alice.public_key, data)
        await alice.send(alice.public_key, b"to myself")
        assert await next_of(alice, ReceivedPacket) == ReceivedPacket(
            alice.public_key, b"to myself"
        )


async def test_pings_are_answered(relay: Relay) -> None:
    async with logged_in(relay) as client:
        receiving = asyncio.create_task(next_of(client, Pong))
        assert 0 <= await client.ping() < PATIENCE_S
        assert max(await asyncio.gather(*(client.ping() for _ in range(5)))) < PATIENCE_S
        await client.send_ping(b"12345678")
        assert await receiving == Pong(b"12345678")


async def test_departures_and_absent_peers_are_reported(relay: Relay) -> None:
    async with logged_in(relay) as stays:
        async with logged_in(relay) as leaves:
            await leaves.send(stays.public_key, b"hello")
            assert (await next_of(stays, ReceivedPacket)).source == leaves.public_key
        assert await next_of(stays, PeerGone) == PeerGone(
            leaves.public_key, PeerGoneReason.DISCONNECTED
        )
        await stays.send(leaves.public_key, DISCO_MAGIC + bytes(56))
        assert await next_of(stays, PeerGone) == PeerGone(
            leaves.public_key, PeerGoneReason.NOT_HERE
        )


async def test_the_last_sender_of_a_key_gets_its_packets(relay: Relay) -> None:
    key = NodePrivate.generate()
    async with logged_in(relay) as peer, logged_in(relay, key) as old, logged_in(relay, key) as new:
        for active in (new, old):
            await active.send(active.public_key, b"here I am")
            assert (await next_of(active, ReceivedPacket)).data == b"here I am"
            await peer.send(key.public_key, b"hello")
            assert (await next_of(active, ReceivedPacket)).source == peer.public_key


async def test_tls_by_root_by_pin_and_not_without(start_each_derper: StartRelay) -> None:
    async with start_each_derper(tls=True) as relay:
        async with logged_in(relay) as client:
            await client.note_preferred(True)
        async with HTTPClient(relay.url, NodePrivate.generate(), lazy=True) as stranger:
            with pytest.raises(
                DialError, match=r"self-signed|unable to get local issuer certificate"
            ):
                await stranger.connect()
        node = DerpNode(
            "900a", 900, "127.0.0.1", cert_name=relay.pin, ipv6="none", derp_port=relay.port
        )
        region = DerpRegion(900, "test", nodes=(node,))
        async with HTTPClient.for_region(lambda: region, NodePrivate.generate()) as client:
            assert await client.recv() == ServerInfo()


async def test_client_over_streams_of_the_callers_own(relay: Relay) -> None:
    stream = Stream(*await asyncio.open_connection("127.0.0.1", relay.port))
    await upgrade(stream, host="derp.example", path="/derp")
    async with await Client.handshake(stream, NodePrivate.generate(), can_ack_pings=True) as client:
        assert await client.recv() == ServerInfo()
        await client.send(client.public_key, b"hello")
        assert await next_of(client, ReceivedPacket) == ReceivedPacket(client.public_key, b"hello")


async def test_a_wrong_path_shows_the_relays_answer(relay: Relay) -> None:
    async with HTTPClient(relay.url + "/nope", NodePrivate.generate(), lazy=True) as client:
        with pytest.raises(DialError, match="200 OK"):
            await client.connect()


async def test_privileged_requests_of_ordinary_clients_close_them(relay: Relay) -> None:
    peer = NodePublic(b"\1" * 32)
    requests: tuple[Callable[[HTTPClient], Awaitable[None]], ...] = (
        lambda client: client.watch_connection_changes(),
        lambda client: client.close_peer(peer),
        lambda client: client.forward_packet(peer, peer, b"data"),
    )
    for request in requests:
        async with logged_in(relay, mesh_key=MeshKey.generate()) as client:
            await request(client)
            with pytest.raises(ConnectionClosed):
                await next_of(client, PeerGone)


@pytest.fixture
def mesh_key(tmp_path: Path) -> tuple[MeshKey, Path]:
    key, path = MeshKey.generate(), tmp_path / "mesh.key"
    path.write_text(key.text + "\n")
    return key, path


async def test_mesh_peers_watch_forward_and_close(
    start_each_derper: StartRelay, mesh_key: tuple[MeshKey, Path]
) -> None:
    key, path = mesh_key
    async with (
        start_each_derper(f"-mesh-psk-file={path}") as relay,
        logged_in(relay, mesh_key=key) as mesh,
    ):
        await mesh.watch_connection_changes()
        itself = await next_of(mesh, PeerPresent)
        assert (itself.key, itself.flags) == (mesh.public_key, PeerPresentFlags.MESH_PEER)
        async with logged_in(relay, is_prober=True) as client:
            seen = await next_of(mesh, PeerPresent)
            assert seen == PeerPresent(
                client.public_key, seen.ip, client.local_addr[1], PeerPresentFlags.PROBER
            )
            assert str(seen.ip) == client.local_addr[0]
            source = NodePublic(b"\7" * 32)
            await mesh.forward_packet(source, client.public_key, b"from afar")
            assert await next_of(client, ReceivedPacket) == ReceivedPacket(source, b"from afar")
            await mesh.close_peer(client.public_key)
            with pytest.raises(ConnectionClosed):
                await next_of(client, PeerGone)
        assert await next_of(mesh, PeerGone) == PeerGone(
            client.public_key, PeerGoneReason.DISCONNECTED
        )


class MovingRegion:
    """A region with one relay that restarts on another port each time."""

    def __init__(self) -> None:
        self.port = free_ports(1)[0]  # closed until the first start

    def __call__(self) -> DerpRegion:
        return DerpRegion(900, nodes=(DerpNode("900a", 900, "127.0.0.1", derp_port=self.port),))


async def test_watch_loop_finds_a_restarted_relay(
    start_each_derper: StartRelay, mesh_key: tuple[MeshKey, Path]
) -> None:
    key, path = mesh_key
    region = MovingRegion()
    reports: asyncio.Queue[PeerPresent | PeerGone | DerpError] = asyncio.Queue()
    watcher = HTTPClient.for_region(region, NodePrivate.generate(), use_tls=False, mesh_key=key)
    loop = asyncio.create_task(
        run_watch_connection_loop(
            watcher,
            on_present=reports.put_nowait,
            on_gone=reports.put_nowait,
            on_error=reports.put_nowait,
            retry_s=0.05,
        )
    )
    for _start in range(2):
        async with (
            start_each_derper(f"-mesh-psk-file={path}") as relay,
            asyncio.timeout(PATIENCE_S),
        ):
            region.port = relay.port
            while not isinstance(report := await reports.get(), PeerPresent):
                assert isinstance(report, DialError)
            assert report.key == watcher.public_key
        async with asyncio.timeout(PATIENCE_S):
            assert await reports.get() == PeerGone(
                watcher.public_key, PeerGoneReason.MESH_LINK_BROKEN
            )
            assert isinstance(await reports.get(), ConnectionClosed)
    await watcher.close()
    await loop


async def test_restarted_relay_is_reached_by_the_next_call(start_each_derper: StartRelay) -> None:
    region = MovingRegion()
    async with HTTPClient.for_region(
        region, NodePrivate.generate(), use_tls=False, lazy=True
    ) as client:
        for generation in (1, 2):
            async with start_each_derper() as relay:
                region.port = relay.port
                assert await client.recv_with_generation() == (ServerInfo(), generation)
            with pytest.raises(ConnectionClosed):
                await next_of(client, PeerGone)
        with pytest.raises(DialError, match="refused"):
            await client.recv()


async def test_relay_with_another_key_than_the_known_one_refuses_the_login(relay: Relay) -> None:
    stream = Stream(*await asyncio.open_connection("127.0.0.1", relay.port))
    await upgrade(stream, host="derp.example", path="/derp", fast_start=True)
    wrong = NodePrivate.generate().public_key
    async with await Client.handshake(
        stream, NodePrivate.generate(), server_public_key=wrong
    ) as client:
        with pytest.raises(ConnectionLost, match="instead of accepting the login"):
            await client.recv()
