"""Native logins: at a real relay, and at other servers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from fastderp.errors import ProtocolError
from fastderp.loadgen.connect import Crowd, Target, socket_address
from fastderp.loadgen.engine import Engine
from fastderp.loadgen.hello import client_hello
from fastderp.loadgen.logins import Logins
from fastderp.tls.record import SUITES
from fastderp.wire.keys import NodePrivate, NodePublic
from fastderp.wire.login import server_key_frame
from fastderp.wire.protocol import FrameType, frame
from tests.kit.relay import Relay, Setup, eventually

StartRelay = Callable[..., Relay]

REQUEST = b"GET /derp HTTP/1.1\r\nHost: x\r\n\r\n"
UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
KEY = NodePrivate.generate().public_key
SHARE = NodePrivate.generate()


def target(relay: Relay, suite: str | None = None) -> Target:
    scheme = "https" if relay.setup.tls else "http"
    return Target.parse(f"{scheme}://127.0.0.1:{relay.port}", insecure=True, suite=suite)


@pytest.mark.parametrize("transport", ["plain", "TLS 1.3"])
def test_every_login_succeeds_and_can_be_used_at_once(
    start_relay: StartRelay, transport: str
) -> None:
    relay = start_relay(Setup(transport))
    crowd = Crowd(target(relay), 100)
    joined = crowd.log_in()
    assert crowd.logins_per_s > 0
    assert len({client.key for client in joined}) == 100
    eventually(
        lambda: all(relay.server.is_client_connected(NodePublic(client.key)) for client in joined)
    )
    flows = [(i, i + 1) for i in range(0, 100, 2)]
    engine = Engine(joined, flows, sizes=[(500, 1.0)], window=2, verify=True)
    try:
        engine.measure(0.1)
        engine.drain(10)
        totals = engine.totals()
    finally:
        engine.close()
    assert totals["sent"] > 0
    assert totals["lost"] == totals["corrupt"] == totals["connections_lost"] == 0


@pytest.mark.parametrize("suite", SUITES)
def test_the_handshake_is_one_that_a_server_accepts_with_every_suite(
    start_relay: StartRelay, suite: str
) -> None:
    joined = Crowd(target(start_relay(Setup("TLS 1.3")), suite), 3).log_in()
    assert [client.records.suite for client in joined if client.records] == [suite] * 3
    for client in joined:
        client.close()


def test_logins_do_not_exceed_their_schedule(start_relay: StartRelay) -> None:
    crowd = Crowd(target(start_relay()), 21, rate=100)
    for client in crowd.log_in():
        client.close()
    assert crowd.logins_per_s <= 21 / 0.2


def test_progress_is_reported_and_stopping_keeps_finished_logins(start_relay: StartRelay) -> None:
    crowd = Crowd(target(start_relay()), 1000, rate=20)
    seen: list[int] = []

    def on_joined(n_joined: int) -> None:
        seen.append(n_joined)
        if n_joined:
            crowd.stop()

    joined = crowd.log_in(on_joined)
    assert 0 < len(joined) < 1000
    assert seen == sorted(seen)
    for client in joined:
        client.close()


@contextmanager
def server(*said: bytes, piece: int = 65536) -> Iterator[bytes]:
    """Accept one connection, answer each read with the next of `said`, close. Yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for answer in said:
                    connection.recv(65536)
                    for i in range(0, len(answer), piece):
                        connection.sendall(answer[i : i + piece])
                # A close with unread input would reset the connection.
                connection.shutdown(socket.SHUT_WR)
                with suppress(ConnectionError):
                    while connection.recv(65536):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield socket_address(*listener.getsockname())
        thread.join()


def run(address: bytes, **options: Any) -> None:
    """Log one client in; return when it is logged in."""
    info = frame(FrameType.CLIENT_INFO, bytes(80))
    logins = Logins(address, KEY.raw, REQUEST, [info], **options)
    while not logins.run(0.1):
        pass


def test_messages_in_small_pieces_are_understood() -> None:
    greeting = UPGRADED + server_key_frame(KEY)
    with server(greeting + frame(FrameType.SERVER_INFO, bytes(60)), piece=1) as address:
        run(address)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "answered 'HTTP/1.1 404 Not Found'"),
        (UPGRADED + frame(FrameType.PING, bytes(8)), "frame 0x12 instead of ServerKey"),
        (
            UPGRADED + server_key_frame(NodePrivate.generate().public_key),
            "a relay with another key",
        ),
        (
            UPGRADED + server_key_frame(KEY) + frame(FrameType.PEER_GONE, bytes(33)),
            "0x08 instead of ServerInfo",
        ),
        (bytes(20000), "did not upgrade"),
    ],
)
def test_a_wrong_answer_is_an_error(said: bytes, words: str) -> None:
    with server(said) as address, pytest.raises(ProtocolError, match=words):
        run(address)


@pytest.mark.parametrize("said", [(), (UPGRADED,), (UPGRADED + server_key_frame(KEY),)])
def test_a_relay_that_closes_the_connection_is_an_error(said: tuple[bytes, ...]) -> None:
    with server(*said) as address, pytest.raises(ConnectionError):
        run(address)


def test_an_address_without_a_relay_is_an_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            run(socket_address(*unused.getsockname()))


def test_a_login_that_takes_too_long_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TimeoutError):
        run(socket_address(*silent.getsockname()), limit_s=0.05)


def hello() -> dict[str, bytes]:
    return {
        "hello": client_hello("relay.example", list(SUITES), SHARE.public_key.raw),
        "hello_key": SHARE.raw,
    }


ALERT = b"\x15\3\3\0\2\2\x28"
OLD_HELLO = b"\2\0\0\x26\3\3" + bytes(32) + b"\0\x13\1\0"
NO_SHARE = b"\2\0\0\x2e\3\3" + bytes(32) + b"\0\x13\1\0\0\6\0\x2b\0\2\3\4"
LYING = b"\2\0\0\x2e\3\3" + bytes(32) + b"\xff\x13\1\0\0\6\0\x2b\0\2\3\4"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (ALERT, "alert 40"),
        (b"\x16\3\3" + len(OLD_HELLO).to_bytes(2, "big") + OLD_HELLO, "needs TLS 1.3"),
        (b"\x16\3\3" + len(NO_SHARE).to_bytes(2, "big") + NO_SHARE, "handshake failed"),
        (b"\x16\3\3" + len(LYING).to_bytes(2, "big") + LYING, "needs TLS 1.3"),
        (b"\x16\3\3\0\0", "handshake failed"),
        (b"\x17\3\3\0\x20" + bytes(32), "handshake failed"),
        (b"\x16\3\3\xff\xff", "handshake failed"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "handshake failed"),
    ],
)
def test_a_server_without_a_handshake_is_an_error(said: bytes, words: str) -> None:
    with server(said) as address, pytest.raises(ProtocolError, match=words):
        run(address, **hello())


def test_contradictory_arguments_are_refused() -> None:
    address = socket_address("127.0.0.1", 1)
    for wrong in (
        {"at_once": 0},
        {"rate": -1.0},
        {"limit_s": 0.0},
        {"sources": [socket_address("::1", 0)]},
        {"hello": b"x"},
        {"hello": b"x", "hello_key": b"short"},
    ):
        with pytest.raises(ValueError):
            Logins(address, KEY.raw, REQUEST, [b"info"], **wrong)
    with pytest.raises(ValueError, match="same size"):
        Logins(address, KEY.raw, REQUEST, [b"a", b"bb"])
    with pytest.raises(ValueError, match="32 bytes"):
        Logins(address, b"key", REQUEST, [])
    with pytest.raises(ValueError, match="TLS_OTHER"):
        client_hello("x", ["TLS_OTHER"], bytes(32))
