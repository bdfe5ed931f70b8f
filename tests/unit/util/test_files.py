"""Small files: bounded reads, atomic writes."""

import errno
import os
from pathlib import Path

import pytest

from fastderp.util import files


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"\xef\xbb\xbfabc\xef\xbb\xbf")
    assert files.read(path) == b"abc\xef\xbb\xbf"


def test_a_file_without_end_or_writer_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            files.read(path)


def test_files_above_the_limit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(files.LIMIT_BYTES))
    assert len(files.read(path)) == files.LIMIT_BYTES
    path.write_bytes(bytes(files.LIMIT_BYTES + 1))
    with pytest.raises(OSError, match="larger than 1 MiB"):
        files.read(path)
    assert files.read(path, limit_bytes=2 << 20)


def test_a_file_is_replaced_atomically_with_its_mode_under_any_umask(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(b"old")
    umask = os.umask(0o077)
    try:
        files.write_atomic(path, b"new", 0o644)
    finally:
        os.umask(umask)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_related_files_are_all_replaced_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = {tmp_path / "a": files.Content(b"new a"), tmp_path / "b": files.Content(b"new b")}
    (tmp_path / "a").write_bytes(b"old a")
    n_synced = 0

    def full_at_the_second(descriptor: int) -> None:
        nonlocal n_synced
        n_synced += 1
        if n_synced == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", full_at_the_second)
        with pytest.raises(OSError, match="No space left"):
            files.write_all_atomic(pair)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old a"}
    files.write_all_atomic(pair)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "a": b"new a",
        "b": b"new b",
    }


def test_a_private_file_is_created_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "key"
    assert files.create_private(path, b"first")
    assert not files.create_private(path, b"second")
    assert path.read_bytes() == b"first"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
