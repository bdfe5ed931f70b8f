"""`Server.accept`: the end of a connection that a program brings."""

from __future__ import annotations

import asyncio
import errno
import gc
import ssl
from contextlib import suppress

import pytest

from fastderp import Client, NodePrivate, Server
from fastderp.errors import DerpError
from fastderp.server.accept.bridge import plane_pair
from fastderp.server.accept.embedded import _StreamBridge
from tests.kit.descriptors import closed_to, n_descriptors
from tests.kit.moments import every_moment, turns
from tests.unit.fake_relay import Pair, pause_reading, stream_pairs


async def use(near: Pair) -> None:
    """Log in, get a packet, and leave."""
    async with await Client.handshake(near, NodePrivate.generate()) as client:
        await client.send(client.public_key, b"hello")
        await client.recv_many(2)


async def test_serving_that_is_cancelled_at_any_moment_leaves_no_descriptor() -> None:
    gc.disable()  # which would close a forgotten socket
    try:
        async with Server(workers=1) as relay:
            for moment in every_moment():
                n_before = n_descriptors()
                async with stream_pairs() as (near, far):
                    using = asyncio.create_task(use(near))
                    await moment.cancel(asyncio.create_task(relay.accept(*far)))
                    using.cancel()
                    with suppress(asyncio.CancelledError, DerpError):
                        await using
                await closed_to(n_before)
    finally:
        gc.enable()


async def test_pumping_that_is_cancelled_while_the_session_ends_closes_its_socket() -> None:
    for moment in every_moment():
        ours, theirs = plane_pair()
        async with stream_pairs() as ((reader, writer), _far):
            bridge = _StreamBridge(reader, writer, ours)
            pumping = asyncio.create_task(bridge.pump())
            await asyncio.sleep(0)
            bridge.session_ended("server")
            theirs.close()
            await moment.cancel(pumping)
            await asyncio.sleep(0)
            assert ours.fileno() == -1


async def test_serving_that_is_cancelled_while_the_client_does_not_read_closes_the_connection() -> (
    None
):
    async with Server(workers=1) as relay, stream_pairs() as (near, (reader, writer)):
        writer.transport.set_write_buffer_limits(1 << 30)
        writer.write(bytes(1 << 22))  # more than the kernel takes
        pause_reading(near[1])
        serving = asyncio.create_task(relay.accept(reader, writer))
        await asyncio.sleep(0)
        for _ in range(2):  # the first ends the login, the second the wait for the client to read
            serving.cancel()
            await turns(3)
        with suppress(asyncio.CancelledError):
            await serving
        assert writer.transport.get_write_buffer_size() == 0


class Reader:
    """The reading half of a connection that ends with an error."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    async def read(self, _: int) -> bytes:
        if self._error is not None:
            raise self._error
        return b""


class Writer:
    """The writing half of a connection that takes everything."""

    def write(self, data: bytes) -> None:
        pass

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "end"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "reset"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "tcp_timeout"),
        (OSError(errno.EMFILE, "Too many open files"), "shortage"),
        (ssl.SSLError(1, "bad record mac"), "tls"),
        (ZeroDivisionError("a mistake in the program's reader"), "internal"),
    ],
    ids=str,
)
async def test_a_login_that_fails_is_counted_by_its_cause(
    error: Exception | None, reason: str
) -> None:
    async with Server(workers=1) as relay:
        with pytest.raises((Exception,) if error is None else type(error)):
            await relay.accept(Reader(error), Writer())
        assert relay.metrics()["fastderp_closed_total"] == {f"login_{reason}": 1}


async def test_a_login_that_takes_too_long_is_counted_as_timeout() -> None:
    class Silent(Reader):
        async def read(self, _: int) -> bytes:
            return await asyncio.Future()

    async with Server(workers=1, login_timeout=0.1) as relay:
        with pytest.raises(TimeoutError):
            await relay.accept(Silent(None), Writer())
        assert relay.metrics()["fastderp_closed_total"] == {"login_timeout": 1}
