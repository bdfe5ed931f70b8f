"""The memory of a relay per silent client, through the installed commands."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.idle import MIB, memory_kib
from bench.relays import Relay, Running, fastderp, running
from tests.kit.command import command_with_upkeep_every
from tests.kit.memory import SANITIZED

COMMAND = str(Path(sys.executable).with_name("fastderp-bench"))
N_CLIENTS = 2000
LIMIT_KIB = 2.0


@pytest.mark.skipif(SANITIZED, reason="a sanitizer has memory of its own")
def test_a_relay_without_clients_takes_38_mib_at_most() -> None:
    with running(fastderp(), tls=True) as relay:
        assert memory_kib(relay.pid)["Rss"] / MIB <= 38


def tidy_relay() -> Relay:
    """Return a relay that trims its heap at once after logins, not 10 s later."""
    relay, program = fastderp(), command_with_upkeep_every(0.2)
    return dataclasses.replace(
        relay,
        command=[*program, *relay.command[1:]],
        tls_command=[*program, *relay.tls_command[1:]],
    )


def idle(relay: Running, n_clients: int) -> dict[str, Any]:
    """Connect silent clients for a moment; return what `fastderp-bench` has measured."""
    flags = f"""
        --insecure --pid {relay.pid} --idle {n_clients} --pairs 1 --rate 1
        --settle 2 --warmup 0 --duration 0.1 --quiet --json -
    """
    command = [COMMAND, relay.url, *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)["result"]
    return result


@pytest.mark.skipif(
    SANITIZED,
    reason="a sanitizer keeps what was freed, and has bytes of its own for each of the program's",
)
@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[0] < N_CLIENTS + 500,
    reason=f"needs {N_CLIENTS + 500} descriptors",
)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS 1.3"])
def test_an_idle_client_takes_two_kib_at_most_including_the_rest_of_its_login(
    tls: bool,
) -> None:
    with running(tidy_relay(), tls=tls) as relay:
        idle(relay, 100)  # what the first logins of a process leave, once, is not the clients'
        result = idle(relay, N_CLIENTS)
    assert result["cipher"].startswith("TLS_") is tls and result["connections_lost"] == 0
    assert result["n_clients"] >= N_CLIENTS
    grown_kib = result["relay"]["rss_idle_kib"] - result["relay"]["rss_before_kib"]
    assert 0 < grown_kib / result["n_clients"] <= LIMIT_KIB
