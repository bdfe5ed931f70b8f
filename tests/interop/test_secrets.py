"""The region's secret from a real setec server, at derper and at fastderp-relay."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastderp import HTTPClient, MeshKey, NodePrivate, PeerPresent

from .gokit import GoPrograms
from .relays import Relay

pytestmark = pytest.mark.timeout(600)

PATIENCE_S = 20.0
NAME = "staging/meshkey"
OLD, NEW = "1a" * 32, "2b" * 32


@dataclass
class Setec:
    """A setec server without access rules."""

    url: str
    process: subprocess.Popen[bytes]

    def put(self, value: str) -> None:
        """Make this the newest and the active version of the secret."""
        version = self._call(
            "put", {"Name": NAME, "Value": base64.b64encode(value.encode()).decode()}
        )
        self._call("activate", {"Name": NAME, "Version": version})

    def stop(self) -> None:
        """Stop it."""
        self.process.kill()
        self.process.wait()

    def _call(self, method: str, question: dict[str, object]) -> object:
        headers = {"Sec-X-Tailscale-No-Browsers": "setec", "Content-Type": "application/json"}
        request = urllib.request.Request(
            f"{self.url}/api/{method}", json.dumps(question).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return json.load(answer)


@pytest.fixture
def setec(setecd: Path) -> Iterator[Setec]:
    """Run the server with a first secret."""
    process = subprocess.Popen([setecd], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    server = Setec(process.stdout.readline().decode().strip(), process)
    try:
        server.put(OLD)
        yield server
    finally:
        server.stop()
        assert process.stdin is not None
        process.stdin.close()
        process.stdout.close()


@contextlib.asynccontextmanager
async def running(program: Path, directory: Path, url: str, cache: Path) -> AsyncIterator[Relay]:
    """Run a relay that reads its secret from the server."""
    directory.mkdir(exist_ok=True)
    flags = [f"-secrets-url={url}", "-secrets-path-prefix=staging", f"-secrets-cache-dir={cache}"]
    relay = Relay(program, directory, *flags)
    try:
        await relay.start()
        yield relay
    finally:
        await relay.stop()


async def lets_watch(relay: Relay, key: str) -> bool:
    """Return whether a client with this mesh key may watch; the relay closes others."""
    async with HTTPClient(
        relay.url, NodePrivate.generate(), mesh_key=MeshKey.from_text(key)
    ) as client:
        await client.watch_connection_changes()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(PATIENCE_S):
                async for message in client:
                    if isinstance(message, PeerPresent):
                        return True
    return False


async def test_both_relays_read_the_secret_and_each_can_use_the_others_copy(
    setec: Setec, go_programs: GoPrograms, fastderp_relay: Path, tmp_path: Path
) -> None:
    programs = {"derper": go_programs.derper, "fastderp": fastderp_relay}
    for name, program in programs.items():
        async with running(
            program, tmp_path / name, setec.url, tmp_path / f"copy-of-{name}"
        ) as relay:
            assert await lets_watch(relay, OLD), name
            assert not await lets_watch(relay, NEW), name
    setec.stop()
    for name, other in (("derper", "fastderp"), ("fastderp", "derper")):
        async with running(
            programs[name], tmp_path / name, setec.url, tmp_path / f"copy-of-{other}"
        ) as relay:
            assert await lets_watch(relay, OLD), f"{name} with the copy of {other}"


async def test_a_new_secret_is_used_after_a_signal_and_an_unusable_one_changes_nothing(
    setec: Setec, fastderp_relay: Path, tmp_path: Path
) -> None:
    async with running(fastderp_relay, tmp_path / "relay", setec.url, tmp_path / "copy") as relay:
        setec.put(f"{NEW}\n{OLD}")
        await reloaded(relay, "mesh: 2 keys, 0 members")
        assert await lets_watch(relay, NEW) and await lets_watch(relay, OLD)
        setec.put("not a key")
        await reloaded(
            relay,
            "want one mesh key, or two during a change, not 3; "
            "staging/meshkey: the relay uses the copy in ",
        )
        assert await lets_watch(relay, NEW) and await lets_watch(relay, OLD)


async def reloaded(relay: Relay, said: str) -> None:
    """Signal the relay and wait for the log line."""
    os.kill(relay.pid, signal.SIGHUP)
    async with asyncio.timeout(PATIENCE_S):
        while said not in relay.log.read_text():
            await asyncio.sleep(0.01)
