"""Whatever derper answers, frame for frame, the relay answers too."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from . import scripts
from .conftest import StartRelay
from .conversation import MESH_KEY_TEXT
from .improvise import improvisations
from .oracle import Difference, Script, differences, greet

# Building the Go programs for the first time takes minutes and counts for the first test.
pytestmark = pytest.mark.timeout(600)

# More of them, and others, on demand.
N_IMPROVISATIONS = int(os.environ.get("FASTDERP_IMPROVISATIONS", "500"))
FIRST_SEED = int(os.environ.get("FASTDERP_FIRST_SEED", "0"))


@pytest.fixture
def mesh_psk(tmp_path: Path) -> str:
    """Return the flag that gives a relay the mesh key of the scripts."""
    path = tmp_path / "mesh.key"
    path.write_text(MESH_KEY_TEXT + "\n")
    return f"-mesh-psk-file={path}"


def report(found: list[Difference]) -> str:
    """Return what differs, for a failing test."""
    return "\n".join(str(difference) for difference in found[:10])


async def test_two_derpers_agree(start_derper: StartRelay, mesh_psk: str) -> None:
    """Nothing in the comparison is left to chance."""
    table: Mapping[str, Script] = scripts.behaviours() | scripts.logins() | improvisations(50)
    async with start_derper(mesh_psk) as one, start_derper(mesh_psk) as other:
        found = await differences(await greet(one.port), await greet(other.port), table)
    assert not found, report(found)


async def test_a_relay_without_the_mesh_key_is_told_apart(start_derper: StartRelay, mesh_psk: str) -> None:
    """The comparison sees what it is there to see."""
    names = ("packets to oneself", "forwarding", "a mesh peer closes others", "two watchers")
    table = {name: scripts.behaviours()[name] for name in names}
    async with start_derper(mesh_psk) as one, start_derper("-mesh-psk-file=") as other:
        found = await differences(await greet(one.port), await greet(other.port), table)
    assert [difference.conversation.name for difference in found] == list(names[1:])
