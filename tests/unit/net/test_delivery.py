"""The delivery of bytes to a receiver, from sockets, TLS and any reader, on both loops."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest
import uvloop

from fastderp.errors import ConnectionLost
from fastderp.net.socket_stream import open_socket_stream
from fastderp.net.stream import Stream
from fastderp.net.tls import TlsStream
from fastderp.tls.record import RecordLayer

EVERY_LOOP = pytest.mark.parametrize("run", [uvloop.run, asyncio.run], ids=["uvloop", "asyncio"])
EVERY_SOURCE = pytest.mark.parametrize("kind", ["socket", "reader", "TLS"])
Run = Callable[[Coroutine[None, None, None]], None]


class Taker:
    """Collects what it receives, and pauses its stream at `limit` bytes."""

    def __init__(self, stream: Stream, limit: int = 1 << 30) -> None:
        self.data = bytearray()
        self.ends: list[Exception | None] = []
        self._stream = stream
        self._limit = limit
        self._changed = asyncio.Event()

    def received(self, data: bytes | memoryview, /) -> None:
        assert not self.ends
        self.data += data
        self._changed.set()
        if len(self.data) >= self._limit:
            self._stream.pause_reading()

    def ended(self, error: Exception | None, /) -> None:
        self.ends.append(error)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def takes_more_than(self, n_bytes: int) -> None:
        await self.until(lambda: len(self.data) > n_bytes)


class Far:
    """The other end, which seals its data for a connection over TLS."""

    def __init__(self, sock: socket.socket, layer: RecordLayer | None) -> None:
        self.sock = sock
        self.layer = layer

    async def send(self, data: bytes) -> None:
        wire = self.layer.seal(data) if self.layer else data
        await asyncio.to_thread(self.sock.sendall, wire)


@asynccontextmanager
async def connected(kind: str) -> AsyncIterator[tuple[Stream, Far]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        if kind == "reader":
            stream, layer = Stream.of(await asyncio.open_connection(host, port)), None
        else:
            stream, layer = Stream.of(await open_socket_stream(host, port)), None
        sock, _ = listener.accept()
    if kind == "TLS":
        ours, theirs = os.urandom(32), os.urandom(32)
        suite = "TLS_AES_128_GCM_SHA256"
        inside = RecordLayer(suite, theirs, ours, client=True)
        stream = Stream.of(TlsStream(stream, "TLSv1.3", "", [], inside))
        layer = RecordLayer(suite, ours, theirs)
    sock.settimeout(10)
    with sock:
        yield stream, Far(sock, layer)
        stream.abort()


@EVERY_LOOP
@EVERY_SOURCE
def test_bytes_are_delivered_in_order_behind_those_that_were_read_ahead(
    run: Run, kind: str
) -> None:
    async def test() -> None:
        async with connected(kind) as (stream, far):
            await far.send(b"head\r\n\r\nread ahead")
            assert await stream.read_head(100) == b"head\r\n\r\n"
            data = bytes(range(256)) * 4000
            sending = asyncio.create_task(far.send(data))
            taker = Taker(stream)
            stream.deliver_to(taker)
            await taker.until(lambda: len(taker.data) >= 10 + len(data))
            assert taker.data == b"read ahead" + data
            await sending
            far.sock.shutdown(socket.SHUT_WR)
            await taker.until(lambda: bool(taker.ends))
            assert taker.ends == [None]

    run(test())


@EVERY_LOOP
@EVERY_SOURCE
def test_a_receiver_that_pauses_stops_the_sender_until_it_resumes(run: Run, kind: str) -> None:
    async def test() -> None:
        async with connected(kind) as (stream, far):
            data = os.urandom(16 << 20)
            taker = Taker(stream, limit=100_000)
            stream.deliver_to(taker)
            sending = asyncio.create_task(far.send(data))
            await taker.until(lambda: len(taker.data) >= 100_000)
            await asyncio.wait([sending], timeout=0.1)
            assert not sending.done() and len(taker.data) < 1_000_000
            while len(taker.data) < len(data):
                before = len(taker.data)
                stream.resume_reading()
                await taker.takes_more_than(before)
            assert taker.data == data
            await sending

    run(test())


@EVERY_LOOP
@EVERY_SOURCE
def test_a_reset_is_delivered_once_as_its_error(run: Run, kind: str) -> None:
    async def test() -> None:
        async with connected(kind) as (stream, far):
            taker = Taker(stream)
            stream.deliver_to(taker)
            await far.send(b"data")
            await taker.until(lambda: taker.data == b"data")
            # A close with a lingering time of zero is a reset.
            far.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            far.sock.close()
            await taker.until(lambda: bool(taker.ends))
            await asyncio.wait_for(stream.wait_closed(), 10)
            assert len(taker.ends) == 1 and isinstance(taker.ends[0], OSError | ConnectionLost)

    run(test())


async def change_a_byte(far: Far) -> None:
    assert far.layer
    wire = bytearray(far.layer.seal(b"changed on the way"))
    wire[-1] ^= 1
    far.sock.sendall(wire)


async def say_goodbye(far: Far) -> None:
    assert far.layer
    far.sock.sendall(far.layer.close_notify())


@EVERY_LOOP
@pytest.mark.parametrize(
    ("act", "ending"),
    [(change_a_byte, "TLS: record does not authenticate"), (say_goodbye, "None")],
    ids=["changed", "close_notify"],
)
def test_what_ends_tls_ends_the_delivery(
    run: Run, act: Callable[[Far], Awaitable[None]], ending: str
) -> None:
    async def test() -> None:
        async with connected("TLS") as (stream, far):
            taker = Taker(stream)
            stream.deliver_to(taker)
            await far.send(b"data")
            await taker.until(lambda: taker.data == b"data")  # not in one read with the end
            await act(far)
            await far.send(b"after the end")
            await taker.until(lambda: bool(taker.ends))
            far.sock.close()
            assert taker.data == b"data" and [str(end) for end in taker.ends] == [ending]

    run(test())


async def test_a_reader_is_not_read_from_after_the_stream_is_closed() -> None:
    class Reader:
        n_reads = 0

        async def read(self, n: int, /) -> bytes:
            self.n_reads += 1
            await asyncio.Event().wait()
            return b""

    class Writer:
        def write(self, data: bytes, /) -> None: ...
        async def drain(self) -> None: ...
        def close(self) -> None: ...
        async def wait_closed(self) -> None: ...
        def get_extra_info(self, name: str, /) -> None: ...

    tasks = asyncio.all_tasks()
    reader = Reader()
    stream = Stream(reader, Writer())
    taker = Taker(stream)
    stream.deliver_to(taker)
    await asyncio.sleep(0)
    stream.close()
    await asyncio.sleep(0)
    assert reader.n_reads == 1 and taker.ends == [] and asyncio.all_tasks() == tasks
