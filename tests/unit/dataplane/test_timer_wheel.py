"""The timer wheel: when timers are due, and how long a worker may sleep."""

from __future__ import annotations

import random
import select
import time

import pytest

from tests.unit.dataplane.shims import wheels

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


def test_the_next_timer_ends_the_sleep() -> None:
    wheel = wheels.TimerWheel(3)
    assert wheel.wake_ns == REACH
    wheel.arm(0, 50 * TICK)
    wheel.arm(1, 20 * TICK - 1)
    wheel.arm(2, 60 * TICK)
    assert wheel.wake_ns == 20 * TICK
    assert wheel.pop(20 * TICK) == [1]
    assert wheel.wake_ns == 50 * TICK
    wheel.disarm(0)
    assert wheel.pop(50 * TICK) == []
    assert wheel.wake_ns == 60 * TICK


def expires(wheel: wheels.TimerWheel, limit_s: float) -> bool:
    return bool(select.select([wheel.timer_fd], [], [], limit_s)[0])


def test_the_kernel_knows_the_time_of_the_next_timer() -> None:
    now_ns = time.monotonic_ns()
    wheel = wheels.TimerWheel(2, now_ns)
    wheel.arm(0, now_ns + REACH // 2)
    assert not expires(wheel, 0)
    wheel.arm(1, now_ns + 2 * TICK)
    assert expires(wheel, 60)
    assert time.monotonic_ns() >= now_ns + 2 * TICK
    assert wheel.pop(time.monotonic_ns()) == [1]
    assert not expires(wheel, 0)
    wheel.arm(1, 1)
    assert expires(wheel, 60), "a time that has passed"


def test_an_expiration_before_its_time_does_not_end_the_timers() -> None:
    now_ns = time.monotonic_ns()
    wheel = wheels.TimerWheel(1, now_ns)
    wheel.arm(0, now_ns + 3 * TICK)
    assert expires(wheel, 60)
    wheel.expired()
    assert wheel.pop(now_ns) == [], "a clock that is behind the kernel's"
    assert not expires(wheel, 0) or time.monotonic_ns() >= now_ns + 3 * TICK
    assert wheel.wake_ns >= now_ns + 3 * TICK
    assert expires(wheel, 60)
    wheel.expired()
    assert wheel.pop(time.monotonic_ns()) == [0]


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
        assert now < wheel.wake_ns <= min(due.values(), default=wheel.wake_ns) + TICK
        assert all(at > now - 2 * TICK for at in due.values())
