"""Micro benchmarks of the client library's packets: CPU time of fixed work.

Divide by PACKETS for the cost of one.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastderp.client.outbox import Outbox, SendRate
from fastderp.errors import ConnectionClosed
from fastderp.net.stream import Stream
from fastderp.wire.message_reader import MessageReader
from fastderp.wire.protocol import FrameType, frame

PACKETS = 128
READ_BYTES = 65536

pytestmark = pytest.mark.benchmark(
    timer=time.process_time, min_time=0.002, max_time=0.1, warmup=False
)


@pytest.mark.parametrize("n_sources", [1, 16])
@pytest.mark.parametrize("size", [100, 1400])
def test_read_128_packets(benchmark: BenchmarkFixture, size: int, n_sources: int) -> None:
    """Parse packets as they arrive, in reads that end within a packet."""
    sources = [os.urandom(32) for _ in range(n_sources)]
    stream = b"".join(
        frame(FrameType.RECV_PACKET, sources[i % n_sources], bytes(size)) for i in range(PACKETS)
    )
    reads = [stream[at : at + READ_BYTES] for at in range(0, len(stream), READ_BYTES)]

    def read() -> list[Any]:
        reader = MessageReader(lambda frame_type, payload: None)
        messages: list[Any] = []
        for data in reads:
            reader.feed(data, messages)
        reader.end()
        return messages

    assert len(benchmark(read)) == PACKETS


class Sink:
    """A stream that takes everything at once; `wait` waits for the bytes to `expect`."""

    def __init__(self) -> None:
        self._n_due = 0
        self._has_all = asyncio.Event()

    async def wait(self) -> None:
        await self._has_all.wait()
        self._has_all.clear()

    def expect(self, n_bytes: int) -> None:
        self._n_due += n_bytes

    def write(self, data: bytes) -> None:
        self._n_due -= len(data)
        if self._n_due == 0:
            self._has_all.set()

    async def drain(self) -> None:
        pass

    async def read(self, n: int) -> bytes:
        return b""

    def close(self) -> None:
        pass

    async def wait_closed(self) -> None:
        pass

    def get_extra_info(self, name: str) -> None:
        pass


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.mark.parametrize("rate", [0, 1 << 60], ids=["no-rate", "rate"])
@pytest.mark.parametrize("size", [100, 1400])
def test_128_packets_through_an_outbox(
    benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop, size: int, rate: int
) -> None:
    """Take packets and write them; those of 1,400 bytes exceed its limit, so some senders wait."""
    sink = Sink()
    head, data = bytes(37), bytes(size)
    n_bytes = len(head) + size

    async def start() -> Outbox:
        outbox = Outbox(Stream.of(sink), lambda error: None)
        outbox.set_rate(SendRate(rate, 0, time.monotonic) if rate else None)
        return outbox

    async def send() -> None:
        sink.expect(PACKETS * n_bytes)
        for _ in range(PACKETS):
            if not outbox.try_put((head, data), n_bytes, rated=True):
                await outbox.reserve(n_bytes, rated=True)
                outbox.put(head, data)
        await sink.wait()

    outbox = loop.run_until_complete(start())
    benchmark(lambda: loop.run_until_complete(send()))
    loop.call_soon(outbox.end, ConnectionClosed("the bench is over"))
    loop.run_until_complete(asyncio.sleep(0))
