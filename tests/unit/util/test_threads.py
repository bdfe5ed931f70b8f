"""Functions that may block run in threads of their own."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fastderp.errors import ShortageError
from fastderp.util.shortage import shortage_of
from fastderp.util.threads import in_thread


async def test_the_result_and_the_exception_come_from_a_daemon_thread() -> None:
    def work() -> threading.Thread:
        return threading.current_thread()

    def fail() -> None:
        raise KeyError("oops")

    thread = await in_thread("work", work)
    assert thread.name == "work" and thread.daemon and thread is not threading.main_thread()
    with pytest.raises(KeyError, match="oops"):
        await in_thread("work", fail)


async def test_threads_that_hang_delay_no_other() -> None:
    go_on = threading.Event()
    hung = [in_thread("hung", go_on.wait) for _ in range(50)]
    assert await in_thread("work", lambda: 1) == 1
    hung.pop().cancel()
    go_on.set()
    assert all(await asyncio.gather(*hung))


def test_a_thread_may_outlive_its_loop() -> None:
    go_on, threads = threading.Event(), list[threading.Thread]()

    def work() -> None:
        threads.append(threading.current_thread())
        go_on.wait(10)

    async def begin() -> None:
        in_thread("work", work)
        while not threads:
            await asyncio.sleep(0)

    asyncio.run(begin())
    go_on.set()
    threads[0].join()


async def test_a_lack_of_threads_is_a_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ShortageError) as caught:
        in_thread("work", lambda: 1)
    assert shortage_of(caught.value)
