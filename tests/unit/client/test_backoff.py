"""The times at which a client dials again (PROTOCOL §4, §13)."""

import pytest

from fastderp.client.backoff import RESTART_LIMIT_S, STABLE_S, Backoff, RetrySchedule
from fastderp.wire.messages import ServerRestarting


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def waits_of_failures(schedule: RetrySchedule, clock: Clock, n: int) -> list[float]:
    """Return the waits after each of `n` failures in a row."""
    waits = []
    for _ in range(n):
        schedule.failed(was_connected=False)
        waits.append(schedule.wait_s())
        clock.now_s += schedule.wait_s()
    return waits


def test_the_first_attempt_does_not_wait(clock: Clock) -> None:
    assert RetrySchedule(Backoff(), clock).wait_s() == 0


def test_waits_double_up_to_the_limit_with_up_to_half_taken_off(clock: Clock) -> None:
    waits = waits_of_failures(RetrySchedule(Backoff(1.0, 30.0), clock), clock, 2000)
    assert 0 <= waits[0] <= 1.0
    for wait_s, whole_s in zip(waits[1:7], (1, 2, 4, 8, 16, 30), strict=True):
        assert whole_s / 2 <= wait_s <= whole_s
    assert all(15 <= wait_s <= 30 for wait_s in waits[6:])
    assert len(set(waits[6:])) > 100


def test_time_that_has_passed_is_not_waited_for_again(clock: Clock) -> None:
    schedule = RetrySchedule(Backoff(1.0, 30.0), clock)
    schedule.failed(was_connected=False)
    clock.now_s += 3600
    assert schedule.wait_s() == 0


def test_a_connection_that_lasted_ends_the_row_of_failures(clock: Clock) -> None:
    schedule = RetrySchedule(Backoff(1.0, 30.0), clock)
    waits_of_failures(schedule, clock, 10)
    schedule.connected()
    clock.now_s += STABLE_S
    schedule.failed(was_connected=True)
    assert schedule.wait_s() <= 1.0


def test_waits_grow_for_a_relay_that_accepts_and_closes_at_once(
    clock: Clock,
) -> None:
    schedule = RetrySchedule(Backoff(1.0, 30.0), clock)
    for _ in range(10):
        clock.now_s += schedule.wait_s()
        schedule.connected()
        schedule.failed(was_connected=True)
    assert schedule.wait_s() >= 15


def test_a_restart_is_waited_for_as_announced_and_then_tried_often(clock: Clock) -> None:
    schedule = RetrySchedule(Backoff(1.0, 30.0), clock)
    waits_of_failures(schedule, clock, 9)
    schedule.restarting(ServerRestarting(reconnect_in_s=5.0, try_for_s=60.0))
    schedule.failed(was_connected=True)
    assert 5.0 <= schedule.wait_s() <= 6.0
    clock.now_s += schedule.wait_s()
    assert all(wait_s <= 1.0 for wait_s in waits_of_failures(schedule, clock, 50))
    clock.now_s += 60.0
    assert waits_of_failures(schedule, clock, 1)[0] >= 15.0


def test_the_pause_that_a_relay_announces_is_bounded(clock: Clock) -> None:
    schedule = RetrySchedule(Backoff(), clock)
    schedule.restarting(ServerRestarting(2**32 / 1000, 2**32 / 1000))
    assert schedule.wait_s() == RESTART_LIMIT_S


@pytest.mark.parametrize(("first_s", "limit_s"), [(-1, 30), (2, 1), (float("nan"), 1)])
def test_invalid_times_are_refused(first_s: float, limit_s: float) -> None:
    with pytest.raises(ValueError, match="first_s must be between 0 and limit_s"):
        Backoff(first_s, limit_s)
