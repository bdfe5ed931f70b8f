"""The relay answers as derper does, frame for frame."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from . import scripts
from .conftest import StartRelay
from .conversation import MESH_KEY_TEXT
from .deviations import DEVIATIONS, RATE_LIMIT
from .improvise import improvisations
from .oracle import Difference, Script, differences, greet

# The first build of the Go programs takes minutes and counts for the first test.
pytestmark = pytest.mark.timeout(600)

# the number and seed of random conversations, by environment variables
N_IMPROVISATIONS = int(os.environ.get("FASTDERP_TEST_IMPROVISATIONS", "500"))
FIRST_SEED = int(os.environ.get("FASTDERP_TEST_FIRST_SEED", "0"))

# without a mesh key on either side: clients that show one are ordinary clients for both
TABLES: dict[str, Callable[[], dict[str, Script]]] = {
    "frames of every type": scripts.frames_of_every_type,
    "logins": scripts.logins,
    "upgrades": scripts.upgrades,
    "behaviours": scripts.behaviours,
    "improvisations": lambda: improvisations(N_IMPROVISATIONS, FIRST_SEED, mesh_share=0),
}


@pytest.fixture
def mesh_psk(tmp_path: Path) -> str:
    """Return the flag that gives a relay the mesh key of the scripts."""
    path = tmp_path / "mesh.key"
    path.write_text(MESH_KEY_TEXT + "\n")
    return f"-mesh-psk-file={path}"


def report(found: list[Difference]) -> str:
    """Return the text of a failing test: the differences."""
    return "\n".join(str(difference) for difference in found[:10])


async def test_two_derpers_agree(start_derper: StartRelay, mesh_psk: str) -> None:
    """Check that the comparison is deterministic."""
    table = scripts.behaviours() | scripts.logins() | improvisations(50)
    async with start_derper(mesh_psk) as one, start_derper(mesh_psk) as other:
        found = await differences(await greet(one.port), await greet(other.port), table)
    assert not found, report(found)


async def test_the_comparison_finds_a_relay_without_the_mesh_key(
    start_derper: StartRelay, mesh_psk: str
) -> None:
    """Check that the comparison finds a difference."""
    names = ("packets to oneself", "forwarding", "a mesh peer closes others", "two watchers")
    table = {name: scripts.behaviours()[name] for name in names}
    async with start_derper(mesh_psk) as one, start_derper("-mesh-psk-file=") as other:
        found = await differences(await greet(one.port), await greet(other.port), table, names)
    assert [difference.conversation.name for difference in found] == list(names[1:])


@pytest.mark.parametrize("name", TABLES)
async def test_the_relay_answers_as_derper_does(
    start_derper: StartRelay, start_fastderp: StartRelay, name: str
) -> None:
    table = TABLES[name]()
    async with start_derper("-mesh-psk-file=") as derper, start_fastderp() as relay:
        found = await differences(
            await greet(derper.port), await greet(relay.port), table, DEVIATIONS
        )
    unforeseen = [
        difference for difference in found if difference.conversation.name not in DEVIATIONS
    ]
    assert not unforeseen, report(unforeseen)
    found_names = {difference.conversation.name for difference in found}
    assert found_names == DEVIATIONS.keys() & table.keys(), "deviations that are none any more"


async def test_only_fastderp_announces_the_rate_limit_to_clients(
    start_derper: StartRelay, start_fastderp: StartRelay, tmp_path: Path
) -> None:
    path = tmp_path / "rate.json"
    path.write_text('{"PerClientRateLimitBytesPerSec": 1000000}')
    table = {"a login": scripts.packets_to_oneself}
    async with (
        start_derper(f"-rate-config={path}") as derper,
        start_fastderp(f"-rate-config={path}") as relay,
    ):
        (found,) = await differences(
            await greet(derper.port), await greet(relay.port), table, table
        )
    only_ours = [line for line in found.other if line not in found.reference]
    only_theirs = [line for line in found.reference if line not in found.other]
    assert [("TokenBucketBytesPerSecond" in line, "ServerInfo" in line) for line in only_ours] == [
        (True, True)
    ], RATE_LIMIT
    assert len(only_theirs) == 1 and "ServerInfo" in only_theirs[0]
