"""Reading the small files of an operator: whatever the path leads to, it costs bounded time and memory.

Any thread.
"""

from __future__ import annotations

import errno
import os
import stat

LIMIT_BYTES = 1 << 20  # keys, members and settings are a few KiB; anything larger is the wrong file


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return what is in a regular file of at most 1 MiB. Raises OSError, whose strerror says what is wrong with any other.

    A pipe would keep its reader waiting, and a device may have no end.
    """
    # What is opened is not known before: a pipe without a writer must not hold us up.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        content = file.read(LIMIT_BYTES + 1)
    if len(content) > LIMIT_BYTES:
        raise OSError(errno.EFBIG, f"larger than {LIMIT_BYTES >> 20} MiB", str(path))
    return content
