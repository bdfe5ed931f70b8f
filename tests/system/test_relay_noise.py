"""Random bytes at every stage end one connection, which is counted. RELIABILITY F4, F5."""

from __future__ import annotations

import contextlib
import gc
import random
from collections.abc import Callable

import psutil
import pytest

from tests.kit.memory import resident_bytes
from tests.kit.peer import FAST_START, Peer, client_info, upgrade_request
from tests.kit.relay import Relay, Setup, eventually

StartRelay = Callable[..., Relay]
N_CONNECTIONS = 300


def _prefix(peer: Peer, relay: Relay, stage: int) -> bytes:
    """Return the correct bytes of a client up to a random stage."""
    login = client_info(peer.key, relay.server.public_key)
    whole = upgrade_request(FAST_START) + login
    return [
        b"",
        whole[:20],
        upgrade_request(FAST_START),
        whole[:-30],
        whole,
        whole + b"\x04\x00\x00\x00\x40" + bytes(20),
    ][stage]


def _noise(dice: random.Random) -> bytes:
    """Return random bytes, often with a plausible frame header."""
    kind = dice.randrange(3)
    if kind == 0:
        return dice.randbytes(dice.randrange(1, 2000))
    length = dice.choice([0, 1, 31, 32, 33, 64, 1000, 70_000, 0xFFFFFFFF])
    header = bytes([dice.randrange(0x16)]) + length.to_bytes(4, "big")
    return header + dice.randbytes(dice.randrange(0, 200))


@pytest.mark.parametrize(
    "setup",
    [Setup("plain"), Setup("plain", "asyncio"), Setup("TLS 1.3"), Setup("TLS 1.2")],
    ids=str,
)
def test_noise_at_every_stage_affects_no_client(start_relay: StartRelay, setup: Setup) -> None:
    relay = start_relay(setup)
    dice = random.Random(str(setup))
    with relay.login() as a, relay.login() as b:
        for i in range(N_CONNECTIONS):
            with relay.connect() as peer, contextlib.suppress(OSError):
                peer.send(_prefix(peer, relay, i % 6) + _noise(dice))
                if dice.random() < 0.5:
                    peer.send(_noise(dice))
        a.send_packet(b.public, b"unharmed")
        assert b.read_packet() == (a.public, b"unharmed")
        eventually(lambda: relay.metrics()["derp_current_connections"] == 2)
        eventually(lambda: relay.metrics()["fastderp_connections_not_logged_in"] == 0)
        assert relay.call(relay.server.consistency_check) == []
        assert a.sync() == b.sync() == []


@pytest.mark.parametrize("setup", [Setup("TLS 1.3"), Setup("TLS 1.3", "asyncio")], ids=str)
def test_noise_instead_of_tls_affects_no_client(start_relay: StartRelay, setup: Setup) -> None:
    relay = start_relay(setup)
    dice = random.Random(str(setup))
    with relay.login() as bystander:
        for _ in range(N_CONNECTIONS):
            with relay.connect_tcp() as peer, contextlib.suppress(OSError):
                record = b"\x16\x03\x01" + dice.randrange(1, 400).to_bytes(2, "big") + b"\x01\x00"
                peer.send(dice.choice([b"", record]) + dice.randbytes(dice.randrange(1, 500)))
        eventually(lambda: relay.metrics()["fastderp_connections_not_logged_in"] == 0)
        assert bystander.sync() == []


def test_connections_that_end_leave_no_memory_in_use(start_relay: StartRelay) -> None:
    relay = start_relay()
    process = psutil.Process()

    def churn(n_logins: int) -> None:
        for i in range(n_logins):
            peer = relay.connect()
            peer.send(
                (upgrade_request(FAST_START) + client_info(peer.key, relay.server.public_key))[
                    : None if i % 2 else 200
                ]
            )
            if i % 2:
                peer.read(45)
            peer.close()
        eventually(lambda: relay.metrics()["derp_current_connections"] == 0)
        eventually(lambda: relay.metrics()["fastderp_connections_not_logged_in"] == 0)

    churn(200)
    gc.collect()  # collect the garbage of earlier tests first
    n_descriptors, memory_bytes = process.num_fds(), resident_bytes()
    churn(2000)
    eventually(lambda: process.num_fds() <= n_descriptors)
    assert resident_bytes() < memory_bytes * 1.02 + (1 << 20)
