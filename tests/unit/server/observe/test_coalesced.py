"""Runs that serve many requests."""

from __future__ import annotations

import asyncio

import pytest

from fastderp.server.observe import supervisor as supervisor_module
from fastderp.server.observe.coalesced import CoalescedRuns


class Work:
    """Work whose runs wait for the test."""

    def __init__(self) -> None:
        self.began = asyncio.Queue[asyncio.Future[None]]()
        self.n_running = self.n_most = 0

    async def __call__(self) -> None:
        self.n_running += 1
        self.n_most = max(self.n_most, self.n_running)
        end = asyncio.get_running_loop().create_future()
        self.began.put_nowait(end)
        try:
            await end
        finally:
            self.n_running -= 1


@pytest.mark.parametrize("n_requests", [1, 3])
async def test_requests_during_a_run_cause_one_more_after_it(n_requests: int) -> None:
    work = Work()
    runs = CoalescedRuns("work", work)
    async with asyncio.timeout(10):
        task = runs.request()
        first = await work.began.get()
        assert not runs.is_requested
        assert {runs.request() for _ in range(n_requests)} == {task}
        assert runs.is_requested
        first.set_result(None)
        second = await work.began.get()
        assert not task.done() and not runs.is_requested
        second.set_result(None)
        await task
        assert work.began.empty() and work.n_most == 1
        again = runs.request()
        (await work.began.get()).set_result(None)
        await again


async def test_a_run_that_fails_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "FIRST_RESTART_S", 0.001)
    work = Work()
    async with asyncio.timeout(10):
        task = CoalescedRuns("work", work).request()
        (await work.began.get()).set_exception(KeyError("oops"))
        (await work.began.get()).cancel()
        (await work.began.get()).set_result(None)
        await task
    assert work.began.empty()


async def test_a_closed_one_runs_no_more() -> None:
    work = Work()
    runs = CoalescedRuns("work", work)
    async with asyncio.timeout(10):
        task = runs.request()
        await work.began.get()
        runs.request()
        runs.close()
        await asyncio.wait([task])
    assert task.cancelled() and work.began.empty() and work.n_running == 0
