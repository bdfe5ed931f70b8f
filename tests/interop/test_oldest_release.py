"""tailscale's client and relay of release 1.32.0, at fastderp and with our client (PROTOCOL §18)."""

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from fastderp import (
    HTTPClient,
    MeshKey,
    NodePrivate,
    PeerGone,
    PeerGoneReason,
    PeerPresent,
    ReceivedPacket,
    ServerInfo,
)
from fastderp.wire.protocol import MAX_PACKET_SIZE

from .conftest import StartRelay
from .gokit import GoClient, GoError, OldestPrograms, plain_environment
from .relays import Relay, running

# The first build of the Go programs takes minutes and counts for the first test.
pytestmark = pytest.mark.timeout(600)

MESH_KEY = MeshKey.generate()
SIZES = (0, 1, 1400, MAX_PACKET_SIZE)


@pytest.fixture
def mesh_psk(tmp_path: Path) -> str:
    """Return the flag that gives a relay the mesh key."""
    path = tmp_path / "mesh.key"
    path.write_text(MESH_KEY.text)
    return f"-mesh-psk-file={path}"


@asynccontextmanager
async def old_clients(
    programs: OldestPrograms, relay: Relay, n: int, *flags: str
) -> AsyncIterator[list[GoClient]]:
    """Log clients of 1.32.0 in. Over TLS they dial a region: by URL they verify a wrong name."""
    where = ("-url", relay.url)
    environment = plain_environment()
    if relay.root is not None:
        node = {
            "Name": "900a",
            "RegionID": 900,
            "HostName": relay.hostname,
            "IPv6": "none",
            "DERPPort": relay.port,
        }
        where = ("-region", json.dumps({"RegionID": 900, "Nodes": [node]}))
        environment["SSL_CERT_FILE"] = str(relay.root)
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                await GoClient.start(programs.oldkit, *where, *flags, environment=environment)
            )
            for _ in range(n)
        ]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
async def test_old_clients_exchange_packets_and_get_departures(
    oldest_programs: OldestPrograms, start_fastderp: StartRelay, tls: bool
) -> None:
    async with (
        start_fastderp(tls=tls) as relay,
        old_clients(oldest_programs, relay, 2) as (ann, bob),
    ):
        for sender, receiver in ((ann, bob), (bob, ann)):
            for size in SIZES:
                data = bytes(size)
                await sender.do("send", peer=receiver.key, data=data.hex())
                packet = await receiver.next("packet")
                assert (packet["from"], packet["sha256"]) == (
                    sender.key,
                    hashlib.sha256(data).hexdigest(),
                )
            await sender.do("ping")
        await ann.close()
        assert (await bob.next("peer_gone"))["peer"] == ann.key


async def test_an_old_mesh_peer_watches_forwards_and_closes(
    oldest_programs: OldestPrograms, start_fastderp: StartRelay, mesh_psk: str
) -> None:
    privileged = ("-mesh-key", MESH_KEY.text, "-watch")
    async with (
        start_fastderp(mesh_psk) as relay,
        old_clients(oldest_programs, relay, 1) as (ann,),
        old_clients(oldest_programs, relay, 1, *privileged) as (mesh,),
    ):
        present = {(await mesh.next("peer_present"))["peer"] for _ in range(2)}
        assert present == {ann.key, mesh.key}
        await mesh.do("forward", **{"from": mesh.key}, peer=ann.key, data=b"from afar".hex())
        assert (await ann.next("packet"))["from"] == mesh.key
        await mesh.do("close_peer", peer=ann.key)
        assert (await mesh.next("peer_gone"))["peer"] == ann.key
        await ann.next("broken")
        with pytest.raises(GoError):
            async with old_clients(oldest_programs, relay, 1, "-mesh-key", "00" * 32, "-watch") as (
                stranger,
            ):
                await stranger.next("peer_present")


async def test_our_client_works_with_the_old_relay(
    oldest_programs: OldestPrograms, mesh_psk: str, tmp_path: Path
) -> None:
    async with running(oldest_programs.derper, tmp_path, mesh_psk) as relay:
        ann = HTTPClient(relay.url, NodePrivate.generate())
        bob = HTTPClient(relay.url.replace("http", "ws", 1), NodePrivate.generate())
        mesh = HTTPClient(relay.url, NodePrivate.generate(), mesh_key=MESH_KEY)
        async with ann, bob, mesh:
            for client in (ann, bob, mesh):
                assert await client.recv() == ServerInfo()
            for size in SIZES:
                await ann.send(bob.public_key, bytes(size))
                assert await bob.recv() == ReceivedPacket(ann.public_key, bytes(size))
            assert await ann.ping() >= 0
            # This release sends neither addresses nor flags, and no reason of a departure.
            await mesh.watch_connection_changes()
            present = {await mesh.recv() for _ in range(3)}
            assert present == {PeerPresent(client.public_key) for client in (ann, bob, mesh)}
            await mesh.forward_packet(mesh.public_key, bob.public_key, b"from afar")
            assert await bob.recv() == ReceivedPacket(mesh.public_key, b"from afar")
            await ann.close()
            gone = PeerGone(ann.public_key, PeerGoneReason.DISCONNECTED)
            assert [await bob.recv(), await mesh.recv()] == [gone, gone]
