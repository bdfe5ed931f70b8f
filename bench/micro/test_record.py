"""Micro benchmarks of the record layer: CPU time of fixed work, per suite and record size.

A batch fits the second-level cache, like the data plane's buffers. Divide by RECORDS for the cost
of one record.
"""

import os
import time
from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastderp.tls.record import SUITES, RecordLayer

RECORDS = 32
SIZES = [37, 1437]  # an empty SendPacket, and one of 1400 bytes

pytestmark = pytest.mark.benchmark(
    timer=time.process_time, min_time=0.002, max_time=0.1, warmup=False
)


def secret(suite: str) -> bytes:
    return os.urandom(48 if suite.endswith("SHA384") else 32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("suite", SUITES)
def test_open_a_batch_of_records(benchmark: BenchmarkFixture, suite: str, size: int) -> None:
    """Open one read of ciphertext with RECORDS records, as clients send them."""
    one, other = secret(suite), secret(suite)
    sender = RecordLayer(suite, one, other)
    wire = b"".join(sender.seal(bytes(size)) for _ in range(RECORDS))

    def fresh() -> tuple[tuple[RecordLayer, bytes], dict[str, object]]:
        receiver = RecordLayer(suite, other, one)
        return (receiver, wire), {}

    def opened(receiver: RecordLayer, wire: bytes) -> bytes:
        return receiver.open(wire)

    released = benchmark.pedantic(  # type: ignore[no-untyped-call]
        opened, setup=fresh, rounds=300, warmup_rounds=20
    )
    assert len(released) == size * RECORDS


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("suite", SUITES)
def test_seal_the_same_data_joined(benchmark: BenchmarkFixture, suite: str, size: int) -> None:
    """Seal RECORDS packets joined into records of up to 16 KiB, as the relay sends them."""
    sender = RecordLayer(suite, secret(suite), secret(suite))
    data = bytes(size * RECORDS)
    assert len(benchmark(sender.seal, data)) > len(data)


@pytest.mark.parametrize("suite", SUITES)
def test_seal_one_packet(benchmark: BenchmarkFixture, suite: str) -> None:
    """Seal one packet, the latency case."""
    sender = RecordLayer(suite, secret(suite), secret(suite))
    benchmark(sender.seal, bytes(1437))


@pytest.mark.parametrize("suite", SUITES)
def test_derive_and_forget_the_keys_of_a_session(benchmark: BenchmarkFixture, suite: str) -> None:
    """Derive keys from two traffic secrets, use them once, wipe them: the cost of a login."""
    one, other = secret(suite), secret(suite)

    def login() -> Callable[[bytes], bytes]:
        layer = RecordLayer(suite, one, other)
        layer.seal(b"x")
        return layer.seal

    benchmark(login)
