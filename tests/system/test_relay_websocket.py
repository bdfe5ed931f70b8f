"""DERP over WebSocket: opening handshake, message boundaries, violations. PROTOCOL §9.3."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fastderp.server.accept.websocket import MESSAGE_LIMIT_BYTES
from fastderp.wire.keys import NodePrivate
from tests.kit.memory import resident_bytes
from tests.kit.peer import MAGIC, SEND, SERVER_INFO, SERVER_KEY, client_info, frame
from tests.kit.relay import EVERY_WEBSOCKET_SETUP, Relay, Setup, eventually
from tests.kit.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    PING,
    PONG,
    TEXT,
    WebSocketPeer,
    message,
    opening_request,
)

StartRelay = Callable[..., Relay]

WEBSOCKET = Setup("WebSocket")


def connect(relay: Relay) -> WebSocketPeer:
    """Connect; the type has the WebSocket's methods."""
    peer = relay.connect()
    assert isinstance(peer, WebSocketPeer)
    return peer


def login(relay: Relay) -> WebSocketPeer:
    """Log in; the type has the WebSocket's methods."""
    peer = relay.login()
    assert isinstance(peer, WebSocketPeer)
    return peer


# The opening handshake


@pytest.mark.parametrize(
    ("request_head", "status", "header"),
    [
        pytest.param(
            opening_request(Connection=None), b"426", b"Upgrade: websocket", id="no Connection"
        ),
        pytest.param(
            opening_request(Connection="keep-alive"),
            b"426",
            b"Upgrade: websocket",
            id="no upgrade token",
        ),
        pytest.param(
            opening_request().replace(b"HTTP/1.1", b"HTTP/1.0"),
            b"426",
            b"Upgrade: websocket",
            id="HTTP/1.0",
        ),
        pytest.param(opening_request().replace(b"GET", b"POST"), b"405", b"Allow: GET", id="POST"),
        pytest.param(
            opening_request(Sec_WebSocket_Version="12"),
            b"400",
            b"Sec-WebSocket-Version: 13",
            id="version 12",
        ),
        pytest.param(
            opening_request(Sec_WebSocket_Version=None),
            b"400",
            b"Sec-WebSocket-Version: 13",
            id="no version",
        ),
        pytest.param(
            opening_request(Sec_WebSocket_Key=None), b"400", b"Sec-WebSocket-Key", id="no key"
        ),
        pytest.param(opening_request(key="c2hvcnQ="), b"400", b"Sec-WebSocket-Key", id="short key"),
        pytest.param(
            opening_request(key="not base64!"), b"400", b"Sec-WebSocket-Key", id="key not base64"
        ),
        pytest.param(
            opening_request(sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ=="),
            b"400",
            b"Sec-WebSocket-Key",
            id="two keys",
        ),
    ],
)
def test_a_malformed_opening_handshake_is_answered(
    start_relay: StartRelay, request_head: bytes, status: bytes, header: bytes
) -> None:
    relay = start_relay()
    with relay.connect() as peer:
        peer.send(request_head)
        head = peer.read_head()
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        answer = head + peer.read(length)
    assert answer.split()[1] == status and header in answer
    assert relay.metrics()["derp_websocket_accepts"] == 0


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="plain"),
        pytest.param({"Origin": "https://anywhere.example"}, id="any origin"),
        pytest.param(
            {"Sec_WebSocket_Extensions": "permessage-deflate; client_max_window_bits"},
            id="extensions",
        ),
        pytest.param(
            {"Upgrade": "WebSocket", "Connection": "keep-alive, upgrade"}, id="other spelling"
        ),
        pytest.param({"Sec_WebSocket_Protocol": "chat, derp"}, id="two subprotocols"),
    ],
)
def test_the_answer_names_the_subprotocol_and_no_extension(
    start_relay: StartRelay, headers: dict[str, str]
) -> None:
    relay = start_relay(WEBSOCKET)
    with connect(relay) as peer:
        head = peer.open(opening_request(**headers))
        assert b"\r\nSec-WebSocket-Protocol: derp\r\n" in head
        assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head
        assert b"extensions" not in head.lower()
        assert peer.read_frame() == (SERVER_KEY, MAGIC + relay.server.public_key.raw)
    assert relay.metrics()["derp_websocket_accepts"] == 1
    assert relay.metrics()["derp_accepts"] == 1


def test_a_websocket_for_something_like_derp_is_closed_with_1008(start_relay: StartRelay) -> None:
    relay = start_relay(WEBSOCKET)
    with connect(relay) as peer:
        head = peer.open(opening_request(Sec_WebSocket_Protocol="derpx"))
        assert b"sec-websocket-protocol" not in head.lower()
        assert peer.closing()[0] == 1008
    assert relay.metrics()["derp_websocket_accepts"] == 0
    assert relay.refused() == {"http_websocket": 1}
    assert relay.metrics()["fastderp_websocket_failures_total"] == {"1008": 1}


@pytest.mark.parametrize("subprotocol", [None, "chat"])
def test_without_a_derp_subprotocol_it_is_the_raw_upgrade(
    start_relay: StartRelay, subprotocol: str | None
) -> None:
    relay = start_relay()
    with relay.connect() as peer:
        peer.send(opening_request(Sec_WebSocket_Protocol=subprotocol))
        assert b"\r\nUpgrade: DERP\r\n" in peer.read_head()
        assert peer.read_frame() == (SERVER_KEY, MAGIC + relay.server.public_key.raw)


# The byte stream inside


@pytest.mark.parametrize("setup", EVERY_WEBSOCKET_SETUP, ids=str)
def test_packets_of_64_kib_cross_in_both_directions(start_relay: StartRelay, setup: Setup) -> None:
    relay = start_relay(setup)
    data = os.urandom(65536)
    with login(relay) as a, login(relay) as b:
        a.send_packet(b.public, data)
        assert b.read_packet() == (a.public, data)
        b.send_packet(a.public, data)
        assert a.read_packet() == (b.public, data)
        # Some clients refuse messages of more than 32 KiB.
        assert max(b.message_sizes) <= 32768
    relay.wait_connected(a.public, False)


@pytest.mark.parametrize(
    "setup", [Setup("WebSocket", "uvloop"), Setup("WebSocket over TLS 1.3", "asyncio")], ids=str
)
def test_everything_may_come_in_one_write_with_the_opening_handshake(
    start_relay: StartRelay, setup: Setup
) -> None:
    relay = start_relay(setup)
    with connect(relay) as peer:
        login_and_ping = client_info(peer.key, relay.server.public_key) + frame(0x12, b"12345678")
        peer.open(opening_request() + message(login_and_ping[:50]) + message(login_and_ping[50:]))
        assert peer.read_frame()[0] == SERVER_KEY
        assert peer.read_frame()[0] == SERVER_INFO
        assert peer.read_frame() == (0x13, b"12345678")


def test_message_boundaries_have_no_meaning(start_relay: StartRelay) -> None:
    relay = start_relay(WEBSOCKET)
    packets = [os.urandom(size) for size in (0, 1, 500, 3)]
    with login(relay) as a, login(relay) as b:
        stream = b"".join(frame(SEND, b.public.raw + data) for data in packets)
        a.send_raw(b"".join(message(stream[i : i + 1]) for i in range(len(stream))))
        a.send_raw(message(stream))
        third = len(stream) // 3
        a.send_raw(message(stream[:third], BINARY))
        a.send_raw(message(b"still here?", FIN | PING))
        a.send_raw(message(b"", CONTINUATION))
        a.send_raw(message(stream[third:], FIN | CONTINUATION))
        assert [b.read_packet() for _ in range(3 * len(packets))] == [
            (a.public, data) for data in packets
        ] * 3
        assert a.sync() == []
        assert a.controls == [(PONG, b"still here?")]


def test_frames_may_arrive_byte_by_byte(start_relay: StartRelay) -> None:
    relay = start_relay(WEBSOCKET)
    with login(relay) as a:
        for byte in message(frame(SEND, a.public.raw + b"slow")):
            a.send_raw(bytes([byte]))
        assert a.read_packet() == (a.public, b"slow")


def test_the_longest_message_is_accepted_and_one_byte_more_is_closed_with_1009(
    start_relay: StartRelay,
) -> None:
    relay = start_relay(WEBSOCKET)
    with login(relay) as a, login(relay) as b:
        packet = frame(SEND, b.public.raw + bytes(65536))
        ignored = frame(0x7F, bytes(1000))
        rest = frame(0x7F, bytes(MESSAGE_LIMIT_BYTES - len(packet) - len(ignored) - 5))
        a.send_raw(message(packet + ignored + rest))
        assert b.read_packet() == (a.public, bytes(65536))
        assert a.sync() == []
        a.send_raw(message(bytes(MESSAGE_LIMIT_BYTES + 1)))
        assert a.closing()[0] == 1009
        assert b.read_frame() == (8, a.public.raw + b"\0")


# Control frames


@pytest.mark.parametrize("payload", [b"", b"x", b"x" * 125])
def test_pings_are_answered_before_and_after_the_login(
    start_relay: StartRelay, payload: bytes
) -> None:
    relay = start_relay(WEBSOCKET)
    with connect(relay) as peer:
        peer.open(opening_request() + message(payload, FIN | PING))
        assert peer.read_frame()[0] == SERVER_KEY
        peer.send_raw(message(payload, FIN | PING) + message(payload, FIN | PONG))
        peer.send(client_info(peer.key, relay.server.public_key))
        peer.read_server_info(relay.server.public_key)
        peer.send_raw(message(payload, FIN | PING))
        assert peer.sync() == []
    assert peer.controls == [(PONG, payload)] * 3


@pytest.mark.parametrize("setup", EVERY_WEBSOCKET_SETUP, ids=str)
@pytest.mark.parametrize("payload", [b"", b"\x03\xe8", b"\x03\xe9going away"])
def test_a_close_frame_is_echoed_and_ends_the_session(
    start_relay: StartRelay, setup: Setup, payload: bytes
) -> None:
    relay = start_relay(setup)
    with login(relay) as bystander, login(relay) as peer:
        peer.send_packet(bystander.public, b"last words")
        peer.send_raw(message(payload, FIN | CLOSE))
        peer.read_to_end()
        assert peer.controls == [(CLOSE, payload)]
        assert bystander.read_packet() == (peer.public, b"last words")
        relay.wait_connected(peer.public, False)
    assert relay.metrics()["fastderp_websocket_failures_total"] == {}


@pytest.mark.parametrize("setup", EVERY_WEBSOCKET_SETUP, ids=str)
def test_a_session_the_relay_ends_is_closed_with_1000(
    start_relay: StartRelay, setup: Setup
) -> None:
    relay = start_relay(setup)
    with login(relay) as peer:
        peer.send(frame(SEND, b"too short"))
        assert peer.closing() == (1000, b"")


def test_a_close_frame_during_the_login_is_answered(start_relay: StartRelay) -> None:
    relay = start_relay(WEBSOCKET)
    with connect(relay) as peer:
        peer.upgrade(relay.server.public_key)
        peer.send(client_info(peer.key, relay.server.public_key)[:20])
        peer.send_raw(message(b"\x03\xe8", FIN | CLOSE))
        assert peer.closing() == (1000, b"")
    eventually(lambda: relay.refused() == {"login_end": 1})


def test_a_bad_login_is_closed_with_1000(start_relay: StartRelay) -> None:
    relay = start_relay(WEBSOCKET)
    with connect(relay) as peer:
        peer.upgrade(relay.server.public_key)
        peer.send(frame(0x12, bytes(60)))
        assert peer.closing() == (1000, b"")
    assert relay.refused() == {"login_frame_type": 1}


# Protocol violations

BREACHES = {
    "text": (message(b"hello", FIN | TEXT), 1003),
    "beginning of a text": (message(b"hello", TEXT), 1003),
    "unmasked": (message(b"hello", masked=False), 1002),
    "reserved bit": (message(b"hello", FIN | BINARY | 0x40), 1002),
    "unknown data frame": (message(b"hello", FIN | 3), 1002),
    "unknown control frame": (message(b"hello", FIN | 11), 1002),
    "ping of 126 bytes": (message(bytes(126), FIN | PING), 1002),
    "ping in pieces": (message(b"hello", PING), 1002),
    "continuation of nothing": (message(b"hello", FIN | CONTINUATION), 1002),
    "message inside a message": (message(b"a", BINARY) + message(b"b", FIN | BINARY), 1002),
    "close inside a message": (message(b"a", BINARY) + message(b"\x03\xe8", FIN | CLOSE), 1002),
    "close of one byte": (message(b"\x03", FIN | CLOSE), 1002),
    "close code that is none": (message(b"\x03\xed", FIN | CLOSE), 1002),
    "close reason that is not UTF-8": (message(b"\x03\xe8\xff", FIN | CLOSE), 1007),
    "message of 8 EiB": (struct.pack(">BBQ", FIN | BINARY, 0xFF, 2**63 - 1), 1009),
    "message of -1 byte": (struct.pack(">BBQ", FIN | BINARY, 0xFF, 2**64 - 1), 1009),
    "too much in pieces": (
        message(bytes(MESSAGE_LIMIT_BYTES - 10), BINARY) + message(bytes(11), FIN | CONTINUATION),
        1009,
    ),
}


@pytest.mark.parametrize("logged_in", [False, True], ids=["before the login", "after the login"])
@pytest.mark.parametrize("what", BREACHES)
def test_a_protocol_violation_gets_its_close_code_is_counted_and_affects_no_other_client(
    start_relay: StartRelay, what: str, logged_in: bool
) -> None:
    breach, code = BREACHES[what]
    relay = start_relay(WEBSOCKET)
    with login(relay) as bystander, connect(relay) as peer:
        if logged_in:
            peer.login(relay.server.public_key)
        else:
            peer.upgrade(relay.server.public_key)
            if what == "too much in pieces":
                # Otherwise the zeros are a bad login.
                breach = message(
                    frame(2, bytes(262144))[: MESSAGE_LIMIT_BYTES - 10], BINARY
                ) + message(bytes(11), FIN | CONTINUATION)
        peer.send_raw(breach)
        assert peer.closing()[0] == code
        assert bystander.sync() == []
        ends = {"websocket": 1} if logged_in else {}
        eventually(lambda: relay.metrics()["fastderp_session_closed_total"] == ends)
    assert relay.metrics()["fastderp_websocket_failures_total"] == {str(code): 1}
    assert relay.refused() == ({} if logged_in else {"login_end": 1})


# Floods


@pytest.mark.parametrize("setup", [WEBSOCKET, Setup("WebSocket over TLS 1.3")], ids=str)
def test_a_client_that_does_not_read_pongs_is_not_read(
    start_relay: StartRelay, setup: Setup
) -> None:
    relay = start_relay(setup)
    before = resident_bytes()
    with login(relay) as flooder, login(relay) as bystander:
        flooder.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            for _ in range(2000):
                flooder.send_raw(message(bytes(125), FIN | PING) * 100)
        assert bystander.sync() == []
    assert resident_bytes() - before < 32 << 20


def test_a_websocket_that_does_not_read_is_closed_at_the_write_deadline(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastderp.server.accept.bridge.DRAIN_S", 0.2)
    relay = start_relay(WEBSOCKET, write_timeout=0.5)
    with login(relay) as sender, login(relay) as stuck:
        stop = threading.Event()

        def shoot() -> None:
            while not stop.is_set():
                sender.send_packet(stuck.public, bytes(65536))

        shooter = threading.Thread(target=shoot)
        shooter.start()
        try:
            relay.wait_connected(stuck.public, False)
        finally:
            stop.set()
            shooter.join()
        assert sender.sync() == []
        # The relay also closes the socket, although the client still reads nothing.
        eventually(lambda: relay.call(lambda: len(relay.server._registrar.bridges)) == 1)
    assert relay.metrics()["derp_sclient_write_timeouts"] == 1


def test_long_messages_before_the_login_share_a_bounded_memory(start_relay: StartRelay) -> None:
    relay = start_relay(WEBSOCKET, login_memory_bytes=4 << 20)
    begun = message(bytes(130_000))[:120_000]
    held = []
    for _ in range(35):
        peer = connect(relay)
        peer.upgrade(relay.server.public_key)
        peer.send_raw(begun)
        held.append(peer)
    eventually(lambda: "login_memory" in relay.refused())
    assert relay.metrics()["fastderp_login_memory_bytes"] <= 4 << 20
    with login(relay) as small:
        assert small.sync() == []
    for peer in held:
        peer.close()
    eventually(lambda: relay.metrics()["fastderp_login_memory_bytes"] == 0)


def test_long_messages_after_the_login_share_a_bounded_memory_and_end_no_short_one(
    start_relay: StartRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastderp.server.accept.bridge.HELD_LIMIT_BYTES", 250_000)
    relay = start_relay(WEBSOCKET)
    packet = frame(SEND, bytes(32 + 60_000))
    long_message = message(packet * 2)

    def held_bytes() -> int:
        return relay.call(lambda: relay.server._registrar.bridges._held_bytes)

    with login(relay) as first, login(relay) as second, login(relay) as third:
        for peer in (first, second):
            peer.send_raw(long_message[:-100])
        eventually(lambda: held_bytes() > 230_000)
        short_message = message(frame(SEND, bytes(32 + 12_000)))
        third.send_raw(short_message[:-100])
        eventually(lambda: held_bytes() > 250_000)
        third.send_raw(short_message[-100:])
        assert third.sync() == []
        third.send_raw(long_message[:-100])
        assert third.closing()[0] == 1013
        for peer in (first, second):
            peer.send_raw(long_message[-100:])
            assert peer.sync() == []
        assert held_bytes() == 0
        first.send_raw(long_message[:-100])
        eventually(lambda: held_bytes() > 100_000)
    eventually(lambda: held_bytes() == 0)
    assert relay.metrics()["fastderp_websocket_failures_total"] == {"1013": 1}


# A browser's client


@pytest.fixture(scope="module")
def node() -> list[str]:
    """Return the command of a Node with the browsers' WebSocket."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("needs Node")
    command = [program, "--experimental-websocket"]
    if (
        subprocess.run(
            [*command, "--eval", "WebSocket"], capture_output=True, timeout=20
        ).returncode
        != 0
    ):
        pytest.skip("needs a Node with the browsers' WebSocket (20.10 or newer)")
    return command


@pytest.mark.parametrize(
    "setup", [Setup("WebSocket", "uvloop"), Setup("WebSocket over TLS 1.3", "asyncio")], ids=str
)
@pytest.mark.browser
def test_a_browsers_websocket_reaches_other_clients(
    start_relay: StartRelay, setup: Setup, node: list[str]
) -> None:
    relay = start_relay(setup)
    key = NodePrivate.generate()
    with relay.login() as peer:
        arguments = [
            f"{'wss' if setup.tls else 'ws'}://127.0.0.1:{relay.port}/derp",
            client_info(key, relay.server.public_key).hex(),
            frame(SEND, peer.public.raw + bytes(70)).hex(),
        ]
        with subprocess.Popen(
            [*node, str(Path(__file__).with_name("browser.mjs")), *arguments],
            env={**os.environ, "NODE_TLS_REJECT_UNAUTHORIZED": "0"},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert peer.read_packet() == (key.public_key, bytes(70))
            peer.send_packet(key.public_key, b"hello, browser")
            assert process.stdout is not None
            assert process.stdout.read().split() == [b"hello, browser".hex(), "1000"]
