"""HTTPClient: connecting, events, automatic reconnection, closing (PROTOCOL §4, §13)."""

import asyncio
import logging
from typing import Any
from unittest.mock import patch

import pytest

from fastderp import (
    Backoff,
    Connected,
    ConnectionState,
    DialFailed,
    Disconnected,
    Health,
    HTTPClient,
    ServerRestarting,
)
from fastderp.client import connector
from fastderp.errors import (
    ConcurrencyError,
    ConnectionClosed,
    ConnectionLost,
    DialError,
    WrongLoopError,
)
from fastderp.wire.keys import NodePrivate, NodePublic
from fastderp.wire.login import ServerInfo
from fastderp.wire.messages import ReceivedPacket
from fastderp.wire.protocol import FrameType, restarting_payload
from tests.unit.fake_relay import FakeServer, RelayEnd, fake_server

PEER = NodePublic(b"\x11" * 32)


async def entered(client: HTTPClient, server: FakeServer, **login: Any) -> RelayEnd:
    """Enter the client's context while the relay accepts; return the relay's end."""
    _, (_, relay) = await asyncio.gather(client.__aenter__(), server.next_login(**login))
    return relay


async def drop(relay: RelayEnd) -> None:
    """Break a connection, as a relay that crashes."""
    relay.writer.transport.abort()


async def drop_and_wait(client: HTTPClient, relay: RelayEnd) -> None:
    """Break a connection, and let its client begin the longest wait of its back-off."""
    with patch("fastderp.client.backoff.random.uniform", lambda low, high: high):
        await drop(relay)
        while client.state is not ConnectionState.WAITING:
            await asyncio.sleep(0)


# Connecting


async def test_entering_connects_and_waits_until_the_login_is_accepted(server: FakeServer) -> None:
    client = server.client()
    entering = asyncio.create_task(client.__aenter__())
    _, relay = await server.next_login(None)
    assert relay.login is not None
    assert (entering.done(), client.state) == (False, ConnectionState.CONNECTING)
    relay.writer.write(relay.login.server_info_frame())
    assert await entering is client
    assert (client.is_connected, client.state) == (True, ConnectionState.CONNECTED)
    await client.__aexit__()
    assert (client.is_closed, client.state) == (True, ConnectionState.CLOSED)


async def test_entering_at_a_relay_that_refuses_the_login_fails_and_closes(
    server: FakeServer,
) -> None:
    client = server.client()
    entering = asyncio.create_task(client.__aenter__())
    _, relay = await server.next_login(None)
    await relay.close()
    with pytest.raises(DialError, match="instead of accepting the login") as caught:
        await entering
    assert isinstance(caught.value.__cause__, ConnectionLost)
    assert client.is_closed


async def test_entering_at_a_relay_that_never_answers_the_login_fails(server: FakeServer) -> None:
    with patch.object(connector, "CONNECT_TIMEOUT_S", 1.0):
        entering = asyncio.create_task(server.client().__aenter__())
        await server.next_login(None)
        with pytest.raises(DialError, match=r"no answer to the login in 1 s"):
            await entering


@pytest.mark.parametrize("reconnect", [True, False])
async def test_a_login_without_an_answer_is_reported_and_with_reconnect_repeated(
    server: FakeServer, reconnect: bool
) -> None:
    client = server.client(reconnect=reconnect)
    events = client.events()
    with patch.object(connector, "CONNECT_TIMEOUT_S", 1.0):
        connecting = asyncio.create_task(client.connect())
        await server.next_login(None)
        with pytest.raises(DialError, match="no answer to the login"):
            await connecting
    failed = await anext(events)
    assert isinstance(failed, DialFailed) and "no answer to the login" in str(failed.reason)
    if reconnect:
        await server.next_login()
        assert await anext(events) == Connected(2, server.key.public_key)
    else:
        assert client.state is ConnectionState.IDLE
    await client.close()


async def test_a_region_that_is_never_there_leaves_turns_to_other_tasks() -> None:
    client = HTTPClient.for_region(
        lambda: None, NodePrivate.generate(), reconnect=True, backoff=Backoff(0, 0)
    )
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.recv()
    await client.close()


async def test_entering_where_nothing_listens_fails_once_even_with_reconnect() -> None:
    async with fake_server() as gone:
        client = gone.client(reconnect=True)
    with pytest.raises(DialError, match="refused") as caught:
        await client.__aenter__()
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert client.is_closed


async def test_a_lazy_client_is_entered_without_a_connection(server: FakeServer) -> None:
    async with server.client(lazy=True) as client:
        assert client.state is ConnectionState.IDLE
        assert not client.try_send(PEER, b"")
    assert server.accepted.empty()


# Events


async def end_and_be_refused(client: HTTPClient, server: FakeServer) -> None:
    """Note the end of the connection, fail to make another, and close."""
    with pytest.raises(ConnectionClosed):
        while True:
            await client.recv()
    server.refuse = b"HTTP/1.1 503 Service Unavailable\r\n\r\n"
    with pytest.raises(DialError):
        await client.connect()
    await client.close()


async def test_events_report_each_connection_and_its_end(server: FakeServer) -> None:
    client = server.client()
    events = client.events()
    relay = await entered(client, server, info=ServerInfo(2, 1000, 2000))
    relay.send(FrameType.HEALTH, b"two of you")
    relay.send(FrameType.RESTARTING, restarting_payload(0, 0))
    await drop(relay)
    await end_and_be_refused(client, server)
    told = [event async for event in events]
    assert told[:4] == [
        Connected(1, server.key.public_key),
        ServerInfo(2, 1000, 2000),
        Health("two of you"),
        ServerRestarting(0, 0),
    ]
    lost, failed = told[4:]
    assert isinstance(lost, Disconnected) and isinstance(lost.reason, ConnectionClosed)
    assert lost.generation == 1
    assert isinstance(failed, DialFailed) and "503" in str(failed.reason)
    assert [event async for event in client.events()] == []


async def test_one_task_at_a_time_follows_a_stream_of_events(server: FakeServer) -> None:
    async with server.client(lazy=True) as client:
        events = client.events()
        first = asyncio.create_task(anext(events))
        await asyncio.sleep(0)
        with pytest.raises(ConcurrencyError):
            await anext(events)
        first.cancel()


async def test_events_in_another_loop_than_the_clients_raise(server: FakeServer) -> None:
    client = server.client()
    await entered(client, server)

    async def follow() -> None:
        async for _ in client.events():
            pass

    with pytest.raises(WrongLoopError):
        await asyncio.to_thread(asyncio.run, follow())
    await client.close()


async def test_logins_ends_and_failed_attempts_are_in_the_log(
    server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp.client")
    client = server.client()
    relay = await entered(client, server)
    await relay.close()
    await end_and_be_refused(client, server)
    name = f"{client.public_key.short} at http://127.0.0.1:{server.port}/derp"
    assert [record.getMessage() for record in caplog.records] == [
        f"{name}: connected",
        f"{name}: the connection is over: the connection was closed",
        f"{name}: connecting failed: the relay answered '503 Service Unavailable'",
    ]
    assert {record.name for record in caplog.records} == {"fastderp.client"}


# Reconnecting by itself


async def test_a_receiver_continues_over_broken_connections(server: FakeServer) -> None:
    client = server.client(reconnect=True)
    relay = await entered(client, server)
    async with client:
        for number in range(3):
            relay.send(FrameType.RECV_PACKET, PEER.raw, b"%d" % number)
            assert await client.recv_with_generation() == (ServerInfo(), number + 1)
            assert await client.recv() == ReceivedPacket(PEER, b"%d" % number)
            receiving = asyncio.create_task(client.recv_with_generation())
            await drop(relay)
            _, relay = await server.next_login()
            assert await receiving == (ServerInfo(), number + 2)
            relay.send(FrameType.HEALTH, b"for the next round")
            assert await client.recv() == Health("for the next round")
            await drop(relay)
            _, relay = await server.next_login()
            assert (await client.recv_with_generation())[1] == number + 3
            break
    assert client.is_closed


async def test_a_client_reconnects_while_no_call_is_in_progress(server: FakeServer) -> None:
    client = server.client(reconnect=True)
    relay = await entered(client, server)
    for generation in (2, 3):
        await drop(relay)
        _, relay = await server.next_login()
        while not (client.is_connected and client.generation == generation):
            await asyncio.sleep(0)
    await client.close()


async def test_messages_before_the_break_are_not_lost(server: FakeServer) -> None:
    client = server.client(reconnect=True)
    relay = await entered(client, server)
    relay.send(FrameType.HEALTH, b"before")
    await relay.close()
    await server.next_login()
    received = [await client.recv_with_generation() for _ in range(3)]
    assert received == [(ServerInfo(), 1), (Health("before"), 1), (ServerInfo(), 2)]
    await client.close()


async def test_sends_wait_for_the_next_connection_and_are_sent_once(server: FakeServer) -> None:
    client = server.client(reconnect=True)
    relay = await entered(client, server)
    await drop(relay)
    while client.is_connected:
        await asyncio.sleep(0)
    assert not client.try_send(PEER, b"dropped")
    sending = [asyncio.create_task(client.send(PEER, b"%d" % n)) for n in range(5)]
    _, relay = await server.next_login()
    await asyncio.gather(*sending)
    arrived = [(await relay.next_frame())[1][32:] for _ in range(5)]
    assert sorted(arrived) == [b"0", b"1", b"2", b"3", b"4"]
    await client.note_preferred(True)
    assert (await relay.next_frame())[0] == FrameType.NOTE_PREFERRED
    await client.close()


async def test_a_send_that_waits_for_room_when_the_connection_breaks_is_sent_on_the_next(
    server: FakeServer,
) -> None:
    client = server.client(reconnect=True)
    slow = ServerInfo(2, 1, 1037)
    relay = await entered(client, server, info=slow)
    await client.send(PEER, b"1" * 1000)
    waiting = asyncio.create_task(client.send(PEER, b"2" * 1000))
    assert (await relay.next_frame())[1][32:] == b"1" * 1000
    await drop(relay)
    _, relay = await server.next_login()
    await waiting
    assert (await relay.next_frame())[1][32:] == b"2" * 1000
    await client.close()


async def test_failed_attempts_are_repeated_and_reported(server: FakeServer) -> None:
    client = server.client(reconnect=True)
    relay = await entered(client, server)
    events = client.events()
    server.refuse = b"HTTP/1.1 503 Service Unavailable\r\n\r\n"
    receiving = asyncio.create_task(client.recv_with_generation())
    assert await receiving == (ServerInfo(), 1)
    receiving = asyncio.create_task(client.recv_with_generation())
    await drop(relay)
    assert isinstance(await anext(events), Disconnected)
    for _ in range(3):
        assert isinstance(await anext(events), DialFailed)
    server.refuse = b""
    await server.next_login()
    assert await receiving == (ServerInfo(), 2)
    await client.close()


async def test_attempts_are_spaced_by_the_back_off(server: FakeServer) -> None:
    client = server.client(reconnect=True, backoff=Backoff(3600, 3600))
    relay = await entered(client, server)
    await drop_and_wait(client, relay)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await client.send(PEER, b"")
    assert server.accepted.empty()
    await client.close()


@pytest.mark.parametrize("reconnect", [True, False])
async def test_a_relay_that_restarts_is_dialled_at_the_announced_time(
    server: FakeServer, reconnect: bool
) -> None:
    client = server.client(reconnect=reconnect)
    relay = await entered(client, server)
    relay.send(FrameType.RESTARTING, restarting_payload(0.2, 10))
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    await relay.close()
    if not reconnect:
        with pytest.raises(ConnectionClosed):
            while True:
                await client.recv()
    connecting = asyncio.create_task(client.connect())
    await server.next_login()
    await connecting
    assert loop.time() - began_s >= 0.15
    await client.close()


# The end


async def test_closing_ends_what_waits_for_a_connection(server: FakeServer) -> None:
    client = server.client(reconnect=True, backoff=Backoff(3600, 3600))
    relay = await entered(client, server)
    await drop_and_wait(client, relay)
    waiting = [
        asyncio.create_task(call)
        for call in (client.send(PEER, b""), client.connect(), client.close_peer(PEER))
    ]
    await asyncio.sleep(0)
    await client.close()
    for task in waiting:
        with pytest.raises(ConnectionClosed, match="the client is closed"):
            await task
    with pytest.raises(ConnectionClosed, match="the client is closed"):
        client.try_send(PEER, b"")


async def test_closing_at_the_same_time_is_closing_once(server: FakeServer) -> None:
    client = server.client()
    relay = await entered(client, server)
    await client.send(PEER, b"last words")
    await asyncio.gather(*(client.close() for _ in range(3)))
    assert (await relay.next_frame())[1][32:] == b"last words"
    assert await relay.reader.read() == b""
    await client.close()


async def test_a_closed_client_leaves_no_task_and_no_descriptor(server: FakeServer) -> None:
    before = asyncio.all_tasks()
    for _ in range(5):
        client = server.client(reconnect=True)
        relay = await entered(client, server)
        await client.close()
        await relay.close()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not {task for task in asyncio.all_tasks() - before if "fastderp/client" in repr(task)}


async def test_two_tasks_cannot_receive_at_once_even_without_a_connection(
    server: FakeServer,
) -> None:
    async with server.client(lazy=True) as client:
        first = asyncio.create_task(client.recv())
        await server.accepted.get()
        with pytest.raises(ConcurrencyError, match="another task already receives"):
            await client.recv()
        first.cancel()


async def test_a_client_belongs_to_the_loop_of_its_first_use(server: FakeServer) -> None:
    client = server.client()
    await entered(client, server)
    errors: list[WrongLoopError] = []

    async def use() -> None:
        for call in (client.recv, client.connect, client.close, lambda: client.send(PEER, b"")):
            try:
                await call()
            except WrongLoopError as error:
                errors.append(error)

    await asyncio.to_thread(asyncio.run, use())
    assert len(errors) == 4
    await client.close()
