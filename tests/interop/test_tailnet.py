"""Real tailscaleds of one tailnet that reach each other through fastderp only."""

import asyncio
import contextlib
import json
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fastderp import ConnectionLost, HTTPClient, NodePrivate, ServerInfo
from tests.kit.ports import free_ports

from .conftest import StartRelay
from .gokit import GoPrograms, TailnetPrograms
from .region import REGION_CODE, REGION_ID, running_region
from .relays import Relay
from .tailnet import CommandFailed, Node, running_tailnet

# The first build of the Go programs takes minutes and counts for the first test.
pytestmark = pytest.mark.timeout(600)

PATIENCE_S = 60.0
MEGABYTE = 1 << 20


def region_of(*nodes: dict[str, Any]) -> dict[str, Any]:
    return {"RegionID": REGION_ID, "RegionCode": REGION_CODE, "RegionName": "Test", "Nodes": nodes}


def pinned_node(relay: Relay) -> dict[str, Any]:
    """Return the DERPNode of a relay without a name, after the README."""
    return {
        "Name": f"{REGION_ID}a",
        "RegionID": REGION_ID,
        "HostName": relay.hostname,
        "CertName": relay.pin,
        "DERPPort": relay.port,
        "STUNPort": relay.stun_port,
    }


async def lets_in(relay: Relay, key: NodePrivate) -> bool:
    """Log in and return whether the relay answers with ServerInfo."""
    async with (
        HTTPClient(relay.url, key, cafile=relay.root, lazy=True) as client,
        asyncio.timeout(PATIENCE_S),
    ):
        try:
            return isinstance(await client.recv(), ServerInfo)
        except ConnectionLost:
            return False


def counted(relay: Relay, name: str) -> float:
    """Return a number of the relay's metrics page."""
    found = re.search(rf"^{name} (\S+)$", relay.metrics_page(), re.MULTILINE)
    assert found, f"no {name}"
    return float(found[1])


async def reaches(node: Node, other: Node) -> str:
    """Ping until a pong comes, and return its path."""
    address = await other.address()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(CommandFailed):
                said = await node.tailscale(
                    "ping", "--until-direct=false", "-c=1", "--timeout=1s", address
                )
                if found := re.search(r"^pong from .* via (\S+) in", said, re.MULTILINE):
                    return found[1]


async def at_home(node: Node) -> None:
    """Wait until a node has chosen the region as its home."""
    async with asyncio.timeout(PATIENCE_S):
        while (await node.status())["Self"]["Relay"] != REGION_CODE:
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """Run a TCP echo server in the block; yield the port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def check_data_passes(node: Node, other: Node) -> None:
    """Send a megabyte to a service of the other node and read it back."""
    data = secrets.token_bytes(MEGABYTE)
    async with echo() as port, node.running("nc", await other.address(), str(port)) as netcat:
        assert netcat.stdin is not None and netcat.stdout is not None
        netcat.stdin.write(data)
        assert await netcat.stdout.readexactly(len(data)) == data


async def check_connected(node: Node, other: Node) -> None:
    """Check that both reach each other through the region only."""
    assert [await reaches(node, other), await reaches(other, node)] == [f"DERP({REGION_CODE})"] * 2
    await check_data_passes(node, other)


async def test_a_tailnet_works_through_a_pinned_relay_that_admits_only_its_nodes(
    tailnet_programs: TailnetPrograms, fastderp_relay: Path, tmp_path: Path
) -> None:
    flags = ("-verify-clients", f"-socket={tmp_path / 'ann.sock'}")
    relay = Relay(fastderp_relay, tmp_path, *flags, tls=True, stun_port=free_ports(1)[0])
    try:
        await relay.start()
        async with running_tailnet(
            tailnet_programs, tmp_path, region_of(pinned_node(relay)), "ann", "bob"
        ) as tailnet:
            ann, bob = tailnet.nodes
            await tailnet.join(ann)
            await tailnet.join(bob)
            await check_connected(ann, bob)
            await at_home(ann)
            await at_home(bob)
            assert not await lets_in(relay, NodePrivate.generate())
            assert "Nearest DERP: Test" in await ann.tailscale("netcheck")

            await relay.kill()
            await relay.start()
            await check_connected(ann, bob)
    finally:
        await relay.stop()


async def check_doctor_finds_nothing(node: Node, n_relays: int) -> None:
    """Check that `tailscale debug derp` passes with every relay, except for IPv6."""
    report = json.loads(await node.tailscale("debug", "derp", REGION_CODE))
    assert [error for error in report["Errors"] or [] if "over IPv6" not in error] == []
    for success in ("Successfully established a DERP connection", "returned IPv4 STUN response"):
        assert len([line for line in report["Info"] if success in line]) == n_relays


@pytest.mark.parametrize("kinds", ["ff", "df"])
async def test_nodes_on_different_relays_of_a_region_reach_each_other(
    tailnet_programs: TailnetPrograms,
    go_programs: GoPrograms,
    fastderp_relay: Path,
    tmp_path: Path,
    kinds: str,
) -> None:
    programs = {"d": go_programs.derper, "f": fastderp_relay}
    async with (
        running_region([programs[kind] for kind in kinds], tmp_path) as region,
        running_tailnet(
            tailnet_programs,
            tmp_path,
            json.loads(region.of_nodes(0, 1)),
            "ann",
            "bob",
            environment=region.environment,
        ) as tailnet,
    ):
        first, second = region.relays
        ann, bob = tailnet.nodes
        await first.kill()
        await tailnet.join(ann)
        await at_home(ann)
        await first.start()
        await tailnet.join(bob)
        await check_connected(ann, bob)
        for relay in (first, second):
            assert counted(relay, "derp_packets_forwarded_out") > 0
        await check_doctor_finds_nothing(ann, n_relays=2)


async def verdicts(relays: list[Relay], keys: list[NodePrivate]) -> list[list[bool]]:
    """Return for each relay the keys that it admits."""
    return [[await lets_in(relay, key) for key in keys] for relay in relays]


async def test_derper_and_fastderp_admit_the_same_keys_by_tailscaled(
    tailnet_programs: TailnetPrograms,
    start_derper: StartRelay,
    start_fastderp: StartRelay,
    tmp_path: Path,
) -> None:
    flags = ("-verify-clients", f"-socket={tmp_path / 'ann.sock'}")
    async with (
        start_derper(*flags) as derper,
        start_fastderp(*flags) as relay,
        running_tailnet(tailnet_programs, tmp_path, region_of(), "ann", "bob", "cid") as tailnet,
    ):

        async def both_let_in(*nodes: Node) -> list[bool]:
            """Return for the nodes, then a stranger, whether both relays admit them."""
            keys = [node.private_key() for node in nodes] + [NodePrivate.generate()]
            theirs, ours = [[await lets_in(each, key) for key in keys] for each in (derper, relay)]
            assert ours == theirs
            return ours

        ann, bob, cid = tailnet.nodes
        assert await both_let_in() == [False], "no tailscaled to ask"
        await ann.start()
        assert await both_let_in() == [False], "logged out"
        await tailnet.join(bob)
        await tailnet.join(cid)
        await ann.log_in(tailnet.control_url)
        assert await both_let_in(ann, bob) == [True, True, False]
        await ann.tailscale("down")
        assert await both_let_in(ann, bob) == [True, True, False], (
            "down, and knows its tailnet still"
        )
        await ann.kill()
        # fastderp caches the answers for the earlier keys for some seconds.
        assert await both_let_in(cid) == [False, False], "the tailscaled has ended"
