"""Memory, time, descriptors and version of this process as metrics (PROTOCOL §14)."""

from __future__ import annotations

import os
import resource
import time

import fastderp
from fastderp.server.observe.values import Value
from fastderp.tls import library
from fastderp.util.shortage import descriptor_limits


class Process:
    """Memory, time, descriptors and version of this process; create it at the relay's start."""

    def __init__(self, binary: str = "fastderp-relay") -> None:
        self.binary = binary
        self.started_unix: float = time.time()
        self._started = time.monotonic()
        self._resident_at_start = _statm()[1]
        self._boot_unix = _boot_unix()

    @property
    def uptime_s(self) -> int:
        """Whole seconds since the start."""
        return int(time.monotonic() - self._started)

    def metrics(self) -> dict[str, Value]:
        """Return the process's metrics under the names of the table."""
        virtual_bytes, resident_bytes = _statm()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        n_descriptors = _entries("/proc/self/fd")
        return {
            "derp_current_file_descriptors": n_descriptors,
            "derp_memstats_sys0": self._resident_at_start,
            "fastderp_crypto_info": {library.labels(): 1},
            **({"node_boot_time_seconds": self._boot_unix} if self._boot_unix else {}),
            "process_cpu_seconds_total": round(usage.ru_utime + usage.ru_stime, 3),
            "process_max_fds": descriptor_limits()[0],
            "process_open_fds": n_descriptors,
            "process_resident_memory_bytes": resident_bytes,
            "process_start_time_seconds": round(self.started_unix, 3),
            "process_start_unix_time": int(self.started_unix),
            "process_threads": _entries("/proc/self/task"),
            "process_virtual_memory_bytes": virtual_bytes,
            "uptime_sec": self.uptime_s,
            "version": {(fastderp.__version__, self.binary): 1},
        }


def _statm() -> tuple[int, int]:
    """Return virtual and resident memory in bytes; zeros where there is no /proc."""
    try:
        with open("/proc/self/statm", "rb") as file:
            virtual, resident = file.read().split()[:2]
    except OSError:
        return 0, 0
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return int(virtual) * page_bytes, int(resident) * page_bytes


def _boot_unix() -> int:
    """Return the start time of the machine; 0 if the system does not report it."""
    try:
        with open("/proc/stat", "rb") as file:
            times = [int(line.split()[1]) for line in file if line.startswith(b"btime ")]
    except OSError:
        return 0
    return times[0] if times else 0


def _entries(directory: str) -> int:
    try:
        return len(os.listdir(directory))
    except OSError:
        return 0
