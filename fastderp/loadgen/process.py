"""CPU time and memory of the relay's processes, read from outside. Any thread may use it."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterable
from pathlib import Path

_LIBC = ctypes.CDLL(None)


class Processes:
    """Running processes, by id. Methods raise ProcessLookupError when a process has ended."""

    def __init__(self, pids: Iterable[int]) -> None:
        """Find the processes; raises ProcessLookupError when one does not exist."""
        self._each = [Process(pid) for pid in pids]

    def cpu_s(self) -> float:
        """Return the CPU seconds, user and system, of all their threads so far."""
        return sum(process.cpu_s() for process in self._each)

    def rss_kib(self) -> int:
        """Return the sum of their resident memory in KiB; shared pages count for each process."""
        return sum(process.rss_kib() for process in self._each)


class Process:
    """A running process, by id. Methods raise ProcessLookupError when it has ended."""

    def __init__(self, pid: int) -> None:
        """Find the process; raises ProcessLookupError when it does not exist."""
        self.pid = pid
        # This clock counts nanoseconds; /proc/PID/stat counts ticks of 10 ms. The time module offers
        # it for our own threads only.
        clock = ctypes.c_int()
        # 0 is this process. ctypes takes no number beyond a C int.
        if not 0 < pid < 1 << 31 or _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock)) != 0:
            raise ProcessLookupError(f"no process {pid}")
        self._clock = clock.value

    def cpu_s(self) -> float:
        """Return the CPU seconds, user and system, of all its threads so far."""
        try:
            return time.clock_gettime(self._clock)
        except OSError:
            raise ProcessLookupError(f"process {self.pid} has ended") from None

    def rss_kib(self) -> int:
        """Return the resident memory in KiB."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except FileNotFoundError:
            raise ProcessLookupError(f"no process {self.pid}") from None
        for line in status.splitlines():
            name, _, value = line.partition(":")
            if name == "VmRSS":
                return int(value.split()[0])
        raise ProcessLookupError(f"process {self.pid} has ended")
