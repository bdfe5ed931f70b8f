"""Deadlines share one timer of the loop."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from fastderp.server.accept.deadlines import Deadlines


class Owner:
    def __init__(self, name: str, came: list[str]) -> None:
        self.name = name
        self.came = came
        self.budget_s = 0.0
        self.is_over = asyncio.Event()

    def on_time(self) -> None:
        self.came.append(self.name)
        self.is_over.set()


class ManualLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes in `advance` only."""

    now_s = 0.0

    def time(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let the time pass, and run what is due."""
        self.now_s += seconds
        self.call_soon(self.stop)
        self.run_forever()


def test_owners_are_called_in_the_order_of_their_deadlines() -> None:
    with contextlib.closing(ManualLoop()) as loop:
        deadlines, came = Deadlines(loop), list[str]()
        late, early, replaced = (Owner(name, came) for name in ("late", "early", "replaced"))
        deadlines.start(late, 4)
        deadlines.start(replaced, 1)
        deadlines.start(early, 2)
        deadlines.start(replaced, 6)
        for order in ([], ["early"], ["early"], ["early", "late"], ["early", "late"]):
            loop.advance(1)
            assert came == order
        loop.advance(1)
    assert came == ["early", "late", "replaced"]
    assert early.budget_s == 0


async def test_a_stopped_deadline_never_comes() -> None:
    deadlines, came = Deadlines(asyncio.get_running_loop()), list[str]()
    stopped, other = Owner("stopped", came), Owner("other", came)
    deadlines.start(stopped, 0.01)
    deadlines.start(other, 0.01)
    deadlines.stop(stopped)
    deadlines.stop(stopped)
    await other.is_over.wait()
    assert came == ["other"]


async def test_an_owner_that_another_stops_is_not_called() -> None:
    deadlines, came = Deadlines(asyncio.get_running_loop()), list[str]()
    first, second, last = (Owner(name, came) for name in ("first", "second", "last"))

    def stop_the_second() -> None:
        came.append("first")
        deadlines.stop(second)

    first.on_time = stop_the_second  # type: ignore[method-assign]
    deadlines.start(first, 0.01)
    deadlines.start(second, 0.01)
    deadlines.start(last, 0.02)
    await last.is_over.wait()
    assert came == ["first", "last"]


async def test_an_owner_that_fails_does_not_stop_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    deadlines, came = Deadlines(asyncio.get_running_loop()), list[str]()
    broken, other = Owner("broken", came), Owner("other", came)

    def fail() -> None:
        raise RuntimeError("broken owner")

    broken.on_time = fail  # type: ignore[method-assign]
    deadlines.start(broken, 0.01)
    deadlines.start(other, 0.01)
    await other.is_over.wait()
    assert "broken owner" in caplog.text


async def test_nothing_is_called_after_the_close() -> None:
    loop = asyncio.get_running_loop()
    deadlines, came = Deadlines(loop), list[str]()
    deadlines.start(Owner("closed", came), 0.01)
    deadlines.close()
    over = asyncio.Event()
    loop.call_later(0.03, over.set)
    await over.wait()
    assert came == []
