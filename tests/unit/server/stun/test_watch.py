"""When STUN is silent, and the warning about a gateway that hides the clients."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from ipaddress import IPv4Address

import pytest

from fastderp.server.stun import watch
from fastderp.server.stun.server import StunServer, bind_stun
from fastderp.server.stun.watch import GATEWAY_MIN_REQUESTS, StunWatch
from tests.unit.server.stun.test_server import REQUEST, ask, requests

GATEWAY = "127.0.0.1"
OTHER = "127.0.0.2"


@pytest.fixture
async def stun(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StunServer]:
    monkeypatch.setattr("fastderp.server.stun.server.private_gateway", lambda: IPv4Address(GATEWAY))
    server = bind_stun("", 0)
    server.start()
    yield server
    server.close()


async def send(stun: StunServer, source: str, n_requests: int) -> None:
    """Send requests from an address and receive their answers."""
    loop = asyncio.get_running_loop()
    n_expected = stun.request_counts[0] + n_requests
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind((source, 0))
        for _ in range(n_requests):
            sock.sendto(REQUEST, (GATEWAY, stun.addresses[0][1]))
            async with asyncio.timeout(5):
                await loop.sock_recv(sock, 100)
    # An answer is counted after it was sent.
    async with asyncio.timeout(5):
        while stun.request_counts[0] != n_expected:
            await asyncio.sleep(0.001)


async def test_requests_are_read_and_not_answered_while_there_is_a_fault(
    stun: StunServer, caplog: pytest.LogCaptureFixture
) -> None:
    faults = ["the certificate has expired"]
    watching = StunWatch(stun, lambda: faults)
    with caplog.at_level("INFO", "fastderp"):
        watching.check()
        watching.check()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((GATEWAY, stun.addresses[0][1]))
            for _ in range(3):
                sock.send(REQUEST)
            async with asyncio.timeout(5):
                while stun.metrics()["fastderp_stun_unanswered_total"] != 3:
                    await asyncio.sleep(0.001)
            faults.clear()
            watching.check()
            await ask(socket.AF_INET, (GATEWAY, stun.addresses[0][1]), REQUEST)
            with pytest.raises(BlockingIOError):
                sock.recv(100, socket.MSG_DONTWAIT)
    async with asyncio.timeout(5):
        while requests(stun)["success"] != 1:
            await asyncio.sleep(0.001)
    assert caplog.messages == [
        "STUN is silent, clients choose other relays: the certificate has expired",
        "STUN answers again",
    ]


async def test_a_fault_is_seen_without_a_call(
    stun: StunServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "INTERVAL_S", 0.001)
    faults: list[str] = []
    watching = StunWatch(stun, lambda: faults)
    watching.start()
    assert not stun.is_silent
    faults.append("expired")
    async with asyncio.timeout(5):
        while not stun.is_silent:
            await asyncio.sleep(0.001)
    watching.close()


async def test_one_warning_when_most_requests_come_from_the_gateway(
    stun: StunServer, caplog: pytest.LogCaptureFixture
) -> None:
    watching = StunWatch(stun, list)
    await send(stun, GATEWAY, GATEWAY_MIN_REQUESTS - 1)
    watching.check()
    assert not caplog.messages
    await send(stun, GATEWAY, 1)
    for _ in range(3):
        watching.check()
    [line] = caplog.messages
    assert line.startswith("most STUN requests come from 127.0.0.1, the gateway of this machine")


async def test_no_warning_when_half_of_the_requests_come_from_elsewhere(
    stun: StunServer, caplog: pytest.LogCaptureFixture
) -> None:
    watching = StunWatch(stun, list)
    await send(stun, GATEWAY, GATEWAY_MIN_REQUESTS // 2)
    await send(stun, OTHER, GATEWAY_MIN_REQUESTS // 2)
    watching.check()
    assert stun.request_counts == (GATEWAY_MIN_REQUESTS, GATEWAY_MIN_REQUESTS // 2)
    assert not caplog.messages
