"""A TCP connection as a stream, on uvloop and asyncio: limits, ends, hand-over."""

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest
import uvloop

from fastderp.net.socket_stream import LIMIT_BYTES, SocketStream, open_socket_stream

EVERY_LOOP = pytest.mark.parametrize("run", [uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])
Run = Callable[[Coroutine[None, None, None]], None]


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[SocketStream, socket.socket]]:
    """Yield a stream and the blocking socket at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        stream = await open_socket_stream(host, port)
        far, _ = listener.accept()
    far.settimeout(10)
    with far:
        yield stream, far
        stream.abort()


@EVERY_LOOP
def test_bytes_are_read_in_order_and_in_pieces_of_any_size(run: Run) -> None:
    async def test() -> None:
        async with connected() as (stream, far):
            data = bytes(range(256)) * 4000
            sending = asyncio.create_task(asyncio.to_thread(far.sendall, data))
            received = b""
            sizes = itertools.cycle([1, 7, 1000, 300_000])
            while len(received) < len(data):
                size = next(sizes)
                piece = await stream.read(size)
                assert 1 <= len(piece) <= size
                received += piece
            assert received == data
            await sending
            far.shutdown(socket.SHUT_WR)
            assert await stream.read(100) == b"" == await stream.read(100)
            stream.write(b"still open this way")
            assert await asyncio.to_thread(far.recv, 100) == b"still open this way"

    run(test())


@EVERY_LOOP
def test_a_connection_that_is_not_read_stops_its_sender(run: Run) -> None:
    async def test() -> None:
        async with connected() as (stream, far):
            far.setblocking(False)
            data, sent, blocked = bytes(1 << 20), 0, 0
            while blocked < 20:
                try:
                    sent += far.send(data)
                    blocked = 0
                except BlockingIOError:
                    blocked += 1
                    await asyncio.sleep(0.005)
            # The kernel has the rest of the accepted bytes.
            assert stream._n_bytes < LIMIT_BYTES + (64 << 10)
            received = 0
            while received < sent:
                received += len(await stream.read(1 << 20))
            assert received == sent

    run(test())


@EVERY_LOOP
def test_draining_waits_for_a_peer_that_does_not_read(run: Run) -> None:
    async def test() -> None:
        async with connected() as (stream, far):
            stream.write(bytes(16 << 20))
            waiting = [asyncio.create_task(stream.drain()) for _ in range(3)]
            _, pending = await asyncio.wait(waiting, timeout=0.05)
            assert len(pending) == 3
            waiting[0].cancel()

            def read() -> None:
                left = 16 << 20
                while left:
                    left -= len(far.recv(1 << 20))

            await asyncio.to_thread(read)
            await asyncio.wait_for(asyncio.gather(*waiting[1:]), 10)

    run(test())


@EVERY_LOOP
def test_a_broken_connection_is_an_error_for_reader_and_writer(run: Run) -> None:
    async def test() -> None:
        async with connected() as (stream, far):
            stream.write(bytes(16 << 20))
            reading, draining = (
                asyncio.create_task(work) for work in (stream.read(1), stream.drain())
            )
            await asyncio.sleep(0)
            # A close with a lingering time of zero is a reset.
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            far.close()
            for task in (reading, draining):
                with pytest.raises(OSError):
                    await asyncio.wait_for(task, 10)
            with pytest.raises(OSError):
                await stream.drain()
            await asyncio.wait_for(stream.wait_closed(), 10)

    run(test())


@EVERY_LOOP
def test_a_connection_continues_with_its_new_owner(run: Run) -> None:
    async def test() -> None:
        async with connected() as (stream, far):
            far.sendall(b"read ahead")
            while not stream._chunks:
                await asyncio.sleep(0)
            own, unread = stream.detach()
            assert unread == b"read ahead"
            with own:
                await asyncio.wait_for(stream.wait_closed(), 10)
                own.setblocking(True)
                own.sendall(b"from its new owner")
                assert far.recv(100) == b"from its new owner"

    run(test())


@EVERY_LOOP
def test_connections_of_a_thread_share_a_buffer_without_mixing_bytes(run: Run) -> None:
    async def one(number: int) -> None:
        async with connected() as (stream, far):
            data = bytes([number]) * 200_000
            sending = asyncio.create_task(asyncio.to_thread(far.sendall, data))
            received = b""
            while len(received) < len(data):
                received += await stream.read(1 << 20)
            await sending
            assert received == data

    async def test() -> None:
        await asyncio.gather(*(one(number) for number in range(20)))

    run(test())
