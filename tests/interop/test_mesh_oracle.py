"""derper and the relay answer a mesh peer alike, frame for frame."""

from pathlib import Path

import pytest

from . import scripts
from .conftest import StartRelay
from .conversation import MESH_KEY_TEXT
from .deviations import MESH_DEVIATIONS
from .improvise import improvisations
from .oracle import differences, greet

# The first build of the Go programs takes minutes and counts for the first test.
pytestmark = pytest.mark.timeout(600)

N_IMPROVISATIONS = 200


async def test_a_mesh_peer_is_answered_as_derper_does(
    start_derper: StartRelay, start_fastderp: StartRelay, tmp_path: Path
) -> None:
    psk = tmp_path / "mesh.key"
    psk.write_text(MESH_KEY_TEXT + "\n")
    flag = f"-mesh-psk-file={psk}"
    table = (
        scripts.frames_of_every_type()
        | scripts.logins()
        | scripts.behaviours()
        | improvisations(N_IMPROVISATIONS)
    )
    async with start_derper(flag) as derper, start_fastderp(flag) as relay:
        found = await differences(
            await greet(derper.port), await greet(relay.port), table, MESH_DEVIATIONS
        )
    names = {difference.conversation.name for difference in found}
    unforeseen = [
        str(difference)
        for difference in found
        if difference.conversation.name not in MESH_DEVIATIONS
    ]
    assert not unforeseen, "\n".join(unforeseen[:10])
    assert names == MESH_DEVIATIONS.keys() & table.keys(), "deviations that are none any more"
