"""A region of relays, tested with tailscale's programs."""

import asyncio
import itertools
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from .gokit import GoClient, GoError, GoPrograms
from .region import REGION_CODE, Region, running_region

# The first build of the Go programs takes minutes and counts for the first test.
pytestmark = pytest.mark.timeout(600)

PROBE_TIMEOUT_S = 60.0
# derper dials the members of its region again after 5 s.
REACH_TIMEOUT_S = 60.0
RESEND_S = 0.2


@pytest.fixture
def programs(go_programs: GoPrograms, newest_derper: Path, fastderp_relay: Path) -> dict[str, Path]:
    """Return the starters by letter: d(erper 1.98.9), n(ewest derper), f(astderp)."""
    return {"d": go_programs.derper, "n": newest_derper, "f": fastderp_relay}


async def derpprobe(go: GoPrograms, region: Region) -> dict[str, str]:
    """Run derpprobe once; return its probes, each with its failure or "good"."""
    process = await asyncio.create_subprocess_exec(
        go.derpprobe,
        "-once",
        "-spread=false",
        "-bw-interval=1s",
        f"-derp-map={region.write_derp_map()}",
        f"-mesh-psk-file={region.mesh_psk}",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=region.environment,
    )
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found = re.findall(r"^\S+ \S+ (good|bad): (.+?): (.*)$", said.decode(), re.MULTILINE)
    return {probe: "good" if verdict == "good" else result for verdict, probe, result in found}


def every_probe(region: Region) -> set[str]:
    """Return the names of derpprobe's probes of a region."""
    nodes = [str(region.node(i)["Name"]) for i in range(len(region.relays))]
    here = f"derp/{REGION_CODE}"
    single = {f"{here}/{node}/{kind}" for node in nodes for kind in ("tls", "udp")}
    pairs = {
        f"{here}/{a}/{b}/{kind}"
        for a, b in itertools.product(nodes, nodes)
        for kind in ("mesh", "bw")
    }
    return {"derpmap-probe"} | single | pairs


@asynccontextmanager
async def a_client_on_each_node(go: GoPrograms, region: Region) -> AsyncIterator[list[GoClient]]:
    """Log one Go client in at every relay; each reconnects by itself when its relay restarts."""
    async with AsyncExitStack() as stack:
        clients: list[GoClient] = []
        for i in range(len(region.relays)):
            flags = ("-region", region.of_nodes(i), "-reconnect")
            client = await GoClient.start(go.derpkit, *flags, environment=region.environment)
            clients.append(await stack.enter_async_context(client))
        yield clients


async def reach(sender: GoClient, receiver: GoClient) -> None:
    """Send until a packet arrives: a new client takes a moment to be known in the region."""
    async with asyncio.timeout(REACH_TIMEOUT_S):
        while True:
            await sender.do("send", peer=receiver.key, data=b"from far away".hex())
            try:
                packet = await receiver.next("packet", RESEND_S)
            except GoError:
                continue
            if packet["from"] == sender.key:
                return


async def reach_each_other(clients: list[GoClient]) -> None:
    """Check that each client reaches each other one."""
    for sender, receiver in itertools.permutations(clients, 2):
        await reach(sender, receiver)


@pytest.mark.parametrize("members", ["f"])
async def test_derpprobe_finds_everything_good(
    go_programs: GoPrograms, programs: dict[str, Path], tmp_path: Path, members: str
) -> None:
    async with running_region([programs[member] for member in members], tmp_path) as region:
        async with a_client_on_each_node(go_programs, region) as clients:
            await reach_each_other(clients)
        assert await derpprobe(go_programs, region) == dict.fromkeys(every_probe(region), "good")


@pytest.mark.parametrize("members", ["dd", "nf"])
async def test_clients_reach_each_other_across_nodes_and_get_departures(
    go_programs: GoPrograms, programs: dict[str, Path], tmp_path: Path, members: str
) -> None:
    async with running_region([programs[member] for member in members], tmp_path) as region:
        async with a_client_on_each_node(go_programs, region) as clients:
            await reach_each_other(clients)
            leaving, *staying = clients
            await leaving.close()
            for client in staying:
                gone = await client.next("peer_gone")
                assert (gone["peer"], gone["reason"]) == (leaving.key, 0)


@pytest.mark.parametrize("members", ["dd", "nf"])
async def test_a_killed_node_rejoins_its_region(
    go_programs: GoPrograms, programs: dict[str, Path], tmp_path: Path, members: str
) -> None:
    async with running_region([programs[member] for member in members], tmp_path) as region:
        async with a_client_on_each_node(go_programs, region) as clients:
            await reach_each_other(clients)
            await region.relays[0].kill()
            await clients[0].next("broken")
            await region.relays[0].start()
            await clients[0].next("ready")
            await reach_each_other(clients)


async def test_a_go_client_gets_the_restart_notice_and_reconnects(
    go_programs: GoPrograms, programs: dict[str, Path], tmp_path: Path
) -> None:
    async with running_region([programs["f"]], tmp_path) as region:
        async with a_client_on_each_node(go_programs, region) as (client,):
            await region.relays[0].stop()
            told = await client.next("restarting")
            # within the default of -drain-time
            assert 0 <= told["reconnect_in_s"] <= 10 and told["try_for_s"] >= 5
            await client.next("broken")
            await region.relays[0].start()
            await client.next("ready")
