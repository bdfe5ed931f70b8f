"""A client whose network fails without a reset is dropped. RELIABILITY F2.

Relay and client have a network namespace each, joined by a pair of virtual interfaces.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit.command import COMMAND, RunningRelay, started

RELAY_IP, CLIENT_IP = "192.0.2.1", "192.0.2.2"
# Log in, over the URL scheme of the argument, and send a packet to each key of stdin.
CLIENT = f"""
import asyncio, sys
from fastderp.client import HTTPClient
from fastderp.wire.keys import NodePrivate, NodePublic
async def main():
    key = NodePrivate.generate()
    async with HTTPClient(sys.argv[1] + "://{RELAY_IP}:3340/derp", key) as client:
        print(key.public_key.hex, flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            await client.send(NodePublic(bytes.fromhex(line)), bytes(100))
asyncio.run(main())
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


@contextmanager
def client_in(network: str, scheme: str) -> Iterator[tuple[subprocess.Popen[bytes], bytes]]:
    """Log a client in; yield its process and its key with a newline."""
    command = ["ip", "netns", "exec", network, sys.executable, "-c", CLIENT, scheme]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()


def end_of_a_session(running: RunningRelay) -> bytes:
    """Return the log line of the next end of a session."""
    assert running.process.stderr is not None
    return next(line for line in running.process.stderr if b"closed after" in line)


@contextmanager
def relay_in(network: str, directory: Path) -> Iterator[RunningRelay]:
    flags = ("-a", f"{RELAY_IP}:3340", "-stun=false", "-c", str(directory / "key"))
    probes = ("-tcp-keepalive-time", "1s", "-tcp-user-timeout", "2s")
    with started(["ip", "netns", "exec", network, str(COMMAND), *flags, *probes]) as running:
        yield running


@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_a_client_that_vanishes_is_dropped_by_the_keep_alive_probes_as_a_tcp_timeout(
    networks: tuple[str, str], tmp_path: Path, scheme: str
) -> None:
    relay, client = networks
    with relay_in(relay, tmp_path) as running, client_in(client, scheme):
        ip("-n", client, "link", "set", "v0", "down")
        closed = end_of_a_session(running)
        assert CLIENT_IP.encode() in closed
        assert re.search(rb": tcp_timeout; in \d+ packets", closed)


@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_a_client_that_the_network_reports_as_unreachable_is_closed_as_such(
    networks: tuple[str, str], tmp_path: Path, scheme: str
) -> None:
    relay, client = networks
    with (
        relay_in(relay, tmp_path) as running,
        client_in(client, scheme) as (_, key),
        client_in(relay, "http") as (sender, _),
    ):
        # Its Ethernet address is asked for again, each 50 ms, and nothing answers.
        setting = "/proc/sys/net/ipv4/neigh/v0/retrans_time_ms"
        ip("netns", "exec", relay, "sh", "-c", f"echo 50 >{setting}")
        ip("-n", client, "link", "set", "v0", "arp", "off")
        ip("-n", relay, "neighbour", "delete", CLIENT_IP, "dev", "v0")
        assert sender.stdin is not None
        sender.stdin.write(key)
        sender.stdin.flush()
        closed = end_of_a_session(running)
        assert CLIENT_IP.encode() in closed
        assert b": unreachable (No route to host); in " in closed
