"""Work queues run in rounds, and the loop does other work between them."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from fastderp.server.accept import round_robin
from fastderp.server.accept.round_robin import RoundRobin


async def test_callbacks_run_round_robin_with_other_loop_work_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(round_robin, "SLICE_S", -1.0)
    loop = asyncio.get_running_loop()
    queue = RoundRobin(loop)
    happened: list[str] = []
    over = asyncio.Event()

    def work(name: str, n_more: int) -> None:
        happened.append(name)
        if n_more:
            queue.add(lambda: work(name, n_more - 1))

    def tick() -> None:
        happened.append("loop")
        if len(happened) < 20:
            loop.call_soon(tick)
        else:
            over.set()

    queue.add(lambda: work("a", 2))
    queue.add(lambda: work("b", 2))
    loop.call_soon(tick)
    await over.wait()
    assert [name for name in happened if name != "loop"] == ["a", "b"] * 3
    assert "loop" in happened[:3]
    assert all("loop" in pair for pair in itertools.pairwise(happened))


async def test_nothing_is_called_after_close() -> None:
    queue = RoundRobin(asyncio.get_running_loop())
    called: list[int] = []
    queue.add(lambda: called.append(1))
    queue.close()
    await asyncio.sleep(0.01)
    assert called == []
