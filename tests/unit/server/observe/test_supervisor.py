"""Background work that fails is logged, counted and continued. RELIABILITY F36."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

import fastderp
from fastderp.server.accept.round_robin import RoundRobin
from fastderp.server.observe import supervisor as supervisor_module
from fastderp.server.observe.supervisor import Supervisor


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    monkeypatch.setattr(supervisor_module, "FIRST_RESTART_S", 0.001)
    monkeypatch.setattr(supervisor_module, "LAST_RESTART_S", 0.002)
    return Supervisor()


def counted(supervisor: Supervisor) -> object:
    return supervisor.metrics()["fastderp_internal_errors_total"]


async def test_a_task_that_fails_is_started_again_until_it_returns(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[Exception] = [KeyError("one"), OSError("two"), RuntimeError("three")]

    async def work() -> None:
        if failures:
            raise failures.pop(0)

    await asyncio.wait_for(supervisor.start("work", work, name="work of ann"), 10)
    assert counted(supervisor) == {"work": 3}
    [record] = caplog.records
    assert "internal error in work: 'one'; work of ann starts again in" in record.getMessage()
    assert record.exc_info is not None


def test_a_shortage_of_the_system_is_one_line_without_a_traceback(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor.note("work", RuntimeError("can't start new thread"), "work starts again in 0.5 s")
    assert counted(supervisor) == {"work": 1}
    [record] = caplog.records
    assert (
        record.getMessage() == "shortage in work: No thread available; work starts again in 0.5 s"
    )
    assert record.exc_info is None


async def test_a_supervised_task_can_be_cancelled_while_it_works_and_while_it_waits(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "FIRST_RESTART_S", 3600.0)
    began = asyncio.Event()

    async def working() -> None:
        began.set()
        await asyncio.Event().wait()

    async def failing() -> None:
        began.set()
        raise OSError("no")

    for work in (working, failing):
        began.clear()
        task = supervisor.start("work", work)
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_cancelled_await_inside_a_task_does_not_end_the_task(
    supervisor: Supervisor,
) -> None:
    n_runs = 0

    async def work() -> None:
        nonlocal n_runs
        n_runs += 1
        if n_runs == 1:
            inner = asyncio.get_running_loop().create_future()
            inner.cancel()
            await inner

    await asyncio.wait_for(supervisor.start("work", work), 10)
    assert n_runs == 2
    assert counted(supervisor) == {"work": 1}


def test_a_guarded_callback_that_fails_is_counted_and_logged_once_per_window(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(number: int) -> None:
        raise ValueError(f"number {number}")

    call = supervisor.guarded("callback", fail)
    assert counted(supervisor) == {"callback": 0}, "shown before the first error"
    for number in range(20):
        call(number)
    assert counted(supervisor) == {"callback": 20}
    assert [record.getMessage() for record in caplog.records] == [
        "internal error in callback: number 0"
    ]
    assert supervisor.guard("callback", len, [])
    assert not supervisor.guard("callback", fail, 1)


async def test_exceptions_that_reach_the_event_loop_are_counted_too(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(supervisor.note_loop_error)
    empty: dict[str, object] = {}
    loop.call_soon(empty.__getitem__, "oops")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert counted(supervisor) == {"event loop": 1}
    assert "oops" in caplog.text


async def test_a_callback_that_fails_does_not_end_the_others() -> None:
    queue, done = RoundRobin(asyncio.get_running_loop()), []
    for callback in ([].pop, lambda: done.append(1), [].pop, lambda: done.append(2)):
        queue.add(callback)
    await asyncio.sleep(0.01)
    queue.add(lambda: done.append(3))
    async with asyncio.timeout(10):
        while len(done) < 3:
            await asyncio.sleep(0)
    assert done == [1, 2, 3]


# (module, function) of code that makes its own tasks, and why that is safe
OWN_TASKS = {
    "accept/connection.py": "tasks of one connection, which handle every exception themselves",
    "accept/drain.py": "the parts of a drain, in a group that `Server.drain` awaits",
    "accept/embedded.py": "the pumps of one stream, which `serve` awaits",
    "admission/admission.py": "the questions of a round, in a group of a supervised task",
    "app.py": "the drain, whose exceptions end the command; a look at its file, awaited at once",
    "certificates/acme/provider.py": "orders, which handle every exception themselves",
    "http/bootstrap_dns.py": "lookups, in a group of a supervised task",
    "observe/watched_files.py": "a look at the files in a thread, awaited at once",
    "net/resolver.py": "a read of the hosts file, awaited at once",
    "observe/supervisor.py": "the supervised tasks",
    "process.py": "the start and the drain, whose exceptions end the command",
    "server.py": "the end of the relay, which `close` awaits",
}


def test_tasks_are_made_by_the_supervisor_or_at_listed_places() -> None:
    root = Path(fastderp.__file__).parent / "server"
    makers = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if re.search(r"\b(create_task|ensure_future|to_thread)\(", path.read_text())
    }
    assert makers == OWN_TASKS.keys()
