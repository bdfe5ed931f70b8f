"""Detection of the end of a new watcher's list of clients. PROTOCOL §7.3."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Any, cast

import pytest

from fastderp.net.settling import LIMIT_S, PAUSE_S, Settling


class Clock:
    """An event loop's time, which the test lets pass."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []

    def time(self) -> float:
        return self.now_s

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Called by a handle."""

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, (), cast(Any, self))
        heapq.heappush(self._timers, (when, len(self._timers), handle))
        return handle

    def advance(self, seconds: float) -> None:
        """Let time pass, with what is due on its way."""
        end_s = self.now_s + seconds
        while self._timers and self._timers[0][0] <= end_s:
            self.now_s, _, handle = heapq.heappop(self._timers)
            if not handle.cancelled():
                handle._run()
        self.now_s = end_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def settled() -> list[float]:
    """The times of the callback's calls."""
    return []


@pytest.fixture
def settling(clock: Clock, settled: list[float]) -> Settling:
    return Settling(
        lambda: settled.append(round(clock.now_s - 100, 3)), cast(asyncio.AbstractEventLoop, clock)
    )


def test_a_list_is_complete_a_pause_after_its_last_client(
    settling: Settling, clock: Clock, settled: list[float]
) -> None:
    clock.advance(0.5)
    for _ in range(3):
        settling.arrived()
        clock.advance(PAUSE_S / 2)
    assert settled == []
    clock.advance(PAUSE_S)
    assert settled == [0.5 + 2 * PAUSE_S]


def test_the_wait_for_an_empty_or_endless_list_is_bounded(
    settling: Settling, clock: Clock, settled: list[float]
) -> None:
    clock.advance(LIMIT_S + 1)
    assert settled == [LIMIT_S]
    endless = Settling(
        lambda: settled.append(round(clock.now_s - 100, 3)), cast(asyncio.AbstractEventLoop, clock)
    )
    for _ in range(40):
        endless.arrived()
        clock.advance(PAUSE_S / 2)
    assert settled == [LIMIT_S, 2 * LIMIT_S + 1] and clock.now_s > 100 + 2 * LIMIT_S + 1


def test_later_arrivals_change_nothing_and_a_stopped_wait_calls_nothing(
    settling: Settling, clock: Clock, settled: list[float]
) -> None:
    settling.arrived()
    clock.advance(1)
    settling.arrived()
    clock.advance(10)
    assert settled == [PAUSE_S]
    stopped = Settling(lambda: settled.append(0), cast(asyncio.AbstractEventLoop, clock))
    stopped.arrived()
    stopped.stop()
    clock.advance(10)
    assert settled == [PAUSE_S]
