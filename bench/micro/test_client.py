"""Micro benchmarks of the client library's packets: CPU time of fixed work.

Divide by PACKETS for the cost of one.
"""

import os
import time
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastderp.wire.message_reader import MessageReader
from fastderp.wire.protocol import FrameType, frame

PACKETS = 128
READ_BYTES = 65536

pytestmark = pytest.mark.benchmark(
    timer=time.process_time, min_time=0.002, max_time=0.2, warmup=False
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
