"""A relay whose region has names that no nameserver answers. RELIABILITY F44."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.own_network import BECOME_ROOT, is_possible

pytestmark = pytest.mark.skipif(not is_possible(), reason="needs network namespaces")

PROGRAM = """
import asyncio, contextlib, json, os, signal, sys, time
from pathlib import Path
from fastderp import HTTPClient, NodePrivate, ServerInfo
from tests.kit.command import relay
from tests.kit.nameserver import SILENCE, nameserver
from tests.kit.own_network import prepared
from tests.kit.service import ok, serving

folder = Path(sys.argv[1])
members = [f"silent{number}.test" for number in range(8)]
mesh_key = folder / "mesh.key"
mesh_key.write_text("ab" * 32)
records = dict.fromkeys(members, SILENCE) | {"admit.test": ["A 127.0.0.1"]}

async def login(url):
    async with HTTPClient(url, NodePrivate.generate()) as client:
        return isinstance(await client.recv(), ServerInfo)

with nameserver(records, *prepared()) as names, serving(ok({"Allow": True})) as admission:
    flags = (
        "-a=127.0.0.1:0", "-stun=false", "-c", str(folder / "key"), "-drain-time=0",
        f"-mesh-psk-file={mesh_key}", f"-mesh-with={','.join(members)}",
        f"-verify-client-url={admission.url.replace('127.0.0.1', 'admit.test')}",
        "-verify-client-url-fail-open=false",
    )
    with relay(*flags, env={"no_proxy": "*"}) as running:
        while not {name for name, _ in names.asked} >= {"silent0.test", "silent1.test"}:
            time.sleep(0.01)
        admitted = asyncio.run(login(f"http://127.0.0.1:{running.port}/derp"))
        began = time.monotonic()
        code, said = running.stop()
        print(json.dumps([admitted, code, time.monotonic() - began, said]))
"""


def test_silent_names_of_the_region_delay_neither_logins_nor_the_end(tmp_path: Path) -> None:
    done = subprocess.run(
        [*BECOME_ROOT, sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    admitted, code, seconds, said = json.loads(done.stdout)
    assert admitted and code == 0, said
    assert seconds < 8
