"""Stops one thread of a child process, as a defect in it would."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
# Also threads that are not separate processes.
ANY_THREAD = 0x40000000


def threads_in(pid: int, place: str) -> list[int]:
    """Return the threads of a process that wait at this place in the kernel, main thread excepted.

    place: the beginning of the name in /proc/PID/task/TID/wchan.
    """
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if int(task.name) != pid and (task / "wchan").read_text().startswith(place):
                found.append(int(task.name))
    return sorted(found)


@contextmanager
def frozen(thread: int) -> Iterator[None]:
    """Stop a thread while the block lasts. Raises OSError where the system forbids it."""
    _trace(SEIZE, thread)
    try:
        _trace(INTERRUPT, thread)
        os.waitpid(thread, ANY_THREAD)
        yield
    finally:
        _trace(DETACH, thread)


def _trace(request: int, thread: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    library.ptrace.argtypes = [ctypes.c_long] * 4
    library.ptrace.restype = ctypes.c_long
    if library.ptrace(request, thread, 0, 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
