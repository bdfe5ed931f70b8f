"""The share of foreign work on the cores of a measurement."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path

from fastderp.loadgen.process import Processes

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Watch:
    """Watches `cores` while `relay` and our child processes work on them."""

    def __init__(self, cores: Sequence[int], relay: Processes) -> None:
        self._cores = cores
        self._relay = relay
        self._started = time.monotonic()
        self._before = self._foreign_s()

    def foreign_share(self) -> float:
        """Return the share of the cores' time of other work: 0 is a quiet machine."""
        passed = (time.monotonic() - self._started) * len(self._cores)
        return max(0.0, self._foreign_s() - self._before) / passed

    def _foreign_s(self) -> float:
        """Return busy seconds without the relay's and those of ended children."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        ours = self._relay.cpu_s() + children.ru_utime + children.ru_stime
        return busy_s(self._cores) - ours


def busy_s(cores: Sequence[int]) -> float:
    """Return the cores' busy seconds since the machine started."""
    wanted = {f"cpu{core}" for core in cores}
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in wanted:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks * TICK_S
