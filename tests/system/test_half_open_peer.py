"""A client whose network fails without a reset is dropped. RELIABILITY F2.

Relay and client have a network namespace each, joined by a pair of virtual interfaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.command import COMMAND, started

RELAY_IP, CLIENT_IP = "192.0.2.1", "192.0.2.2"
LOG_IN = f"""
import sys
from fastderp.loadgen.connect import Crowd, Target
client, = Crowd(Target.parse("http://{RELAY_IP}:3340"), 1).log_in()
print("logged in", flush=True)
sys.stdin.read()
"""

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None,
        reason="network namespaces need root and ip",
    ),
]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def networks() -> Iterator[tuple[str, str]]:
    """Make the namespaces of the relay and of the client."""
    relay, client = (f"fastderp-{side}-{os.getpid()}" for side in ("relay", "client"))
    try:
        ip("netns", "add", relay)
        ip("netns", "add", client)
        ip("-n", relay, "link", "add", "v0", "type", "veth", "peer", "name", "v0", "netns", client)
        for name, address in ((relay, RELAY_IP), (client, CLIENT_IP)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "v0")
            ip("-n", name, "link", "set", "v0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield relay, client
    finally:
        for name in (relay, client):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_a_client_that_vanishes_is_dropped_by_the_keep_alive_probes(
    networks: tuple[str, str], tmp_path: Path
) -> None:
    relay, client = networks
    flags = ("-a", f"{RELAY_IP}:3340", "-stun=false", "-c", str(tmp_path / "key"))
    probes = ("-tcp-keepalive-time", "1s", "-tcp-user-timeout", "2s")
    command = ["ip", "netns", "exec", relay, str(COMMAND), *flags, *probes]
    with (
        started(command) as running,
        subprocess.Popen(
            ["ip", "netns", "exec", client, sys.executable, "-c", LOG_IN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as peer,
    ):
        assert peer.stdout is not None and running.process.stderr is not None
        assert peer.stdout.readline() == b"logged in\n"
        ip("-n", client, "link", "set", "v0", "down")
        closed = next(line for line in running.process.stderr if b"closed after" in line)
        assert CLIENT_IP.encode() in closed
        peer.kill()
