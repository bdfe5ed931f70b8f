"""On macOS and Windows the client library works, and the commands print that they need Linux.

`tests/kit/other_system.py` lists the simulated parts.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.command import manual, relay

ROOT = Path(__file__).parents[2]
SYSTEMS = ("darwin", "win32")
TALK = """
import asyncio
from fastderp import HTTPClient, NodePrivate, ReceivedPacket, ServerInfo

async def main():
    ann, bob = (
        HTTPClient({url!r}, NodePrivate.generate(), cert_name={pin!r}) for _ in range(2)
    )
    async with ann, bob, asyncio.timeout(60):
        for client in (ann, bob):
            assert isinstance(await client.recv(), ServerInfo)
        for number in range(100):
            await ann.send(bob.public_key, number.to_bytes(4, "big") * 300)
            while not isinstance(packet := await bob.recv(), ReceivedPacket):
                pass
            assert packet.source == ann.public_key
            assert packet.data == number.to_bytes(4, "big") * 300
    print("100 packets")

asyncio.run(main())
"""
KEYS = """
from pathlib import Path
from fastderp import load_or_create_server_key
path = Path({folder!r}) / "relay.key"
first = load_or_create_server_key(path)
assert load_or_create_server_key(path).public_key == first.public_key
"""


def run_as(system: str, program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.kit.other_system", system, program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("scheme", ["http", "https", "ws"])
def test_two_clients_exchange_packets(system: str, scheme: str, tmp_path: Path) -> None:
    flags = ["-a", "127.0.0.1:0", "-stun=false", "-http-port=-1", "-c", str(tmp_path / "key")]
    if scheme == "https":
        flags += manual(tmp_path, "127.0.0.1")
    with relay(*flags) as running:
        pin = running.find(r"(sha256-raw:[0-9a-f]{64})") if scheme == "https" else ""
        url = f"{scheme}://127.0.0.1:{running.port}/derp"
        done = run_as(system, TALK.format(url=url, pin=pin))
    assert (done.stdout, done.stderr) == ("100 packets\n", "")


@pytest.mark.parametrize("system", SYSTEMS)
def test_keys_are_kept_in_files(system: str, tmp_path: Path) -> None:
    done = run_as(system, KEYS.format(folder=str(tmp_path)))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", ["relay", "bench"])
def test_a_command_says_in_one_line_that_it_needs_linux(system: str, name: str) -> None:
    done = run_as(system, f"import sys; from fastderp.cli.entry import {name}; sys.exit({name}())")
    assert done.returncode == 69
    assert done.stdout == ""
    assert done.stderr == (
        f"fastderp-{name}: relays and fastderp-bench run on Linux only; on {system} fastderp is a "
        "client library\n"
    )


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_names_of_the_client_are_all_names(system: str) -> None:
    """`help` reads the members of a module as `getmembers` does."""
    done = run_as(
        system,
        "import fastderp, inspect; from fastderp import *; HTTPClient, TlsError;"
        "print(*(name for name, _ in inspect.getmembers(fastderp)))",
    )
    assert done.stderr == ""
    assert {"HTTPClient", "TlsError"} <= (names := set(done.stdout.split()))
    assert not {"Server", "RateLimit", "Admission"} & names


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("program", ["from fastderp import Server", "import fastderp.testing"])
def test_the_names_of_the_relay_say_that_they_need_linux(system: str, program: str) -> None:
    done = run_as(system, program)
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: relays and fastderp-bench run on Linux only; on {system} fastderp is a "
        "client library"
    )


@pytest.mark.parametrize("system", SYSTEMS)
def test_python_m_fastderp_shows_the_client(system: str) -> None:
    done = run_as(system, "import sys; from fastderp.__main__ import main; sys.exit(main())")
    assert (done.returncode, done.stderr) == (0, "")
    assert "relays run on Linux only" in done.stdout
    assert "HTTPClient" in done.stdout
    assert "fastderp-relay" not in done.stdout
