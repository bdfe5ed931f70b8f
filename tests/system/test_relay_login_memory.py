"""Connections hold bounded memory before their login, and clients wait for memory.

ARCHITECTURE §2, RELIABILITY F31.
"""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Callable

import pytest

from fastderp.server.accept.connection import Connection
from fastderp.server.accept.login_memory import CONNECTION_BYTES, HANDSHAKE_BYTES
from fastderp.server.net.stream import Stream
from fastderp.tls.context import ClientContext
from fastderp.tls.handshake import Handshake
from tests.kit.memory import resident_bytes
from tests.kit.peer import Peer
from tests.kit.relay import PATIENCE_S, Relay, Setup, eventually

StartRelay = Callable[..., Relay]

TLS13 = Setup("TLS 1.3", "uvloop")
SMALLEST_BUDGET = 4 << 20
# concurrent handshakes within that budget
N_HANDSHAKES = SMALLEST_BUDGET * 3 // 8 // HANDSHAKE_BYTES
N_STRANGERS = 1000


def begun_hello(n_bytes: int, n_sent: int) -> bytes:
    """Return the first bytes of a ClientHello of `n_bytes`, in records of the largest size."""
    body = b"\x01" + n_bytes.to_bytes(3, "big") + b"\x03\x03" + bytes(n_bytes)
    pieces = [body[at : at + 16384] for at in range(0, len(body), 16384)]
    wire = b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)
    return wire[:n_sent]


def whole_hello() -> bytes:
    """Return a valid ClientHello."""
    handshake = Handshake(ClientContext(verify=False), "127.0.0.1")
    handshake.step()
    return handshake.take_output()


def held_bytes(relay: Relay) -> int:
    return int(relay.metrics()["fastderp_login_memory_bytes"])


def strangers(relay: Relay, n: int, say: bytes) -> list[socket.socket]:
    made = []
    for _ in range(n):
        made.append(socket.create_connection(("127.0.0.1", relay.port), 10))
        made[-1].sendall(say)
    return made


def hang_up(made: list[socket.socket]) -> None:
    for sock in made:
        sock.close()


def test_a_begun_client_hello_holds_its_bytes_and_no_openssl_object(
    start_relay: StartRelay,
) -> None:
    relay = start_relay(TLS13)
    relay.login().close()
    before = resident_bytes()
    made = strangers(relay, N_STRANGERS, begun_hello(512, 100))
    expected = N_STRANGERS * (CONNECTION_BYTES + 100)
    eventually(lambda: held_bytes(relay) == expected)
    assert resident_bytes() - before < N_STRANGERS * 8 * 1024
    with relay.login() as peer:
        assert peer.sync() == []
    hang_up(made)
    eventually(lambda: held_bytes(relay) == 0)


def test_a_client_hello_that_no_client_sends_is_refused_at_its_header(
    start_relay: StartRelay,
) -> None:
    relay = start_relay(TLS13)
    with relay.connect_tcp() as peer:
        peer.send(begun_hello(115_000, 100))
        assert peer.read_to_end()[:1] == b"\x15"
    assert relay.refused() == {"tls_flood": 1}


def test_bytes_that_would_keep_openssl_waiting_are_refused_at_once(start_relay: StartRelay) -> None:
    relay = start_relay(TLS13)
    with relay.connect_tcp() as peer:
        peer.send(b"\x80\x7f\x01\x03\x01")  # the beginning of an SSLv2 ClientHello
        peer.read_to_end()
    assert relay.refused() == {"tls_not_tls": 1}


def test_unfinished_handshakes_are_ended_and_another_client_logs_in(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastderp.server.accept.handshake_queue.PATIENCE_S", 1.0)
    monkeypatch.setattr("fastderp.server.accept.handshake_queue.LOOK_S", 0.05)
    relay = start_relay(TLS13, login_memory_bytes=SMALLEST_BUDGET)
    made = strangers(relay, N_HANDSHAKES + 20, whole_hello())
    with relay.login() as peer:
        assert peer.sync() == []
    assert held_bytes(relay) <= SMALLEST_BUDGET
    refused = relay.refused()
    assert set(refused) == {"tls_crowded"}
    hang_up(made)
    eventually(lambda: held_bytes(relay) == 0)


def test_a_storm_of_clients_waits_for_memory_and_is_not_refused(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Clients that a busy machine delays are not ended either.
    monkeypatch.setattr("fastderp.server.accept.handshake_queue.PATIENCE_S", PATIENCE_S)
    monkeypatch.setattr("fastderp.server.accept.handshake_queue.MAX_PATIENCE_S", PATIENCE_S)
    relay = start_relay(TLS13, login_memory_bytes=SMALLEST_BUDGET)
    # All clients have sent their ClientHello before the relay reads the first.
    n_clients = 5 * N_HANDSHAKES
    handshakes = [Handshake(ClientContext(verify=False), "127.0.0.1") for _ in range(n_clients)]
    may_go_on = threading.Event()
    relay._loop.call_soon_threadsafe(may_go_on.wait)
    made = []
    for handshake in handshakes:
        handshake.step()
        made.append(socket.create_connection(("127.0.0.1", relay.port), 20))
        made[-1].sendall(handshake.take_output())
    may_go_on.set()
    eventually(lambda: relay.metrics()["fastderp_handshakes_waiting"] > 0)
    for sock, handshake in zip(made, handshakes, strict=True):
        while not handshake.step():
            data = sock.recv(65536)
            assert data, "refused"
            handshake.feed(data)
        sock.sendall(handshake.take_output())
    assert relay.refused() == {}
    assert held_bytes(relay) <= SMALLEST_BUDGET
    hang_up(made)
    eventually(lambda: held_bytes(relay) == 0)


def test_a_client_that_waits_for_memory_has_its_whole_login_time_afterwards(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = start_relay(TLS13, login_memory_bytes=SMALLEST_BUDGET, login_timeout=1.5)
    monkeypatch.setattr("fastderp.server.accept.handshake_queue.PATIENCE_S", 60.0)
    made = strangers(relay, N_HANDSHAKES + 1, whole_hello())
    eventually(lambda: relay.metrics()["fastderp_handshakes_waiting"] > 0)
    # It waits until the unfinished handshakes time out.
    with relay.login() as peer:
        assert peer.sync() == []
    assert relay.refused().get("tls_timeout", 0) > 0
    assert set(relay.refused()) == {"tls_timeout"}
    hang_up(made)


def test_a_client_that_sends_more_while_it_waits_for_memory_is_closed(
    start_relay: StartRelay,
) -> None:
    relay = start_relay(TLS13, login_memory_bytes=SMALLEST_BUDGET)
    made = strangers(relay, N_HANDSHAKES + 1, whole_hello())
    eventually(lambda: relay.metrics()["fastderp_handshakes_waiting"] > 0)
    with pytest.raises(OSError):
        for _ in range(1000):
            made[-1].sendall(bytes(4096))
    assert relay.refused()["tls_flood"] == 1
    hang_up(made)


def connection_objects() -> list[object]:
    held = (Connection, Stream, Handshake)
    return [one for one in gc.get_objects() if isinstance(one, held)]


@pytest.mark.parametrize("say", ["nothing", "begun", "whole"])
def test_memory_of_unfinished_handshakes_is_free_before_the_garbage_collector_runs(
    start_relay: StartRelay, say: str
) -> None:
    relay = start_relay(TLS13)
    hello = {"nothing": b"", "begun": begun_hello(512, 100), "whole": whole_hello()}[say]
    gc.collect()
    before = connection_objects()  # of other tests
    gc.disable()
    try:
        made = strangers(relay, 20, hello)
        eventually(lambda: relay.listener.n_pending == 20)
        eventually(lambda: held_bytes(relay) >= 20 * (CONNECTION_BYTES + min(100, len(hello))))
        hang_up(made)
        eventually(lambda: relay.listener.n_pending == 0)
        relay.call(lambda: None)
        assert [one for one in connection_objects() if one not in before] == []
    finally:
        gc.enable()


def test_tunnels_pages_and_logins_release_their_memory(start_relay: StartRelay) -> None:
    for transport in ("plain", "TLS 1.2", "TLS 1.3", "WebSocket over TLS 1.3"):
        relay = start_relay(Setup(transport))
        peers: list[Peer] = [relay.login() for _ in range(3)]
        for peer in peers:
            assert peer.sync() == []
        eventually(lambda: held_bytes(relay) == 0)
        for peer in peers:
            peer.close()


def test_without_a_free_thread_the_handshake_runs_on_the_loop(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastderp.server.net.stream.BUSY_EVENTS", 0)
    relay = start_relay(TLS13)
    start = threading.Thread.start

    def no_thread(thread: threading.Thread) -> None:
        if thread.name.startswith("fastderp-tls"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with relay.login() as peer:
            assert peer.sync() == []
    if relay.call(lambda: relay.server._registrar.handshake_threads.worthwhile):
        assert relay.metrics()["fastderp_thread_shortages_total"] == 1
    with relay.login() as peer:
        assert peer.sync() == []
    assert relay.refused() == {}


@pytest.mark.parametrize("transport", ["plain", "TLS 1.2", "TLS 1.3", "WebSocket"])
def test_memory_of_logins_pages_and_refusals_is_free_before_the_garbage_collector_runs(
    start_relay: StartRelay, transport: str
) -> None:
    async def verify(*_: object) -> bool:
        return True

    relay = start_relay(Setup(transport), verify=verify)
    gc.collect()
    before = connection_objects()  # of other tests
    gc.disable()
    try:
        for request in (
            b"GET /derp/probe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            b"no request\r\n\r\n",
        ):
            with relay.connect() as peer:
                peer.send(request)
                peer.read_to_end()
        logged_in = relay.login()
        assert logged_in.sync() == []
        if transport in ("plain", "TLS 1.3"):
            eventually(lambda: relay.listener.n_pending == 0)
            relay.call(lambda: None)
            assert [one for one in connection_objects() if one not in before] == []
        logged_in.close()
        eventually(lambda: relay.metrics()["derp_current_connections"] == 0)
        eventually(lambda: len(relay.server._registrar.bridges) == 0)
        relay.call(lambda: None)
        held = (Connection, Handshake)
        left = [one for one in connection_objects() if one not in before]
        assert [one for one in left if isinstance(one, held)] == []
    finally:
        gc.enable()
