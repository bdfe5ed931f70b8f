"""Files that change are noticed once they have settled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fastderp.server.observe import watched_files
from fastderp.server.observe.watched_files import WatchedFiles
from fastderp.util import files


@pytest.fixture(autouse=True)
def short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_files, "POLL_S", 0.002)


@asynccontextmanager
async def watching(**parts: list[Path]) -> AsyncIterator[tuple[WatchedFiles, asyncio.Queue[str]]]:
    changed: asyncio.Queue[str] = asyncio.Queue()
    watched = WatchedFiles(parts, changed.put)
    task = asyncio.create_task(watched.run())
    try:
        yield watched, changed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def following(changed: asyncio.Queue[str]) -> str:
    return await asyncio.wait_for(changed.get(), 10)


async def test_a_written_replaced_linked_or_deleted_file_counts_as_changed(
    tmp_path: Path,
) -> None:
    file, other = tmp_path / "a.crt", tmp_path / "b.key"
    file.write_text("1")
    async with watching(certificate=[file], mesh=[other]) as (_, changed):
        file.write_text("22")
        assert await following(changed) == "certificate"
        (tmp_path / "new").write_text("33")
        (tmp_path / "new").rename(file)
        assert await following(changed) == "certificate"
        other.symlink_to(file)
        assert await following(changed) == "mesh"
        (tmp_path / "next").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").write_text("44")
        (tmp_path / "next").rename(other)
        assert await following(changed) == "mesh"
        file.unlink()
        assert await following(changed) == "certificate"
        assert changed.empty()


def test_a_file_that_still_changes_is_not_reported(tmp_path: Path) -> None:
    file = tmp_path / "a.crt"
    part = watched_files._Part([file])
    for n in range(1, 5):
        file.write_text("x" * n)
        assert not part.settle(part.look())
    assert part.settle(part.look())
    assert not part.settle(part.look())


async def test_a_part_whose_file_system_hangs_delays_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung, file = tmp_path / "hung", tmp_path / "a"
    look = files.fingerprint
    go_on = threading.Event()
    async with watching(one=[hung], two=[file]) as (watched, changed):

        def slow(path: Path) -> files.Fingerprint:
            if path == hung:
                go_on.wait(10)
            return look(path)

        monkeypatch.setattr(files, "fingerprint", slow)
        skipping = asyncio.create_task(watched.skip("one"))
        for text in ("1", "22"):
            file.write_text(text)
            assert await following(changed) == "two"
        await watched.skip("two")
        assert not skipping.done()
        go_on.set()
        await skipping
        hung.write_text("1")
        assert await following(changed) == "one"


async def test_a_part_whose_reload_hangs_delays_no_other(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    reloading = asyncio.Queue[str]()

    async def reload(name: str) -> None:
        reloading.put_nowait(name)
        if name == "one":
            await asyncio.Future()

    following = asyncio.create_task(WatchedFiles({"one": [one], "two": [two]}, reload).run())
    async with asyncio.timeout(10):
        for path in (one, two):
            path.write_text("1")
            assert await reloading.get() == path.name
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_without_threads_the_files_are_looked_at_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a"
    start = threading.Thread.start
    refused = asyncio.Event()

    def refuse(_: threading.Thread) -> None:
        refused.set()
        raise RuntimeError("can't start new thread")

    async with watching(one=[file]) as (_, changed):
        monkeypatch.setattr(threading.Thread, "start", refuse)
        file.write_text("1")
        await refused.wait()
        monkeypatch.setattr(threading.Thread, "start", start)
        assert await following(changed) == "one"


async def test_what_is_reloaded_anyway_is_not_reported(tmp_path: Path) -> None:
    file, other = tmp_path / "a", tmp_path / "b"
    async with watching(one=[file], two=[other]) as (watched, changed):
        file.write_text("1")
        await watched.skip("one")
        other.write_text("1")
        assert await following(changed) == "two"
        assert changed.empty()


async def test_a_file_that_the_start_makes_does_not_count_as_changed(tmp_path: Path) -> None:
    made, kept, other = tmp_path / "a.crt", tmp_path / "a.key", tmp_path / "mesh"
    kept.write_text("1")
    async with watching(certificate=[made, kept], mesh=[other]) as (watched, changed):
        made.write_text("1")
        watched.note_new()
        other.write_text("1")
        assert await following(changed) == "mesh"
        assert changed.empty()
        made.write_text("22")
        assert await following(changed) == "certificate"


async def test_a_file_that_changes_while_the_relay_starts_counts(tmp_path: Path) -> None:
    file = tmp_path / "a.crt"
    file.write_text("1")
    async with watching(certificate=[file]) as (watched, changed):
        file.write_text("22")
        watched.note_new()
        assert await following(changed) == "certificate"
