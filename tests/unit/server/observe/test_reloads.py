"""Each part is reloaded by itself, with one line in the log."""

from __future__ import annotations

import asyncio
import logging

import pytest

from fastderp.errors import ConfigError
from fastderp.server.observe import reloads as reloads_module
from fastderp.server.observe.reloads import Reloads


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastderp")


async def test_each_part_has_one_line_with_what_changed_or_why_it_did_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def works() -> str:
        return "3 keys, 1 members"

    async def refuses() -> str:
        raise ConfigError("rates.json: not valid JSON")

    async def fails() -> str:
        raise KeyError("oops")

    reloads = Reloads()
    for name, part in (("broken", fails), ("limits", refuses), ("mesh", works)):
        reloads.add(name, part)
    await reloads.run()
    assert sorted(caplog.messages) == [
        "internal error in reload: 'oops'; broken stays as it is",
        "reload: limits: rates.json: not valid JSON; the previous one stays in force",
        "reload: mesh: 3 keys, 1 members",
        "reloading",
    ]
    await reloads.run_one("limits")
    assert reloads.metrics() == {
        "fastderp_reloads_refused_total": {"broken": 0, "limits": 2, "mesh": 0}
    }
    assert Reloads().metrics() == {}


async def test_a_part_without_descriptors_is_reloaded_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reloads_module, "RETRY_S", 0.001)
    failures = [OSError(24, "Too many open files")] * 3

    async def reload() -> str:
        try:
            if failures:
                raise failures.pop()
        except OSError as error:
            raise ConfigError(f"list: cannot read it: {error.strerror}") from None
        return "2 keys"

    reloads = Reloads()
    reloads.add("list", reload)
    await asyncio.wait_for(reloads.run(), 10)
    kept = "Too many open files; the previous one stays in force; next attempt in 0.001 s"
    assert caplog.text.count(kept) == 3
    assert caplog.messages[-1] == "reload: list: 2 keys"
    assert reloads.metrics() == {"fastderp_reloads_refused_total": {"list": 0}}


@pytest.mark.parametrize("n_requests", [1, 3])
async def test_requests_during_a_reload_cause_one_more_after_it(n_requests: int) -> None:
    n_running = n_most = n_done = 0
    began = asyncio.Queue[asyncio.Event]()

    async def reload() -> str:
        nonlocal n_running, n_most, n_done
        n_running += 1
        n_most = max(n_most, n_running)
        go_on = asyncio.Event()
        began.put_nowait(go_on)
        await go_on.wait()
        n_running -= 1
        n_done += 1
        return ""

    reloads = Reloads()
    reloads.add("slow", reload)
    async with asyncio.timeout(10):
        first = asyncio.create_task(reloads.run())
        one = await began.get()
        later = [asyncio.create_task(reloads.run_one("slow")) for _ in range(n_requests)]
        await asyncio.sleep(0)
        one.set()
        two = await began.get()
        assert not any(task.done() for task in (first, *later)), "one more runs"
        two.set()
        await asyncio.gather(first, *later)
    assert (n_most, n_done) == (1, 2) and began.empty()
    async with asyncio.timeout(10):
        again = asyncio.create_task(reloads.run())
        (await began.get()).set()
        await again


async def test_a_request_while_a_part_waits_for_descriptors_takes_the_place_of_its_next_attempt(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reloads_module, "RETRY_S", 0.001)
    failed = asyncio.Event()

    async def reload() -> str:
        if failed.is_set():
            return "2 keys"
        failed.set()
        raise ConfigError("list: cannot read it: Too many open files") from OSError(24, "")

    reloads = Reloads()
    reloads.add("list", reload)
    async with asyncio.timeout(10):
        first = asyncio.create_task(reloads.run_one("list"))
        await failed.wait()
        await asyncio.gather(first, reloads.run())
    assert caplog.messages[-1] == "reload: list: 2 keys"
    assert reloads.metrics() == {"fastderp_reloads_refused_total": {"list": 0}}
    assert caplog.text.count("2 keys") == 1


async def test_a_changed_file_reloads_its_part_only(caplog: pytest.LogCaptureFixture) -> None:
    async def works() -> str:
        return "new"

    reloads = Reloads()
    for name in ("certificate", "mesh"):
        reloads.add(name, works)
    await reloads.run_one("mesh")
    assert caplog.messages == ["files changed: mesh: new"]
