"""Many TLS clients at once: helper threads do their handshakes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from fastderp.util.machine import n_cores
from tests.kit.peer import Peer
from tests.kit.relay import Relay, Setup, client_context, eventually

StartRelay = Callable[..., Relay]

SETUPS = [
    Setup(transport, loop) for transport in ("TLS 1.3", "TLS 1.2") for loop in ("uvloop", "asyncio")
]

pytestmark = pytest.mark.skipif(n_cores() < 2, reason="one core: there are no helper threads")


@pytest.fixture(params=SETUPS, ids=str)
def relay(
    request: pytest.FixtureRequest, start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> Relay:
    """Run a relay that counts every handshake as part of a storm."""
    monkeypatch.setattr("fastderp.server.net.stream.BUSY_EVENTS", 0)
    return start_relay(request.param)


def test_every_login_of_a_storm_succeeds(relay: Relay) -> None:
    peers: list[Peer] = []

    def log_in() -> None:
        for _ in range(10):
            peers.append(relay.login())

    threads = [threading.Thread(target=log_in) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(peers) == 40
    for peer in peers:
        assert peer.sync() == []
        peer.close()
    assert any(thread.name.startswith("fastderp-tls") for thread in threading.enumerate())


def test_a_failing_handshake_in_a_storm_is_refused(relay: Relay) -> None:
    with relay.connect_tcp() as plain, relay.connect_tcp() as garbage:
        plain.send(b"GET / HTTP/1.1\r\n\r\n")
        assert plain.read_to_end().startswith(b"HTTP/1.0 400 Bad Request\r\n")
        garbage.send(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00" + bytes(100))
        garbage.read_to_end()
    assert relay.refused()["tls_plain_http"] == 1
    assert sum(relay.refused().values()) == 2


def test_clients_that_leave_during_their_handshake_leave_no_state(relay: Relay) -> None:
    hello = _client_hello(relay)
    for _ in range(100):
        with relay.connect_tcp() as peer:
            peer.send(hello)
    eventually(lambda: relay.metrics()["fastderp_connections_not_logged_in"] == 0)
    with relay.login() as peer:
        assert peer.sync() == []


def test_closing_during_a_storm_is_clean(relay: Relay) -> None:
    hello = _client_hello(relay)
    waiting = [relay.connect_tcp() for _ in range(50)]
    for peer in waiting:
        peer.send(hello)
    relay.run(relay.server.close())
    for peer in waiting:
        peer.read_to_end()
        peer.close()


def _client_hello(relay: Relay) -> bytes:
    """Record the first bytes of a client."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()

        def connect() -> None:
            with pytest.raises(OSError):
                Peer.connect(host, port, client_context(relay.setup), 10)

        thread = threading.Thread(target=connect)
        thread.start()
        accepted, _ = listener.accept()
        hello = accepted.recv(65536)
        accepted.close()
        thread.join()
    return hello
