"""Two derper releases and two fastderp relays in one region, with a Go client at each."""

import asyncio
import itertools
import re
import ssl
import urllib.request
from pathlib import Path

import pytest

from .gokit import GoClient, GoPrograms
from .region import Region, running_region
from .test_region import a_client_on_each_node, derpprobe, every_probe

# The first build of the Go programs takes minutes and counts for the first test.
pytestmark = pytest.mark.timeout(600)

# the older derper, the newest one, and two of ours between them
MEMBERS = "dfnf"
# A relay that was down is dialled again after up to 5 s, which a busy machine may make longer.
TRUTH_WITHIN_S = 60.0
POLL_S = 0.2


@pytest.fixture
def programs(go_programs: GoPrograms, newest_derper: Path, fastderp_relay: Path) -> list[Path]:
    """Return a starter for each member: d(erper 1.98.9), n(ewest derper) or f(astderp)."""
    known = {"d": go_programs.derper, "n": newest_derper, "f": fastderp_relay}
    return [known[member] for member in MEMBERS]


def counts(region: Region, i: int) -> tuple[int, int]:
    """Return the number of keys that relay i can reach, and of relays linked to it."""
    trusting = ssl.create_default_context(cafile=str(region.root))
    url = f"https://localhost:{region.relays[i].port}/debug/varz"
    with urllib.request.urlopen(url, timeout=30, context=trusting) as answer:
        found = dict(
            re.findall(
                r"^derp_(clients_total|watchers) (\d+)$", answer.read().decode(), re.MULTILINE
            )
        )
    return int(found["clients_total"]), int(found["watchers"])


async def tables_are_true(region: Region, n_keys: int, running: list[int]) -> None:
    """Wait until the running relays are linked and each reaches `n_keys` keys, relays included."""
    wanted = [(n_keys, len(running) - 1)] * len(running)
    seen: list[tuple[int, int]] = []
    try:
        async with asyncio.timeout(TRUTH_WITHIN_S):
            while seen != wanted:
                await asyncio.sleep(POLL_S)
                seen = [await asyncio.to_thread(counts, region, i) for i in running]
    except TimeoutError:
        raise AssertionError(f"relays {running} have (keys, links) {seen}, not {wanted}") from None


async def every_direction(clients: list[GoClient]) -> None:
    """Send one packet from each client to each other one, and check that each arrives."""
    for sender, receiver in itertools.permutations(clients, 2):
        data = f"{sender.key} {receiver.key}".encode().hex()
        await sender.do("send", peer=receiver.key, data=data)
        packet = await receiver.next("packet")
        assert (packet["from"], packet["data"]) == (sender.key, data)


async def departure_of(client: str, seen_by: list[GoClient]) -> None:
    for witness in seen_by:
        gone = await witness.next("peer_gone")
        assert (gone["peer"], gone["reason"]) == (client, 0)


async def test_clients_of_every_relay_reach_each_other_and_get_departures(
    go_programs: GoPrograms, programs: list[Path], tmp_path: Path
) -> None:
    everyone = list(range(len(programs)))
    async with running_region(programs, tmp_path) as region:
        async with a_client_on_each_node(go_programs, region) as clients:
            await tables_are_true(region, 8, everyone)
            await every_direction(clients)
            for n_left, leaving in enumerate(clients[:2]):
                await leaving.close()
                await departure_of(leaving.key, clients[n_left + 1 :])
                await tables_are_true(region, 7 - n_left, everyone)
            await every_direction(clients[2:])
        await tables_are_true(region, 4, everyone)


@pytest.mark.parametrize("victim", [0, 1], ids=["derper", "fastderp"])
async def test_the_region_survives_a_relay_that_is_killed_and_started_again(
    go_programs: GoPrograms, programs: list[Path], tmp_path: Path, victim: int
) -> None:
    everyone = list(range(len(programs)))
    survivors = [i for i in everyone if i != victim]
    async with (
        running_region(programs, tmp_path) as region,
        a_client_on_each_node(go_programs, region) as clients,
    ):
        await tables_are_true(region, 8, everyone)
        await every_direction(clients)
        await region.relays[victim].kill()
        await departure_of(clients[victim].key, [clients[i] for i in survivors])
        await tables_are_true(region, 6, survivors)
        await every_direction([clients[i] for i in survivors])
        await region.relays[victim].start()
        await clients[victim].next("ready")
        await tables_are_true(region, 8, everyone)
        await every_direction(clients)


async def test_derpprobe_finds_every_relay_and_every_pair_good(
    go_programs: GoPrograms, programs: list[Path], tmp_path: Path
) -> None:
    async with running_region(programs, tmp_path) as region:
        await tables_are_true(region, 4, list(range(len(programs))))
        expected = dict.fromkeys(every_probe(region), "good")
        # A probe sends at once. On a busy machine the sender's relay may learn only later that the
        # receiver is at another one, so another round may be needed, with derpers as well.
        for _ in range(3):
            if (found := await derpprobe(go_programs, region)) == expected:
                break
        assert found == expected
