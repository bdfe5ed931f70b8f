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
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft_of(path)
    try:
        _write_new(draft, Content(data))
        # Unlike a rename, a link fails if the name exists, so it never replaces another key.
        os.link(draft, path)
    except FileExistsError:
        return False
    finally:
        _remove(draft)
    _sync_directory(path.parent)
    return True


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.urandom(8).hex()}")


def _write_new(path: Path, content: Content) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
    with open(descriptor, "wb") as file:
        if sys.platform != "win32":  # where files have no such modes
            os.fchmod(descriptor, content.mode)  # independent of the umask
        file.write(content.data)
        file.flush()
        os.fsync(descriptor)


def _remove(draft: Path) -> None:
    with contextlib.suppress(OSError):  # report the first error
        draft.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    """Sync a directory, so that new names survive a power cut; Windows cannot."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
    try:
        os.fsync(descriptor)
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
