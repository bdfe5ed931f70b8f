"""Reading ahead, queued messages, answers, and errors for wrong use of a client (PROTOCOL §4)."""

import asyncio
import os
import traceback

import pytest

from fastderp.client import Client
from fastderp.client.inbox import LIMIT_BYTES
from fastderp.errors import (
    ConcurrencyError,
    ConnectionClosed,
    ConnectionLost,
    DerpError,
    PingTimeout,
    WrongLoopError,
)
from fastderp.wire.keys import NodePrivate, NodePublic
from fastderp.wire.login import ServerInfo
from fastderp.wire.messages import Health, KeepAlive, Ping, ReceivedPacket
from fastderp.wire.protocol import FrameType
from tests.unit.fake_relay import RelayEnd, logged_in, refused, stream_pairs

PEER = NodePublic(b"\x11" * 32)


async def test_pings_are_answered_while_the_program_does_not_receive() -> None:
    async with logged_in(control_messages=False) as (client, relay):
        relay.send(FrameType.PING, b"12345678")
        relay.send(FrameType.PING, b"abcdefgh")
        assert await relay.next_frame() == (FrameType.PONG, b"12345678")
        assert await relay.next_frame() == (FrameType.PONG, b"abcdefgh")
        assert relay.login is not None and relay.login.info.can_ack_pings
        await client.close()


async def test_a_client_without_can_ack_pings_sends_no_pongs() -> None:
    async with logged_in(control_messages=False, can_ack_pings=False) as (client, relay):
        relay.send(FrameType.PING, b"12345678")
        relay.send(FrameType.HEALTH, b"after the ping")
        assert await client.recv() == Health("after the ping")
        await client.note_preferred(True)
        assert (await relay.next_frame())[0] == FrameType.NOTE_PREFERRED
        assert relay.login is not None and not relay.login.info.can_ack_pings


async def test_control_messages_are_returned_only_on_request() -> None:
    async with logged_in(control_messages=False) as (client, relay):
        relay.send(FrameType.KEEP_ALIVE)
        relay.send(FrameType.PONG, bytes(8))
        relay.send(FrameType.RECV_PACKET, PEER.raw, b"data")
        assert await client.recv() == ReceivedPacket(PEER, b"data")
    async with logged_in(control_messages=True) as (client, relay):
        relay.send(FrameType.KEEP_ALIVE)
        relay.send(FrameType.PING, bytes(8))
        assert [await client.recv() for _ in range(2)] == [KeepAlive(), Ping(bytes(8))]
        await client.note_preferred(True)
        assert (await relay.next_frame())[0] == FrameType.NOTE_PREFERRED


async def test_a_ping_needs_no_other_task_that_receives() -> None:
    async with logged_in(control_messages=False) as (client, relay):
        pinging = asyncio.create_task(client.ping())
        relay.send(FrameType.PONG, (await relay.next_frame())[1])
        assert await pinging >= 0


async def test_a_ping_behind_unread_messages_names_the_cause_of_its_failure() -> None:
    async with logged_in() as (client, relay):
        for _ in range(2 * LIMIT_BYTES // 1400):
            relay.send(FrameType.RECV_PACKET, PEER.raw, bytes(1400))
        while not client._inbox.is_full:
            await asyncio.sleep(0)
        pinging = asyncio.create_task(client.ping(timeout_s=0.2))
        with pytest.raises(PingTimeout, match="received messages wait for recv") as caught:
            await pinging
        assert isinstance(caught.value, TimeoutError)


async def test_two_tasks_cannot_receive_at_once() -> None:
    async with logged_in() as (client, relay):
        first = asyncio.create_task(client.recv())
        await asyncio.sleep(0)
        for second in (client.recv(), client.recv_many(), anext(client)):
            with pytest.raises(ConcurrencyError, match="another task already receives"):
                await second
        relay.send(FrameType.HEALTH, b"still here")
        assert await first == Health("still here")


async def test_reading_stops_while_received_messages_are_not_taken() -> None:
    async with logged_in() as (client, relay):
        n = 16 * LIMIT_BYTES // 1400
        for number in range(n):
            relay.send(FrameType.RECV_PACKET, PEER.raw, number.to_bytes(4, "big") * 350)
        # More than the client and both sockets take.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await relay.writer.drain()
        for number in range(n):
            message = await client.recv()
            assert isinstance(message, ReceivedPacket)
            assert message.data[:4] == number.to_bytes(4, "big")
        await relay.writer.drain()


async def test_many_messages_are_taken_at_once_and_no_more_than_asked_for() -> None:
    async with logged_in() as (client, relay):
        for number in range(10):
            relay.send(FrameType.HEALTH, b"%d" % number)
        received = await client.recv_many(limit=3)
        assert 1 <= len(received) <= 3
        while len(received) < 10:
            received += await client.recv_many()
        assert received == [Health(str(number)) for number in range(10)]
        with pytest.raises(ValueError, match="limit must be at least 1"):
            await client.recv_many(limit=0)


async def test_messages_before_the_end_are_received_before_the_end_is_reported() -> None:
    async with logged_in() as (client, relay):
        relay.send(FrameType.HEALTH, b"one")
        relay.send(FrameType.HEALTH, b"two")
        await relay.close()
        while not client.is_over:
            await asyncio.sleep(0)
        assert [await client.recv(), await client.recv()] == [Health("one"), Health("two")]
        with pytest.raises(ConnectionClosed):
            await client.recv()


async def test_a_sender_that_never_receives_gets_the_error_of_the_end() -> None:
    async with logged_in() as (client, relay):
        await relay.close()
        with pytest.raises(ConnectionClosed):
            while True:
                await client.send(PEER, b"")
                await asyncio.sleep(0)


async def test_acceptance_of_the_login_can_be_waited_for() -> None:
    async with stream_pairs() as (near, far):
        relay = RelayEnd(far, NodePrivate.generate())
        client, login = await asyncio.gather(
            Client.handshake(near, NodePrivate.generate()), relay.accept_login(None)
        )
        waiting = asyncio.create_task(client.wait_accepted())
        await asyncio.sleep(0)
        assert not waiting.done() and client.server_info is None
        relay.writer.write(login.server_info_frame(ServerInfo(2, 1000, 2000)))
        await waiting
        assert client.server_info == ServerInfo(2, 1000, 2000)
        await client.close()


async def test_a_refused_login_is_raised_in_the_task_that_waits_for_it() -> None:
    async with refused() as client:
        with pytest.raises(ConnectionLost, match="instead of accepting the login"):
            await client.wait_accepted()


async def test_an_exception_of_the_stream_ends_the_client_with_the_cause() -> None:
    async with stream_pairs() as ((reader, writer), far):

        class Odd:
            write, drain, close = writer.write, writer.drain, writer.close
            wait_closed, get_extra_info = writer.wait_closed, writer.get_extra_info
            logged_in = False

            async def read(self, n: int) -> bytes:
                if self.logged_in:
                    raise LookupError("of its own")
                self.logged_in = True
                return await reader.read(n)

        relay = RelayEnd(far, NodePrivate.generate())
        client, _ = await asyncio.gather(
            Client.handshake(Odd(), NodePrivate.generate()), relay.accept_login()
        )
        with pytest.raises(ConnectionLost, match="of its own") as caught:
            await client.recv()
        assert isinstance(caught.value.__cause__, LookupError)


def errors_elsewhere(client: Client) -> list[BaseException]:
    """Return what every kind of call raises in another loop than the client's."""
    errors: list[BaseException] = []

    async def use() -> None:
        for call in (
            client.recv,
            lambda: client.send(PEER, b""),
            client.ping,
            lambda: client.close_peer(PEER),
            client.close,
        ):
            try:
                await call()
            except DerpError as error:
                errors.append(error)

    asyncio.run(use())
    return errors


async def test_use_in_another_loop_raises_wrong_loop_error() -> None:
    async with logged_in() as (client, relay):
        errors = await asyncio.to_thread(errors_elsewhere, client)
        assert [type(error) for error in errors] == [WrongLoopError] * 5
        assert all("another event loop" in str(error) for error in errors)
        await client.send(PEER, b"unharmed")
        assert (await relay.next_frame())[1] == PEER.raw + b"unharmed"


async def test_use_after_a_fork_raises_wrong_loop_error() -> None:
    async with logged_in() as (client, relay):
        child = os.fork()
        if child == 0:
            # Nothing of pytest may run here.
            try:
                errors = errors_elsewhere(client)
                os._exit(0 if all("before a fork" in str(error) for error in errors) else 1)
            except BaseException:
                traceback.print_exc()
                os._exit(2)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        await client.send(PEER, b"unharmed")
        assert (await relay.next_frame())[1] == PEER.raw + b"unharmed"
