"""A data plane whose threads get no memory for a while."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.compiler import has_c_compiler
from tests.kit.scarce_memory import environment

pytestmark = [
    pytest.mark.skipif(not has_c_compiler(), reason="no C compiler"),
    pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer has the place"),
]

_SESSIONS_END = """
from tests.kit.plane import PlanePeer, count, events, running_plane
from tests.kit.relay import eventually
from tests.kit.scarce_memory import WorkersMemory

memory = WorkersMemory()
with running_plane(workers=1) as plane:
    peers = [PlanePeer(plane, app_name=name) for name in (b"", b"a name")]
    for peer in peers:
        peer.sync()
    memory.run_out(True)
    for peer in peers:
        peer.close()
    eventually(lambda: memory.n_refused > len(peers))
    assert not plane.events()
    memory.run_out(False)
    ends = sorted((event.handle, event.reason, event.app_name) for event in events(plane, 2))
    assert ends == [(peers[0].handle, "eof", b""), (peers[1].handle, "eof", b"a name")]
    assert count(plane, "current_connections") == count(plane, "events_lost") == 0
"""


def test_the_end_of_a_session_is_reported_as_soon_as_there_is_memory(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _SESSIONS_END], env=environment(tmp_path), check=True)
