"""Anonymous peers do not monopolise the control plane. ARCHITECTURE §2, RELIABILITY F32."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from fastderp.server.http.message import Request, Response
from fastderp.server.http.pages import Site
from fastderp.server.http.routes import relay_routes
from fastderp.tls.context import ClientContext
from fastderp.tls.handshake import Handshake
from tests.kit.peer import Peer, client_info, upgrade_request
from tests.kit.relay import PATIENCE_S, Relay, Setup, eventually, without_websocket

StartRelay = Callable[..., Relay]

SETUPS = [Setup("plain", "uvloop"), Setup("TLS 1.3", "uvloop"), Setup("plain", "asyncio")]
N_PIPELINED = 2000


def get(path: str) -> bytes:
    return b"GET " + path.encode() + b" HTTP/1.1\r\nHost: derp.example.com\r\n\r\n"


@contextmanager
def stopped(relay: Relay) -> Iterator[None]:
    """Block the relay's loop, so that all bytes sent meanwhile arrive at once."""
    is_blocked, go_on = threading.Event(), threading.Event()

    def block() -> None:
        is_blocked.set()
        go_on.wait()

    relay._loop.call_soon_threadsafe(block)
    assert is_blocked.wait(PATIENCE_S)
    try:
        yield
    finally:
        go_on.set()


class CountedPage:
    """A page that counts its requests, and the requests before another event."""

    def __init__(self) -> None:
        self.n_requests = 0
        self.routes = relay_routes(Site())
        self.routes.exact["/page"] = self._respond

    def _respond(self, request: Request) -> Response:
        self.n_requests += 1
        return Response(204)


def finish_login(relay: Relay, peer: Peer) -> None:
    """Log in after the upgrade and the relay's key."""
    peer.send(client_info(peer.key, relay.server.public_key))
    peer.read_server_info(relay.server.public_key)


def read_answers(peer: Peer, n: int) -> None:
    for _ in range(n):
        assert peer.read_head().startswith(b"HTTP/1.1 204 ")


@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_a_login_does_not_wait_for_all_requests_that_others_pipeline(
    start_relay: StartRelay, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastderp.server.accept.round_robin.SLICE_S", 0.0)
    page = CountedPage()
    n_before_login: list[int] = []

    async def verify(*_: object) -> bool:
        n_before_login.append(page.n_requests)
        return True

    relay = start_relay(setup, routes=page.routes, verify=verify)
    with relay.connect() as greedy, relay.connect() as other, relay.connect() as client:
        eventually(lambda: relay.listener.n_pending == 3)
        with stopped(relay):
            greedy.send(get("/page") * N_PIPELINED)
            other.send(get("/page") * N_PIPELINED)
            # The whole login, so that the order depends on the relay and not on when this thread runs.
            client.send(upgrade_request() + client_info(client.key, relay.server.public_key))
        client.read_head()
        client.read_frame()
        client.read_server_info(relay.server.public_key)
        read_answers(greedy, N_PIPELINED)
        read_answers(other, N_PIPELINED)
    assert n_before_login[0] < N_PIPELINED


@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_pipelined_requests_are_answered_in_turn_and_in_order(
    start_relay: StartRelay, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastderp.server.accept.round_robin.SLICE_S", 0.0)
    asked: list[str] = []
    routes = relay_routes(Site())

    def respond(request: Request) -> Response:
        asked.append(request.path)
        return Response(204, headers=(("X-Path", request.path),))

    routes.prefixes["/page/"] = respond
    relay = start_relay(setup, routes=routes)
    with relay.connect() as first, relay.connect() as second:
        eventually(lambda: relay.listener.n_pending == 2)
        with stopped(relay):
            first.send(b"".join(get(f"/page/first/{number}") for number in range(50)))
            second.send(b"".join(get(f"/page/second/{number}") for number in range(50)))
        for peer, name in ((first, "first"), (second, "second")):
            for number in range(50):
                assert f"X-Path: /page/{name}/{number}\r\n".encode() in peer.read_head()
    ahead = 0
    for path in asked:
        ahead += 1 if "first" in path else -1
        assert -2 <= ahead <= 2


@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_a_login_behind_pipelined_requests_comes_after_their_answers(
    start_relay: StartRelay, setup: Setup
) -> None:
    page = CountedPage()
    relay = start_relay(setup, routes=page.routes)
    with relay.connect() as peer:
        peer.send(get("/page") * 20 + upgrade_request())
        read_answers(peer, 20)
        assert peer.read_head().startswith(b"HTTP/1.1 101 ")
        peer.read_frame()
        finish_login(relay, peer)
        assert peer.sync() == []


def test_a_client_that_ends_its_output_behind_its_requests_gets_every_answer(
    start_relay: StartRelay,
) -> None:
    page = CountedPage()
    relay = start_relay(routes=page.routes)
    with relay.connect() as peer:
        peer.send(get("/page") * 30)
        peer.sock.shutdown(socket.SHUT_WR)
        read_answers(peer, 30)
        assert peer.read_to_end() == b""
    eventually(lambda: relay.listener.n_pending == 0)


def test_requests_in_one_read_with_the_end_of_tls_get_every_answer(
    start_relay: StartRelay,
) -> None:
    page = CountedPage()
    relay = start_relay(Setup("TLS 1.3"), routes=page.routes)
    handshake = Handshake(ClientContext(verify=False), "127.0.0.1")
    with relay.connect_tcp() as peer:
        while not handshake.step():
            peer.send(handshake.take_output())
            handshake.feed(peer.sock.recv(65536))
        finished = handshake.take_output()
        records = handshake.records()
        peer.send(finished + records.seal(get("/page") * 30) + records.close_notify())
        answers = records.open(peer.read_to_end())
    assert answers.count(b"HTTP/1.1 204 ") == 30


@without_websocket
def test_a_client_that_leaves_while_its_requests_wait_leaves_no_state(relay: Relay) -> None:
    with relay.connect() as peer:
        peer.send(get("/generate_204") * 200)
    eventually(lambda: relay.listener.n_accepted == 1 and relay.listener.n_pending == 0)
    assert relay.metrics()["fastderp_login_memory_bytes"] == 0


def test_the_lag_of_the_loop_is_measured(start_relay: StartRelay) -> None:
    relay = start_relay()
    late = threading.Event()

    def n_late() -> float:
        rows: dict[str, float] = dict(relay.metrics()["fastderp_loop_lag_seconds"].samples())
        return rows["_count"] - rows['_bucket{le="0.25"}']

    n_before = n_late()  # of a busy machine
    relay._loop.call_soon_threadsafe(late.wait, 0.6)
    eventually(lambda: n_late() > n_before)
