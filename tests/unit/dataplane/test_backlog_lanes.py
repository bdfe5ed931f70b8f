"""The backlog of one session: the order of writes, the kept frames, and the charged bytes."""

from __future__ import annotations

import random

import pytest

from tests.unit.dataplane.shims import backlogs


def packet(sender: int, size: int = 1400, fill: int = 0) -> bytes:
    return b"\x05" + (32 + size).to_bytes(4) + sender.to_bytes(32, "little") + bytes([fill]) * size


def test_lanes_go_out_in_their_order() -> None:
    backlog = backlogs.PlaneBacklog()
    backlog.push("data", packet(1))
    backlog.push("disco", packet(2))
    backlog.push("control", b"control")
    backlog.push("wire", b"the rest", 4)
    assert backlog.peek() == [b"rest", b"control", packet(2), packet(1)]
    assert [backlog.pop() for _ in range(5)] == [
        b"the rest", b"control", packet(2), packet(1), None,
    ]  # fmt: skip


def test_a_partly_written_frame_stays_first() -> None:
    backlog = backlogs.PlaneBacklog()
    backlog.push("data", packet(1))
    backlog.peek()
    backlog.take(10)
    backlog.push("control", b"control")
    backlog.push("disco", packet(2))
    assert backlog.peek() == [packet(1)[10:], b"control", packet(2)]
    assert backlog.dropped == []


@pytest.mark.parametrize("limit", [1, 1437, 1438, 3000])
def test_a_peek_keeps_to_its_limit_and_gives_one_frame_at_least(limit: int) -> None:
    backlog = backlogs.PlaneBacklog()
    for i in range(5):
        backlog.push("data", packet(1, fill=i))
    assert backlog.peek(limit) == [packet(1, fill=i) for i in range(max(1, limit // 1437))]
    assert backlog.peek(n_most=3) == [packet(1, fill=i) for i in range(3)]


def test_control_frames_beyond_their_room_are_refused_and_none_is_dropped() -> None:
    backlog = backlogs.PlaneBacklog()
    frames = backlogs.CONTROL_MAX_BYTES // 1000
    assert all(backlog.push("control", bytes(1000)) for _ in range(frames))
    assert not backlog.push("control", bytes(1000))
    assert backlog.dropped == []
    assert backlog.n_bytes == frames * 1000


def test_a_full_lane_of_packets_drops_the_oldest() -> None:
    backlog = backlogs.PlaneBacklog(lane_bytes=0)
    for i in range(40):
        assert backlog.push("data", packet(1, fill=i))
    assert backlog.dropped == [packet(1, fill=i) for i in range(8)]


def test_packets_over_the_age_limit_are_dropped_except_the_last() -> None:
    backlog = backlogs.PlaneBacklog(age_ns=100)
    for i in range(3):
        backlog.push("data", packet(1, fill=i), now_ns=1000 + i)
    assert backlog.peek(now_ns=2000) == [packet(1, fill=2)]
    assert backlog.dropped == [packet(1, fill=0), packet(1, fill=1)]


def test_above_the_global_cap_each_lane_keeps_its_minimum() -> None:
    backlog = backlogs.PlaneBacklog(cap_bytes=1)
    assert backlog.push("data", packet(1, fill=1))
    assert backlog.push("data", packet(1, fill=2))
    assert backlog.push("data", packet(1, fill=3))
    assert backlog.n_bytes <= 4096
    assert backlog.peek()[-1] == packet(1, fill=3), "the newest stay"


@pytest.mark.parametrize("seed", range(5))
def test_random_use_reports_every_lost_frame_and_leaves_no_charge(seed: int) -> None:
    rng = random.Random(seed)
    backlog = backlogs.PlaneBacklog(cap_bytes=rng.choice((50_000, 1 << 40)), age_ns=500)
    n_pushed = n_popped = n_refused = 0
    for now in range(1, 4000):
        lane = rng.choice(("control", "disco", "data", "data"))
        frame = packet(rng.randrange(1, 50), rng.choice((10, 1400, 9000)))
        if rng.random() < 0.55:
            n_pushed += 1
            n_refused += not backlog.push(lane, frame, now_ns=now)
        elif rng.random() < 0.5:
            pieces = backlog.peek(20_000, now_ns=now)
            if pieces and rng.random() < 0.5:
                backlog.take(rng.randrange(1, len(pieces[0])) if len(pieces[0]) > 1 else 0)
        else:
            n_popped += backlog.pop() is not None
        assert backlog.charged_bytes >= backlog.n_bytes
    n_dropped = len(backlog.dropped)
    while backlog.pop() is not None:
        n_popped += 1
    assert backlog.is_empty
    assert n_pushed == n_popped + n_dropped + n_refused
    backlog.close()
    assert backlog.charged_bytes == 0
