"""Small files: bounded reads, atomic writes."""

import errno
import os
import stat
from pathlib import Path
from types import SimpleNamespace

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


def check_created_once(path: Path) -> None:
    """Create a private file, and check that a second creation leaves it as it is."""
    assert files.create_private(path, b"first")
    assert not files.create_private(path, b"second")
    assert path.read_bytes() == b"first"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES])
def test_a_private_file_is_created_where_the_file_system_has_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def no_link(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "link", no_link)
    check_created_once(tmp_path / "deep" / "key")


def test_a_private_file_on_a_full_disk_without_links_leaves_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        monkeypatch.setattr(os, "fsync", full)
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(OSError, match="No space left"):
        files.create_private(tmp_path / "key", b"first")
    assert list(tmp_path.iterdir()) == []


def test_a_private_file_of_another_process_stays_when_ours_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    os_open = os.open

    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def open_file(name: Path, *arguments: int) -> int:
        if name != path:
            return os_open(name, *arguments)
        path.write_bytes(b"theirs")
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "link", no_link)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_file)
        with pytest.raises(OSError, match="Too many open files"):
            files.create_private(path, b"ours")
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fchmod", "fsync of a directory"])
def test_files_are_written_where_the_file_system_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    sync = os.fsync

    def refused(*_: int) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def sync_files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(descriptor)

    if call == "fchmod":
        monkeypatch.setattr(os, "fchmod", refused)
    else:
        monkeypatch.setattr(os, "fsync", sync_files_only)
    assert files.create_private(tmp_path / "key", b"key")
    files.write_atomic(tmp_path / "key", b"new")
    assert (tmp_path / "key").read_bytes() == b"new"


def test_a_private_file_is_created_once(tmp_path: Path) -> None:
    check_created_once(tmp_path / "deep" / "key")


def test_the_directories_of_a_private_file_are_private_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files.create_private(tmp_path / "deep" / "deeper" / "key", b"key")
        files.make_private_directory(tmp_path / "deep" / "certs" / "more")
    finally:
        os.umask(before)
    made = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}
    (tmp_path / "deep").chmod(0o755)
    files.create_private(tmp_path / "deep" / "other", b"key")
    assert stat.S_IMODE((tmp_path / "deep").stat().st_mode) == 0o755


def test_a_file_that_can_be_created_is_not_created_by_the_check(tmp_path: Path) -> None:
    files.check_creatable(tmp_path / "deep" / "deeper" / "key")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "reason"), [(0, "Permission denied"), (os.ST_RDONLY, "Read-only file system")]
)
def test_a_folder_that_takes_no_file_is_reported_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int, reason: str
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=flags))
    with pytest.raises(OSError, match=reason):
        files.check_creatable(tmp_path / "deep" / "key")


def test_a_file_in_the_place_of_a_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        files.check_creatable(tmp_path / "file" / "deep" / "key")
