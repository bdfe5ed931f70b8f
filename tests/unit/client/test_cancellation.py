"""Cancellation at any moment: nothing is left behind, and it is never taken for another end.

PROTOCOL §13.
"""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import fastderp.testing
from fastderp import ConnectionState, HTTPClient
from fastderp.errors import ConnectionClosed, ConnectionLost
from fastderp.wire.keys import NodePublic
from tests.kit.descriptors import closed_to, n_descriptors
from tests.kit.moments import every_moment, turns
from tests.unit.fake_relay import FakeServer, fill, logged_in, pause_reading

PEER = NodePublic(b"\x11" * 32)

Work = Callable[[HTTPClient], Awaitable[Any]]


async def entered_and_left(client: HTTPClient) -> None:
    async with client:
        pass


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(
    "work",
    [
        HTTPClient.connect,
        HTTPClient.recv,
        lambda client: client.send(PEER, b"hello"),
        entered_and_left,
    ],
    ids=["connect", "recv", "send", "async with"],
)
async def test_a_call_cancelled_at_any_moment_leaves_no_task_and_no_descriptor(
    work: Work, tls: bool
) -> None:
    async with fastderp.testing.relay(tls=tls) as relay:
        async with relay.client():  # what the process loads once
            pass
        for moment in every_moment():
            tasks, n_before = asyncio.all_tasks(), n_descriptors()
            client = relay.client()
            await moment.cancel(asyncio.ensure_future(work(client)))
            await client.close()
            assert asyncio.all_tasks() == tasks
            await closed_to(n_before)


async def test_a_call_that_is_cancelled_before_the_client_is_closed_ends_as_cancelled(
    server: FakeServer,
) -> None:
    client = server.client(reconnect=True)
    receiving = asyncio.create_task(client.recv())
    await server.accepted.get()
    receiving.cancel()
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await receiving


@pytest.mark.parametrize("reconnect", [False, True])
async def test_no_task_is_left_when_closing_while_connecting_returns(
    server: FakeServer, reconnect: bool
) -> None:
    client = server.client(reconnect=reconnect)
    connecting = asyncio.create_task(client.connect())
    await turns(2)
    await client.close()
    ours = ("fastderp/client/", "fastderp/net/")
    left = {task for task in asyncio.all_tasks() if any(path in repr(task) for path in ours)}
    assert left <= {connecting}
    with pytest.raises(ConnectionClosed, match="the client is closed"):
        await connecting


async def test_a_close_that_is_cancelled_ends_the_connection_and_the_events(
    server: FakeServer,
) -> None:
    client = server.client()
    events = client.events()
    connecting = asyncio.create_task(client.connect())
    _, relay = await server.next_login()
    await connecting
    pause_reading(relay.writer)
    await fill(client)
    n_before = n_descriptors()
    closing = asyncio.create_task(client.close())
    await turns(3)
    assert not closing.done()  # It waits for the relay to read.
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert client.state is ConnectionState.CLOSED
    await turns(2)
    assert n_descriptors() == n_before - 1
    assert [event async for event in events]


async def test_a_ping_that_waits_for_room_when_the_connection_breaks_raises_once() -> None:
    unraised: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unraised.append(context))
    async with logged_in() as (client, relay):
        pause_reading(relay.writer)
        await fill(client)
        pinging = asyncio.create_task(client.ping())
        await turns(2)
        relay.writer.transport.abort()
        with pytest.raises(ConnectionLost):
            await pinging
        del pinging
        with pytest.raises(ConnectionLost):
            client.try_send(PEER, b"")  # gives the error another traceback
        gc.collect()
        assert unraised == []
