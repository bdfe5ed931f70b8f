"""The end of a relay: every client is notified, none delays it, no state is left.

PROTOCOL §6.11.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import struct
import time
from collections.abc import Callable

import pytest

from fastderp.errors import ConnectionClosed
from fastderp.server.http.message import Response
from fastderp.server.server import Server
from fastderp.wire.keys import NodePrivate
from tests.kit.peer import RESTARTING, SERVER_KEY, client_info
from tests.kit.relay import EVERY_SETUP, EVERY_WEBSOCKET_SETUP, Relay, Setup, eventually
from tests.kit.streams import StreamPair
from tests.kit.websocket import WebSocketPeer

StartRelay = Callable[..., Relay]

# A relay waits 2 s for clients that do not read its close; a slow machine needs some more.
AT_ONCE_S = 8.0


@pytest.mark.parametrize("setup", EVERY_WEBSOCKET_SETUP, ids=str)
def test_websockets_get_a_going_away_close_frame(start_relay: StartRelay, setup: Setup) -> None:
    relay = start_relay(setup)
    with relay.login() as peer, relay.connect() as waiting:
        assert isinstance(peer, WebSocketPeer) and isinstance(waiting, WebSocketPeer)
        waiting.upgrade(relay.server.public_key)
        closing = asyncio.run_coroutine_threadsafe(relay.server.close(), relay._loop)
        assert peer.closing() == (1001, b"")
        assert waiting.closing() == (1001, b"")
        peer.close()
        closing.result(AT_ONCE_S)


@pytest.mark.parametrize("setup", EVERY_SETUP, ids=str)
def test_frames_announced_before_the_end_still_arrive(
    start_relay: StartRelay, setup: Setup
) -> None:
    relay = start_relay(setup)
    with relay.login() as peer:
        assert relay.call(relay.server.announce_restart, 2.0, 30.0) == 1
        closing = asyncio.run_coroutine_threadsafe(relay.server.close(), relay._loop)
        assert peer.read_frame() == (RESTARTING, struct.pack(">II", 2000, 30_000))
        assert peer.is_closed()
        peer.close()
        closing.result(AT_ONCE_S)


@pytest.mark.parametrize("transport", ["TLS 1.2", "WebSocket", "TLS 1.3"])
def test_a_client_that_reads_nothing_does_not_delay_the_end(
    start_relay: StartRelay, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastderp.server.accept.bridge.DRAIN_S", 0.2)
    relay = start_relay(Setup(transport), write_timeout=0)
    with relay.login() as sender, relay.login() as stuck:
        for _ in range(100):
            sender.send_packet(stuck.public, bytes(65536))
        sender.sync()
        relay.run(relay.server.close())
        assert relay.call(lambda: len(relay.server._registrar.bridges)) == 0


def test_repeated_and_concurrent_closes_are_one_close(start_relay: StartRelay) -> None:
    relay = start_relay()

    async def close_three_times() -> None:
        await asyncio.gather(relay.server.close(), relay.server.close())
        await relay.server.close()

    with relay.login() as peer:
        relay.run(close_three_times())
        assert peer.is_closed()


async def test_a_cancelled_close_does_not_leave_half_a_relay() -> None:
    server = Server(workers=1)
    server.start()
    closing = asyncio.ensure_future(server.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await server.close()
    with pytest.raises(ConnectionClosed):
        server.start()


async def test_a_closed_relay_accepts_no_client() -> None:
    async with Server(workers=1) as server:
        port = server.listen("127.0.0.1", 0).port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 10)
    with pytest.raises(ConnectionClosed):
        server.listen("127.0.0.1", 0)
    pair = StreamPair()
    with pytest.raises(ConnectionClosed):
        await server.accept(pair.relay_reads, pair.relay_writes)
    assert pair.relay_writes.is_closed


async def test_a_relay_that_never_started_can_be_closed() -> None:
    await Server(workers=1).close()


async def test_serving_ends_with_the_relay_and_the_relay_with_serving() -> None:
    server = Server(workers=1)
    serving = asyncio.ensure_future(server.serve("127.0.0.1", 0))
    await asyncio.sleep(0)
    await server.close()
    await serving
    other = Server(workers=1)
    serving = asyncio.ensure_future(other.serve("127.0.0.1", 0))
    await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    with pytest.raises(ConnectionClosed):
        other.start()


async def test_a_relay_that_cannot_listen_leaves_nothing_running() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = Server(workers=1)
        with pytest.raises(OSError, match="127.0.0.1"):
            await server.serve("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConnectionClosed):
        server.start()


@pytest.mark.parametrize("queue_packets", [-1, 2**32])
def test_a_queue_of_an_impossible_length_is_a_value_error_that_names_it(queue_packets: int) -> None:
    with pytest.raises(ValueError, match=f"queue_packets: .*not {queue_packets}"):
        Server(workers=1, queue_packets=queue_packets)


# Embedded streams


async def test_any_object_with_the_methods_of_a_stream_is_served() -> None:
    async with Server(workers=1) as server:
        pairs = [StreamPair(), StreamPair()]
        keys = [NodePrivate.generate(), NodePrivate.generate()]
        serving = [
            asyncio.ensure_future(
                server.accept(pair.relay_reads, pair.relay_writes, ("2001:db8::7", 1))
            )
            for pair in pairs
        ]
        for pair, key in zip(pairs, keys, strict=True):
            assert (await pair.read_frame())[0] == SERVER_KEY
            pair.write(client_info(key, server.public_key))
            await pair.read_frame()
        ann, bob = pairs
        for size in (0, 1, 65536):
            ann.send_packet(keys[1].public_key, bytes(size))
            assert (await bob.read_frame())[1] == keys[0].public_key.raw + bytes(size)
        assert {client.ip for client in server.clients()} == {"2001:db8::7"}
        ann.end()
        await serving[0]
        assert ann.relay_writes.is_closed
    await serving[1]
    assert bob.relay_writes.is_closed


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), "reset"),
        (ConnectionResetError("Connection lost"), "reset"),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), "tcp_timeout"),
        (OSError(errno.EHOSTUNREACH, "no route"), "unreachable"),
        (ssl.SSLError(1, "[SSL] bad record mac"), "tls"),
    ],
    ids=str,
)
async def test_the_error_that_ends_a_stream_is_the_reason_of_its_end(
    error: OSError, reason: str
) -> None:
    pair, key = StreamPair(), NodePrivate.generate()
    async with Server(workers=1) as server:
        serving = asyncio.ensure_future(server.accept(pair.relay_reads, pair.relay_writes))
        await pair.read_frame()
        pair.write(client_info(key, server.public_key))
        await pair.read_frame()
        pair.fail(error)
        await serving
        async with asyncio.timeout(AT_ONCE_S):
            while not (ends := server.metrics()["fastderp_session_closed_total"]):
                await asyncio.sleep(0)
        assert ends == {reason: 1}


async def test_a_login_over_streams_does_not_delay_the_close() -> None:
    pair = StreamPair()
    async with Server(workers=1) as server:
        serving = asyncio.ensure_future(server.accept(pair.relay_reads, pair.relay_writes))
        await pair.read_frame()
    with pytest.raises(ConnectionClosed):
        await serving
    assert pair.relay_writes.is_closed
    assert server.metrics()["fastderp_closed_total"] == {"login_shutdown": 1}


async def test_streams_whose_peer_reads_nothing_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fastderp.server.accept.embedded.DRAIN_S", 0.1)
    over = asyncio.Event()
    async with Server(workers=1, write_timeout=0.5) as server:

        async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await server.accept(reader, writer)
            finally:
                over.set()

        listening = await asyncio.start_server(served, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        stuck, other = NodePrivate.generate(), StreamPair()
        await reader.readexactly(45)
        writer.write(client_info(stuck, server.public_key))
        await reader.readexactly(5)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        asyncio.ensure_future(server.accept(other.relay_reads, other.relay_writes))
        await other.read_frame()
        other.write(client_info(NodePrivate.generate(), server.public_key))
        await other.read_frame()
        async with asyncio.timeout(AT_ONCE_S):
            while not over.is_set():
                other.send_packet(stuck.public_key, bytes(65536))
                await asyncio.sleep(0.001)
        writer.transport.abort()
        listening.close()


def test_an_endless_page_ends_with_the_relay(start_relay: StartRelay) -> None:
    relay = start_relay()
    relay.call(
        relay.listener.routes.exact.__setitem__,
        "/endless",
        lambda _: Response(pieces=relay.server.traffic_lines()),
    )
    with relay.connect() as browser:
        browser.send(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        browser.read_head()
        began_s = time.monotonic()
        relay.run(relay.server.close())
        browser.read_to_end()
        assert time.monotonic() - began_s < AT_ONCE_S
    eventually(lambda: relay.server.metrics()["fastderp_connections_not_logged_in"] == 0)
