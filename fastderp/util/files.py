"""Reads and writes the small files of an operator: keys, lists, settings, certificates.

Reading takes bounded time and memory for any kind of file. Writes are atomic: a reader, or a start
after a crash, finds either the previous content or the new one. Any thread.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

# Not every system has every flag. Windows opens files as text without O_BINARY.
_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)

# What file systems answer to a call that they do not have.
_UNSUPPORTED = (errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)

LIMIT_BYTES = 1 << 20  # keys, members and settings take a few KiB; a larger file is the wrong file


class Content(NamedTuple):
    """The data and the mode of a file to write."""

    data: bytes
    mode: int = 0o600


def read(path: str | os.PathLike[str], *, limit_bytes: int = LIMIT_BYTES) -> bytes:
    """Return the content of a regular file without the byte-order mark that some editors prepend.

    Raises OSError with the reason in strerror, also for a file that is not regular (a pipe would
    block, a device may have no end) or is larger than `limit_bytes`.
    """
    # The type of the file is checked after the open, which must not block on a pipe without a
    # writer.
    descriptor = os.open(path, os.O_RDONLY | _NONBLOCK | _FLAGS)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"larger than {limit_bytes >> 20} MiB", str(path))
    return content.removeprefix(codecs.BOM_UTF8)


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write or replace a file and sync it to disk. Raises OSError and then changes nothing."""
    write_all_atomic({path: Content(data, mode)})


def write_all_atomic(contents: Mapping[Path, Content]) -> None:
    """Write files that belong together: all are on disk before the first is renamed.

    A full disk therefore changes none of them. They are renamed in the given order; a crash in
    between leaves the first ones. Raises OSError.
    """
    drafts: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            drafts[path] = _draft_of(path)
            _write_new(drafts[path], content)
        for path, draft in drafts.items():
            draft.replace(path)
    except BaseException:
        for draft in drafts.values():
            _remove(draft)
        raise
    for directory in {path.parent for path in contents}:
        _sync_directory(directory)


def create_private(path: Path, data: bytes) -> bool:
    """Create a file that only its owner can read, and its directories; False when it exists.

    Of several processes that create it at the same moment one succeeds. Raises OSError.
    """
    make_private_directory(path.parent)
    draft = _draft_of(path)
    try:
        _write_new(draft, Content(data))
        _give_new_name(draft, path, data)
    except FileExistsError:
        return False
    finally:
        _remove(draft)
    _sync_directory(path.parent)
    return True


def make_private_directory(path: Path) -> None:
    """Create a directory, and its parents, that only their owner can use; keep those that exist.

    Raises OSError.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        # `parents=True` would create the parents for every user that the umask allows.
        make_private_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def _give_new_name(draft: Path, path: Path, data: bytes) -> None:
    """Give a complete file its name. Raises FileExistsError if another file has the name."""
    try:
        # Unlike a rename, a link fails if the name exists, so it never replaces another key.
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:
        # Many file systems have no links, such as SMB, FUSE and FAT. Only a crash between the two
        # calls of this way leaves an incomplete file.
        _write_new(path, Content(data))


def check_creatable(path: Path) -> None:
    """Raise OSError with the reason if a file and its directories cannot be created.

    Creates nothing. The reasons of special file systems and a full disk show only at the creation.
    """
    directory = path.parent
    while not os.path.lexists(directory):
        directory = directory.parent
    if not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
    if not os.access(directory, os.W_OK | os.X_OK):
        number = errno.EROFS if _is_read_only(directory) else errno.EACCES
        raise OSError(number, os.strerror(number), str(directory))


def _is_read_only(directory: Path) -> bool:
    return sys.platform != "win32" and bool(os.statvfs(directory).f_flag & os.ST_RDONLY)


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.urandom(8).hex()}")


def _write_new(path: Path, content: Content) -> None:
    """Write a file that does not exist; leave no part of it after an error."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
    try:
        with open(descriptor, "wb") as file:
            if sys.platform != "win32":  # where files have no such modes
                _set_mode(descriptor, content.mode)  # independent of the umask
            file.write(content.data)
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        _remove(path)
        raise


def _set_mode(descriptor: int, mode: int) -> None:
    """Set the mode of a new file, unless its file system has one mode for all (FAT)."""
    try:
        os.fchmod(descriptor, mode)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _remove(draft: Path) -> None:
    with contextlib.suppress(OSError):  # report the first error
        draft.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    """Sync a directory, so that new names survive a power cut, where the system can do that.

    Windows and some file systems cannot, nor a user that may not list the directory.
    """
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


Fingerprint = tuple[int, ...]
"""The properties that change with a file."""


def fingerprint(path: Path) -> Fingerprint:
    """Return what changes with the file at `path`; () when it is inaccessible."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
