import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest

from fastderp.loadgen.connect import Joined
from fastderp.loadgen.engine import Engine
from fastderp.loadgen.process import Process
from fastderp.loadgen.result import fairness
from fastderp.tls.errors import TlsError
from fastderp.wire.protocol import FrameType, frame
from tests.kit.relay import eventually
from tests.kit.small_relay import Change, SmallRelay, small_relay

PATIENCE_S = 30.0
PAIR = [(0, 1)]
SIZES = [(200, 1.0)]


@contextmanager
def load(
    relay: SmallRelay, flows: list[tuple[int, int]] = PAIR, **options: Any
) -> Iterator[Engine]:
    engine = Engine(relay.clients, flows, **({"sizes": SIZES} | options))
    try:
        yield engine
    finally:
        engine.close()


def measure_until(engine: Engine, condition: Callable[[], bool], seconds: float = 0.2) -> None:
    """Measure for some seconds, or for as long as a busy machine needs for the condition."""
    engine.measure(seconds)
    while not condition():
        seconds *= 2
        assert seconds < PATIENCE_S, "it did not happen in time"
        engine.measure(seconds)


def measure_some(engine: Engine, n_packets: int = 20) -> None:
    """Measure for 0.2 s, or as long as a busy machine needs for more than `n_packets`."""
    measure_until(engine, lambda: engine.totals()["sent"] > n_packets)


def every(n: int, change: Change) -> Change:
    """Apply `change` to every n-th packet only."""
    numbers = count(1)
    return lambda packet: change(packet) if next(numbers) % n == 0 else packet


def damage(at: int) -> Change:
    def change(packet: bytes) -> bytes:
        return packet[:at] + bytes([packet[at] ^ 1]) + packet[at + 1 :]

    return change


@pytest.mark.parametrize(
    "pace", [{"window": 4}, {"rate": 2000.0}, {}], ids=["window", "rate", "never wait"]
)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_every_packet_arrives_through_a_relay_without_loss(pace: dict[str, Any], tls: bool) -> None:
    with small_relay(2, tls=tls) as relay, load(relay, verify=True, **pace) as engine:
        measure_some(engine)
        engine.drain(PATIENCE_S)
        totals = engine.totals()
    assert totals["lost"] == totals["corrupt"] == totals["unexpected"] == 0
    assert totals["delivered_bytes"] == totals["delivered"] * 200
    assert 0 < engine.percentile_ns(50) <= engine.percentile_ns(99.9) <= totals["latency_max_ns"]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("joined", [False, True], ids=["one record each", "joined records"])
def test_mixed_sizes_up_to_the_largest_packet_arrive_unchanged(tls: bool, joined: bool) -> None:
    sizes = [(32, 1.0), (1400, 1.0), (65536, 1.0)]
    with (
        small_relay(2, tls=tls) as relay,
        load(relay, sizes=sizes, window=8, verify=True, joined_records=joined) as engine,
    ):
        measure_some(engine)
        engine.drain(PATIENCE_S)
        totals = engine.totals()
    assert totals["lost"] == totals["corrupt"] == 0


def test_every_flow_of_a_crowd_gets_its_share() -> None:
    flows = [(i, j) for i in range(4) for j in range(4) if i != j]
    with small_relay(4) as relay, load(relay, flows, window=2) as engine:
        engine.warm_up(0.05)
        measure_until(engine, lambda: engine.totals()["delivered"] > 600, 0.3)
        shares = engine.delivered_by_flow()
        engine.drain(PATIENCE_S)
        assert engine.totals()["lost"] == 0
    assert len(shares) == 12
    assert fairness(shares) > 0.9


def test_lost_packets_are_counted_and_do_not_shut_the_window() -> None:
    with small_relay(2, every(10, lambda packet: b"")) as relay, load(relay, window=4) as engine:
        measure_some(engine, 100)
        engine.drain(PATIENCE_S)
        totals = engine.totals()
    assert 0.05 < totals["lost"] / totals["sent"] < 0.15


def test_a_flow_with_a_lost_window_starts_again() -> None:
    numbers = count()
    with (
        small_relay(2, lambda packet: b"" if next(numbers) < 4 else packet) as relay,
        load(relay, window=4) as engine,
    ):
        measure_until(engine, lambda: engine.totals()["delivered"] > 10, 1.5)


@pytest.mark.parametrize("at", [5 + 3, 5 + 32 + 1, 5 + 32 + 9], ids=["sender", "check", "number"])
def test_a_damaged_packet_is_counted_as_corrupt(at: int) -> None:
    with small_relay(2, every(5, damage(at))) as relay, load(relay, window=4) as engine:
        measure_until(engine, lambda: engine.totals()["corrupt"] > 0)


def test_only_verify_notices_a_damaged_body() -> None:
    for verify in (False, True):
        with (
            small_relay(2, every(5, damage(5 + 32 + 150))) as relay,
            load(relay, window=4, verify=verify) as engine,
        ):
            measure_some(engine, 50)
            engine.drain(PATIENCE_S)
            assert bool(engine.totals()["corrupt"]) is verify


def test_a_packet_delivered_twice_is_unexpected_and_counts_once() -> None:
    with small_relay(2, lambda packet: packet * 2) as relay, load(relay, window=4) as engine:
        measure_until(engine, lambda: engine.totals()["unexpected"] > 0)
        engine.drain(PATIENCE_S)
        totals = engine.totals()
    assert totals["delivered"] <= totals["sent"]


def test_other_frames_of_the_relay_are_skipped() -> None:
    noise = frame(FrameType.KEEP_ALIVE) + frame(FrameType.HEALTH, b"x" * 300) + frame(0x77)
    with (
        small_relay(2, lambda packet: noise + packet + noise) as relay,
        load(relay, window=4) as engine,
    ):
        measure_some(engine)
        engine.drain(PATIENCE_S)
        totals = engine.totals()
    assert totals["lost"] == totals["corrupt"] == 0


def test_a_frame_longer_than_any_packet_ends_that_connection() -> None:
    with (
        small_relay(2, lambda packet: b"\x05\x7f\xff\xff\xff") as relay,
        load(relay, window=1) as engine,
    ):
        measure_until(engine, lambda: engine.totals()["connections_lost"] == 1)


def test_a_lost_connection_stops_its_own_flow_only() -> None:
    with small_relay(4) as relay, load(relay, [(0, 1), (2, 3)], window=2) as engine:
        engine.warm_up(0.05)
        relay.members[1].sock.shutdown(socket.SHUT_RDWR)
        engine.warm_up(0.05)
        measure_until(engine, lambda: engine.delivered_by_flow()[1] > 10, 0.1)
        # What was on its way at the time of the loss may have been read late.
        assert engine.totals()["connections_lost"] == 1
        assert engine.delivered_by_flow()[0] <= 2


def test_a_rate_is_kept() -> None:
    with small_relay(2) as relay, load(relay, rate=1000.0) as engine:
        began_s, n_sent = time.monotonic(), 0
        # A load that was starved catches up, and is never ahead.
        for _ in range(100):
            engine.measure(0.1)
            elapsed_s = time.monotonic() - began_s
            n_sent += engine.totals()["sent"]
            assert n_sent <= 1000 * elapsed_s + 5
            if elapsed_s > 0.5 and n_sent >= 1000 * elapsed_s - 5:
                return
        pytest.fail("it never sent what was due")


def test_latency_of_a_schedule_includes_a_stall_of_the_relay() -> None:
    held = threading.Event()
    numbers = count()

    def hold(packet: bytes) -> bytes:
        if next(numbers) == 100:
            held.wait(0.3)
        return packet

    with small_relay(2, hold) as relay, load(relay, rate=1000.0) as engine:
        engine.measure(1.0)
        engine.drain(PATIENCE_S)
        # 300 of 1,000 packets were due during the stall; a load that waits would have measured one.
        assert engine.percentile_ns(80) > 20e6


def test_every_packet_has_its_own_record_unless_they_are_joined() -> None:
    overhead = {}
    for joined in (False, True):
        with (
            small_relay(2, tls=True) as relay,
            load(relay, joined_records=joined) as engine,
        ):
            measure_some(engine)
            engine.drain(PATIENCE_S)
            sender = relay.members[0]
            overhead[joined] = (sender.n_wire_bytes - sender.n_frame_bytes) / sender.n_frames
    assert overhead[False] == 22
    assert overhead[True] < 11


def test_a_relay_that_changes_its_keys_is_followed_and_answered() -> None:
    with small_relay(2, tls=True) as relay:

        def ask(packet: bytes) -> bytes:
            for member in relay.members:
                assert member.records
                member.records.ask_key_update()
            return packet

        relay._change = every(200, ask)
        with load(relay, window=4) as engine:
            measure_some(engine, 200)
            engine.drain(PATIENCE_S)
            totals = engine.totals()
    assert totals["lost"] == totals["connections_lost"] == 0


def test_a_record_that_does_not_open_ends_that_connection() -> None:
    with small_relay(2, tls=True) as relay, load(relay, window=1) as engine:
        engine.warm_up(0.05)
        relay.members[1].sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        engine.measure(0.1)
        assert engine.totals()["connections_lost"] == 1


def test_keys_can_be_moved_only_once() -> None:
    with small_relay(2, tls=True) as relay:
        records = relay.clients[0].records
        with load(relay, window=1):
            pass
        ours, spare = socket.socketpair()
        with ours, spare, pytest.raises(TlsError):
            Engine([Joined(spare, b"k" * 32, records=records)], [], sizes=SIZES)


def test_stop_ends_a_run_from_another_thread() -> None:
    with small_relay(2) as relay, load(relay, window=1) as engine:
        started = time.monotonic()
        threading.Timer(0.05, engine.stop).start()
        engine.measure(30)
        assert time.monotonic() - started < 5


def test_bytes_read_behind_the_login_are_the_start_of_the_stream() -> None:
    with small_relay(2) as relay:
        relay.clients[1].unread = frame(FrameType.KEEP_ALIVE)[:3]
        relay.members[1].sock.sendall(frame(FrameType.KEEP_ALIVE)[3:])
        with load(relay, window=2) as engine:
            measure_some(engine, 5)
            engine.drain(PATIENCE_S)
            totals = engine.totals()
    assert totals["lost"] == totals["connections_lost"] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"sizes": [(31, 1.0)]},
        {"sizes": [(65537, 1.0)]},
        {"sizes": [(100, 0.0)]},
        {"flows": [(0, 2)]},
        {"window": 1, "rate": 1.0},
    ],
    ids=str,
)
def test_an_impossible_load_of_the_engine_is_refused(wrong: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"flows": PAIR, "sizes": SIZES} | wrong
    with small_relay(2) as relay, pytest.raises(ValueError):
        Engine(relay.clients, **arguments)


def test_a_refused_load_leaves_no_descriptor_open() -> None:
    ours, theirs = socket.socketpair()
    with ours, pytest.raises(ValueError):
        Engine([Joined(theirs, b"k" * 32)], [(0, 7)], sizes=SIZES)
    descriptor = theirs.detach()
    if descriptor >= 0:
        os.close(descriptor)
        pytest.fail("the engine did not take the socket over")


def test_a_closed_engine_does_not_run() -> None:
    with small_relay(2) as relay:
        with load(relay, window=1) as engine:
            pass
        with pytest.raises(ValueError, match="closed"):
            engine.measure(0.1)


def test_cpu_time_and_memory_of_a_process_are_read_from_outside() -> None:
    me = Process(os.getpid())
    before = me.cpu_s()
    while time.process_time() < before + 0.05:
        pass
    assert me.cpu_s() - before >= 0.04
    assert me.rss_kib() > 1000


@pytest.mark.parametrize("pid", [4194303, 0, -1, 1 << 80])
def test_a_process_that_does_not_exist_is_named(pid: int) -> None:
    with pytest.raises(ProcessLookupError, match=f"no process {pid}"):
        Process(pid)


def test_packets_of_one_flow_leave_in_a_row() -> None:
    arrived: list[int] = []

    def note(packet: bytes) -> bytes:
        # the flow's number, behind frame header, key, and the mark's check, sequence and time
        arrived.append(int.from_bytes(packet[61:65], sys.byteorder))
        return packet

    flows = [(0, 1), (0, 2)]
    with small_relay(3, change=note) as relay:
        with load(relay, flows, window=8, in_a_row=4) as engine:
            engine.warm_up(0.05)
            eventually(lambda: len(arrived) >= 16, PATIENCE_S)
    assert arrived[:16] == [0, 0, 0, 0, 1, 1, 1, 1] * 2


def test_a_schedule_releases_a_row_at_once_and_keeps_its_rate() -> None:
    with small_relay(2) as relay, load(relay, rate=2000.0, in_a_row=20) as engine:
        began_s = time.monotonic()
        engine.measure(0.3)
        elapsed_s = time.monotonic() - began_s
        engine.drain(PATIENCE_S)
        totals = engine.totals()
    assert totals["sent"] % 20 == 0
    assert 0 < totals["sent"] <= 2000 * elapsed_s + 20
    assert totals["lost"] == 0


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_a_slow_reader_receives_at_its_reading_rate(tls: bool) -> None:
    with (
        small_relay(2, tls=tls) as relay,
        load(
            relay, sizes=[(1000, 1.0)], rate=200.0, slow=[1], slow_bytes_per_s=50_000, verify=True
        ) as engine,
    ):
        engine.measure(0.5)
        totals = engine.totals()
        median = engine.percentile_ns(50)
    assert 5_000 < totals["delivered_bytes"] < 40_000
    assert totals["corrupt"] == 0
    assert median == 0  # the latency excludes slow readers


def test_a_slow_reader_that_does_not_exist_is_refused() -> None:
    with small_relay(2) as relay, pytest.raises(ValueError, match="slow reader 2"):
        Engine(relay.clients, PAIR, sizes=SIZES, slow=[2])
