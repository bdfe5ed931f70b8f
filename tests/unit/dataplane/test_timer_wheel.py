"""The timer wheel: when timers are due, and how long a worker may sleep."""

from __future__ import annotations

import os
import random

import pytest

from tests.unit.dataplane.shims import Shim

wheels = Shim("wheels")
TICK = 1 << 23  # ns, WHEEL_TICK_BITS
REACH = TICK << 13  # WHEEL_BUCKETS


def test_a_timer_is_due_in_the_tick_behind_its_time_and_never_before() -> None:
    wheel = wheels.TimerWheel(1)
    wheel.arm(0, 3 * TICK + 1)
    assert wheel.pop(3 * TICK + 1) == []
    assert wheel.pop(4 * TICK) == [0]
    assert wheel.pop(100 * TICK) == []


def test_an_armed_timer_only_becomes_due_earlier() -> None:
    wheel = wheels.TimerWheel(1)
    wheel.arm(0, 10 * TICK)
    wheel.arm(0, 20 * TICK)
    wheel.arm(0, 5 * TICK)
    assert wheel.pop(5 * TICK) == [0]
    assert wheel.pop(30 * TICK) == []


def test_a_disarmed_timer_is_never_due() -> None:
    wheel = wheels.TimerWheel(3)
    for i in range(3):
        wheel.arm(i, 5 * TICK)
    wheel.disarm(1)
    wheel.disarm(1)
    assert sorted(wheel.pop(5 * TICK)) == [0, 2]


def test_a_time_that_has_passed_is_due_at_once() -> None:
    wheel = wheels.TimerWheel(1, now_ns=1000 * TICK)
    wheel.arm(0, 1)
    assert wheel.pop(1000 * TICK) == [0]


def test_a_timer_beyond_the_reach_comes_round_in_the_last_bucket() -> None:
    wheel = wheels.TimerWheel(1)
    wheel.arm(0, 3 * REACH)
    assert wheel.pop(REACH - 2 * TICK) == []
    assert wheel.pop(REACH) == [0], "its session looks at the clock and arms it again"


def test_a_worker_sleeps_until_the_next_timer() -> None:
    wheel = wheels.TimerWheel(2)
    wheel.arm(0, 50 * TICK)
    wheel.arm(1, 20 * TICK)
    assert wheel.sleep_ms(0) == pytest.approx(20 * TICK / 1e6, abs=1)
    assert wheel.sleep_ms(21 * TICK) == 0
    wheel.awake()


def test_a_sleeping_worker_is_woken_for_an_earlier_timer_and_for_no_later_one() -> None:
    wake = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        wheel = wheels.TimerWheel(3, wake)
        wheel.arm(0, 50 * TICK)
        wheel.sleep_ms(0)
        wheel.arm(1, 60 * TICK)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(wake)
        wheel.arm(2, 40 * TICK)
        assert os.eventfd_read(wake) == 1
    finally:
        os.close(wake)


@pytest.mark.parametrize("seed", range(5))
def test_random_timers_are_each_due_once_and_within_a_tick(seed: int) -> None:
    rng = random.Random(seed)
    wheel = wheels.TimerWheel(200)
    due: dict[int, int] = {}
    now = 0
    for _ in range(5000):
        i = rng.randrange(200)
        if rng.random() < 0.1:
            wheel.disarm(i)
            due.pop(i, None)
        else:
            at = now + rng.randrange(rng.choice((TICK, 300 * TICK, REACH - 2 * TICK)))
            wheel.arm(i, at)
            due[i] = min(at, due.get(i, at))
        now += rng.randrange(2 * TICK)
        for fired in wheel.pop(now):
            assert due.pop(fired) <= now
        assert all(at > now - 2 * TICK for at in due.values())
