"""A relay that runs out of descriptors: clients inside stay, silent connections make room."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fastderp.server.accept import listener as listener_module
from fastderp.server.http.message import Request, Response
from fastderp.server.http.pages import Site
from fastderp.server.http.routes import relay_routes
from fastderp.server.net.stream import accept
from fastderp.util.shortage import SHORTAGES
from fastderp.wire.keys import NodePublic
from tests.kit.peer import Peer, client_info, upgrade_request
from tests.kit.relay import Relay, Setup, eventually
from tests.system.test_relay_http import get, read_response

StartRelay = Callable[..., Relay]


_SHORT_OF_DESCRIPTORS = """
import asyncio, resource, sys, uvloop
from fastderp.server.server import Server

async def main():
    async with Server(workers=1) as relay:
        listener = relay.listen("127.0.0.1", 0)
        print(listener.port, relay.public_key.text, flush=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

(uvloop.run if sys.argv[1] == "uvloop" else asyncio.run)(main())
"""


@contextlib.contextmanager
def running(program: str, loop: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run a program with a relay; yield it and the words of its first line."""
    with subprocess.Popen(
        [sys.executable, "-c", program, loop],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().split()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_shortage_of_descriptors_affects_no_client_and_ends(loop: str) -> None:
    with running(_SHORT_OF_DESCRIPTORS, loop) as (process, [port, key_text]):
        key = NodePublic.from_text(key_text)
        with Peer.connect("127.0.0.1", int(port), None, 10) as bystander:
            bystander.login(key)
            crowd = [socket.create_connection(("127.0.0.1", int(port)), 10) for _ in range(60)]
            cpu = psutil.Process(process.pid)
            used_s = sum(cpu.cpu_times()[:2])
            began = time.monotonic()
            while time.monotonic() - began < 1:
                assert bystander.sync() == []
                time.sleep(0.05)
            assert sum(cpu.cpu_times()[:2]) - used_s < 0.5, "it spins"
            for sock in crowd:
                sock.close()
            with Peer.connect("127.0.0.1", int(port), None, 10) as peer:
                peer.login(key)
                assert peer.sync() == []
        process.communicate()
    assert process.returncode == 0


_SILENT_CROWD = """
import asyncio, resource, sys, uvloop
from fastderp.server.accept import listener as module
from fastderp.server.server import Server

module.SILENT_S = 0.1

async def main():
    async with Server(workers=1, login_timeout=3600) as relay:
        first, second = (relay.listen("127.0.0.1", 0, idle_s=3600) for _ in range(2))
        print(first.port, second.port, relay.public_key.text, flush=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        print(relay.metrics()["fastderp_closed_total"])

(uvloop.run if sys.argv[1] == "uvloop" else asyncio.run)(main())
"""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_without_descriptors_silent_connections_make_room_for_logins(loop: str) -> None:
    with running(_SILENT_CROWD, loop) as (process, [first, second, key_text]):
        key = NodePublic.from_text(key_text)
        with contextlib.ExitStack() as stack:
            inside = stack.enter_context(Peer.connect("127.0.0.1", int(first), None, 10))
            inside.login(key)
            for number in range(100):
                sock = socket.create_connection(("127.0.0.1", int(first)), 10)
                stack.enter_context(sock)
                if number % 3 == 1:  # half a request
                    sock.sendall(b"GET / HTTP/1.1\r\n")
                elif number % 3 == 2:  # a login without its ClientInfo
                    sock.sendall(upgrade_request())
            for port in (first, second):
                late = stack.enter_context(Peer.connect("127.0.0.1", int(port), None, 10))
                late.login(key)
                assert late.sync() == []
            assert inside.sync() == []
        closed, _ = process.communicate()
    assert process.returncode == 0
    assert "'http_shortage': " in closed and "'login_shortage': " in closed


def test_connections_that_wait_for_the_relay_are_not_silent(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "SILENT_S", 0.01)
    answers: list[asyncio.Future[Response]] = []

    def later(_: Request) -> asyncio.Future[Response]:
        answers.append(asyncio.get_running_loop().create_future())
        return answers[-1]

    routes = relay_routes(Site())
    routes.exact["/later"] = later
    asked = threading.Event()
    let_in = threading.Event()

    async def verify(*_: object) -> bool:
        asked.set()
        return await asyncio.to_thread(let_in.wait, 10)

    relay = start_relay(routes=routes, verify=verify)
    with relay.connect() as newcomer, relay.connect() as visitor, relay.connect() as silent:
        newcomer.upgrade(relay.server.public_key)
        newcomer.send(client_info(newcomer.key, relay.server.public_key))
        visitor.send(get("/later"))
        assert asked.wait(10)
        eventually(lambda: answers)
        eventually(lambda: relay.call(relay.listener._end_silent))
        assert silent.is_closed()
        assert relay.refused() == {"http_shortage": 1}
        relay.call(answers[0].set_result, Response(200, b"here"))
        assert read_response(visitor) == (b"HTTP/1.1 200 OK", b"here")
        let_in.set()
        newcomer.read_server_info(relay.server.public_key)


@pytest.mark.parametrize("setup", [Setup("TLS 1.2"), Setup("WebSocket")], ids=str)
def test_a_login_without_descriptors_for_its_bridge_is_refused(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch, setup: Setup
) -> None:
    def no_descriptors() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    relay = start_relay(setup)
    monkeypatch.setattr("fastderp.server.accept.bridge.socket.socketpair", no_descriptors)
    with relay.connect() as peer:
        peer.upgrade(relay.server.public_key)
        peer.send(client_info(peer.key, relay.server.public_key))
        assert peer.is_closed()
    assert relay.refused() == {"login_shortage": 1}


@pytest.mark.parametrize("number", sorted(SHORTAGES), ids=errno.errorcode.get)
def test_a_shortage_on_accept_ends_and_harms_no_client(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    relay = start_relay()
    n_failures = 3

    def scarce(listening: int) -> Any:
        nonlocal n_failures
        if n_failures:
            n_failures -= 1
            raise OSError(number, os.strerror(number))
        return accept(listening)

    with relay.login() as connected:
        monkeypatch.setattr("fastderp.server.accept.listener.accept", scarce)
        with relay.login() as late:
            assert n_failures == 0
            late.send_packet(connected.public, b"hello")
            assert connected.read_packet() == (late.public, b"hello")
