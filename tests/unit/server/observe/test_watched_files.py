"""Files that change are noticed once they have settled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fastderp.server.observe import watched_files
from fastderp.server.observe.watched_files import WatchedFiles


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

    async def changed(_: str) -> None:
        raise AssertionError

    watched = WatchedFiles({"certificate": [file]}, changed)
    for n in range(1, 5):
        file.write_text("x" * n)
        assert watched._settled(watched._look()) == []
    assert watched._settled(watched._look()) == ["certificate"]
    assert watched._settled(watched._look()) == []


async def test_what_is_reloaded_anyway_is_not_reported(tmp_path: Path) -> None:
    file, other = tmp_path / "a", tmp_path / "b"
    async with watching(one=[file], two=[other]) as (watched, changed):
        file.write_text("1")
        await watched.skip()
        other.write_text("1")
        assert await following(changed) == "two"
        assert changed.empty()
