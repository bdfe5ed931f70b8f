"""derper and the relay answer a mesh peer alike, frame for frame."""

import ssl
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
# With TLS the relay parses the same frames elsewhere: 1.3 in the data plane, 1.2 in a bridge.
VERSIONS = {
    "plain": None,
    "TLS 1.2": ssl.TLSVersion.TLSv1_2,
    "TLS 1.3": ssl.TLSVersion.TLSv1_3,
}


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_mesh_peer_is_answered_as_derper_does(
    start_derper: StartRelay, start_fastderp: StartRelay, tmp_path: Path, version: str
) -> None:
    psk = tmp_path / "mesh.key"
    psk.write_text(MESH_KEY_TEXT + "\n")
    flag = f"-mesh-psk-file={psk}"
    table = scripts.behaviours() | improvisations(N_IMPROVISATIONS)
    tls = None
    if highest := VERSIONS[version]:
        tls = ssl._create_unverified_context()
        tls.maximum_version = highest
    else:
        table |= scripts.frames_of_every_type() | scripts.logins()
    async with start_derper(flag) as derper, start_fastderp(flag, tls=tls is not None) as relay:
        found = await differences(
            await greet(derper.port), await greet(relay.port, tls), table, MESH_DEVIATIONS
        )
    names = {difference.conversation.name for difference in found}
    unforeseen = [
        str(difference)
        for difference in found
        if difference.conversation.name not in MESH_DEVIATIONS
    ]
    assert not unforeseen, "\n".join(unforeseen[:10])
    assert names == MESH_DEVIATIONS.keys() & table.keys(), "deviations that are none any more"
