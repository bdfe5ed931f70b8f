"""TLS records that end a connection, in one segment with good data before them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from fastderp.server.http.message import Response
from tests.kit.memory_tls import MemoryTlsSocket
from tests.kit.peer import FAST_START, RECV, Peer, client_info, frame, upgrade_request
from tests.kit.relay import PATIENCE_S, Relay, Setup, client_context, eventually
from tests.kit.websocket import WebSocketPeer

StartRelay = Callable[..., Relay]

SETUPS = [
    Setup(transport, loop)
    for transport in ("TLS 1.2", "TLS 1.3", "WebSocket over TLS 1.3")
    for loop in ("uvloop", "asyncio")
]
RAW_SETUPS, TLS_1_3 = SETUPS[:4], SETUPS[2:4]
REQUEST = b"GET /derp/probe HTTP/1.1\r\nHost: relay\r\n\r\n"
SEND = 4
BAD_RECORD_MAC = r"(?i)bad.record.mac|decryption.failed"


def connect(relay: Relay) -> tuple[Peer, MemoryTlsSocket]:
    sock = socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S)
    context = client_context(relay.setup)
    assert context is not None
    held = MemoryTlsSocket(sock, context)
    kind = WebSocketPeer if relay.setup.websocket else Peer
    return kind(cast("Any", held)), held


def session_ends(relay: Relay) -> dict[str, int]:
    return dict(relay.metrics()["fastderp_session_closed_total"])


@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_packets_in_one_segment_with_a_broken_record_arrive_and_the_sender_gets_an_alert(
    start_relay: StartRelay, setup: Setup
) -> None:
    relay = start_relay(setup)
    sender, held = connect(relay)
    with relay.login() as receiver, sender:
        sender.login(relay.server.public_key)
        held.hold()
        for _ in range(20):
            sender.send_packet(receiver.public, b"last words" * 100)
        held.release(held.tls.broken())
        for _ in range(20):
            assert receiver.read_packet() == (sender.public, b"last words" * 100)
        with pytest.raises(ssl.SSLError, match=BAD_RECORD_MAC):
            sender.read_to_end()
        eventually(lambda: session_ends(relay) == {"tls": 1})


@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_packets_in_one_segment_with_a_close_notify_arrive(
    start_relay: StartRelay, setup: Setup
) -> None:
    relay = start_relay(setup)
    sender, held = connect(relay)
    with relay.login() as receiver, sender:
        sender.login(relay.server.public_key)
        held.hold()
        sender.send_packet(receiver.public, b"last words")
        held.release(held.tls.close_notify())
        assert receiver.read_packet() == (sender.public, b"last words")
        eventually(lambda: session_ends(relay) == {"eof": 1})


@pytest.mark.parametrize("setup", RAW_SETUPS, ids=str)
@pytest.mark.parametrize("end", ["close_notify", "broken"])
@pytest.mark.parametrize("asks", [False, True], ids=["", "with admission"])
def test_a_whole_login_with_packets_in_one_segment_with_the_end_is_served(
    start_relay: StartRelay, setup: Setup, end: str, asks: bool
) -> None:
    async def allow(*client: object) -> bool:
        return True

    relay = start_relay(setup, verify=allow if asks else None)
    sender, held = connect(relay)
    with relay.login() as receiver, sender:
        held.hold()
        sender.send(upgrade_request(FAST_START))
        sender.send(client_info(sender.key, relay.server.public_key))
        sender.send(frame(SEND, receiver.public.raw + b"last words"))
        held.release(held.tls.broken() if end == "broken" else held.tls.close_notify())
        assert receiver.read_frame() == (RECV, sender.public.raw + b"last words")
        eventually(lambda: session_ends(relay) == {"tls" if end == "broken" else "eof": 1})


@pytest.mark.parametrize("setup", RAW_SETUPS, ids=str)
@pytest.mark.parametrize("n_requests", [1, 2, 20])
def test_requests_in_one_segment_with_a_broken_record_are_answered_before_the_alert(
    start_relay: StartRelay, setup: Setup, n_requests: int
) -> None:
    relay = start_relay(setup)
    client, held = connect(relay)
    with client:
        held.hold()
        for _ in range(n_requests):
            client.send(REQUEST)
        held.release(held.tls.broken())
        for _ in range(n_requests):
            assert client.read_head().startswith(b"HTTP/1.1 200 ")
        with pytest.raises(ssl.SSLError, match=BAD_RECORD_MAC):
            client.read_to_end()
    cause = "bad_mac" if setup in TLS_1_3 else "protocol"
    eventually(lambda: relay.refused() == {f"http_{cause}": 1})


@pytest.mark.parametrize("setup", RAW_SETUPS, ids=str)
def test_a_broken_record_ends_an_endless_page(
    start_relay: StartRelay, setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    wants_more = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        await wants_more.wait()
        yield b"second"

    relay = start_relay(setup)
    page = lambda _: Response(pieces=pieces())  # noqa: E731
    relay.call(relay.listener.routes.exact.__setitem__, "/endless", page)
    client, held = connect(relay)
    with client:
        client.send(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        client.read_head()
        held.hold()
        held.release(held.tls.broken())
        eventually(relay.refused)
        relay.call(wants_more.set)
        with pytest.raises(ssl.SSLError, match=BAD_RECORD_MAC):
            client.read_to_end()
    assert "internal error" not in caplog.text
