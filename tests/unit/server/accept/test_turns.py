"""Work queues run in rounds, and the loop does other work between them."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from fastderp.server.accept import turns as turns_module
from fastderp.server.accept.turns import Turns


async def test_turns_go_round_and_other_callbacks_come_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns_module, "SLICE_S", -1.0)
    loop = asyncio.get_running_loop()
    turns = Turns(loop)
    happened: list[str] = []
    over = asyncio.Event()

    def work(name: str, n_more: int) -> None:
        happened.append(name)
        if n_more:
            turns.ask(lambda: work(name, n_more - 1))

    def tick() -> None:
        happened.append("loop")
        if len(happened) < 20:
            loop.call_soon(tick)
        else:
            over.set()

    turns.ask(lambda: work("a", 2))
    turns.ask(lambda: work("b", 2))
    loop.call_soon(tick)
    await over.wait()
    assert [name for name in happened if name != "loop"] == ["a", "b"] * 3
    assert "loop" in happened[:3]
    assert all("loop" in pair for pair in itertools.pairwise(happened))


async def test_nothing_is_called_after_the_end() -> None:
    turns = Turns(asyncio.get_running_loop())
    called: list[int] = []
    turns.ask(lambda: called.append(1))
    turns.close()
    await asyncio.sleep(0.01)
    assert called == []
