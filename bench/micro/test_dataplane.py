"""Micro benchmarks of the data plane's pieces: CPU time of fixed work.

Divide by the number in the test's parameters for the cost of one.
"""

import itertools
import random
import struct
import time
from array import array

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.pieces import piece

KEY_SIZE = 32
FRAMES = 128
LOOKUPS = 1024

pytestmark = pytest.mark.benchmark(
    timer=time.process_time, min_time=0.002, max_time=0.1, warmup=False
)


def keys(n: int, seed: int = 0) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(KEY_SIZE) for _ in range(n)]


def packet(frame_type: int, key: bytes, size: int) -> bytes:
    return struct.pack(">BI", frame_type, KEY_SIZE + size) + key + bytes(size)


@pytest.mark.parametrize("size", [100, 1400])
def test_walk_a_buffer_of_128_packets(benchmark: BenchmarkFixture, size: int) -> None:
    buffer = b"".join(packet(4, key, size) for key in keys(FRAMES))
    assert benchmark(piece("frames").walk, buffer) == FRAMES


@pytest.mark.parametrize("n_keys", [100, 10_000, 100_000])
def test_find_1024_keys(benchmark: BenchmarkFixture, n_keys: int) -> None:
    """Find keys in a table that fits the first-level cache, and in one that does not."""
    known = keys(n_keys)
    table = piece("routes").Table(b"".join(known))
    wanted = b"".join(random.Random(1).choices(known, k=LOOKUPS))
    assert benchmark(table.find, wanted) == LOOKUPS


def test_miss_1024_keys(benchmark: BenchmarkFixture) -> None:
    table = piece("routes").Table(b"".join(keys(10_000)))
    assert benchmark(table.find, b"".join(keys(LOOKUPS, seed=1))) == 0


def test_1000_keys_leave_and_return(benchmark: BenchmarkFixture) -> None:
    table = piece("routes").Table(b"".join(keys(1000)))
    benchmark(table.leave_and_return)


def test_a_key_leaves_its_1024_receivers(benchmark: BenchmarkFixture) -> None:
    """Note who receives packets of a key, twice each, and make the notices that it has left."""
    key = piece("gone_watchers").LeavingKey()
    assert benchmark(key.turn, bytes(range(KEY_SIZE)), LOOKUPS) == LOOKUPS


@pytest.mark.parametrize("n_senders", [1, 16])
def test_128_packets_through_a_backlog(benchmark: BenchmarkFixture, n_senders: int) -> None:
    senders = keys(n_senders)
    frames = b"".join(packet(5, senders[i % n_senders], 1400) for i in range(FRAMES))
    rows = memoryview(frames).cast("B", shape=[FRAMES, len(frames) // FRAMES])
    assert benchmark(piece("backlog").pass_through, rows) == (FRAMES, 0)


def test_a_full_backlog_makes_room_128_times(benchmark: BenchmarkFixture) -> None:
    """Overload: 128 packets of 16 senders more than fit."""
    senders = keys(16)
    # without the table of senders, with each frame's node
    n = 128 + (262144 - 16 * 64) // (1437 + 48)
    frames = b"".join(packet(5, senders[i % 16], 1400) for i in range(n))
    rows = memoryview(frames).cast("B", shape=[n, 1437])
    popped, dropped = benchmark(piece("backlog").pass_through, rows)
    assert (popped + dropped, dropped) == (n, 128)


def test_1000_timers_are_armed_moved_and_taken(benchmark: BenchmarkFixture) -> None:
    wheel = piece("wheel").TimerWheel(1000)
    clock_ns = itertools.count(10**9, 60 * 10**9)

    def turn() -> int:
        return int(wheel.turn(next(clock_ns), 1_000_000))

    assert benchmark(turn) == 750


def test_1024_senders_are_counted(benchmark: BenchmarkFixture) -> None:
    hashes = array("Q", struct.unpack(f"{LOOKUPS}Q", random.Random(0).randbytes(8 * LOOKUPS)))
    assert benchmark(piece("sketch").count, hashes) == pytest.approx(LOOKUPS, rel=0.25)
