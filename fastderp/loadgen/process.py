"""The relay's use of the machine, from outside. Any thread."""

from __future__ import annotations

from pathlib import Path

from fastderp.loadgen.engine import process_cpu_ns


class Process:
    """A running process, by id. Its methods raise ProcessLookupError once it has ended."""

    def __init__(self, pid: int) -> None:
        """Look the process up."""
        self.pid = pid
        process_cpu_ns(pid)

    def cpu_s(self) -> float:
        """Return the CPU seconds, user and system, of all its threads so far."""
        return process_cpu_ns(self.pid) / 1e9

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
