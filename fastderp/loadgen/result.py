"""The result of one run of a load, and its environment. Plain values; any thread may use them."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fastderp


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of the time from sending (by schedule: the due time) to arrival, microseconds."""

    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float


@dataclass(frozen=True, slots=True)
class RelayUse:
    """CPU time and resident memory (KiB) of the relay's processes.

    `idle` follows `connected` after a time without load. `settled` follows `after`: memory is back
    at `idle`, or the time limit for that has passed.
    """

    cpu_us_per_packet: float | None  # None when nothing was delivered
    cpu_share: float  # of one core, while measuring
    cpu_us_per_login: float
    rss_before_kib: int
    rss_connected_kib: int
    rss_idle_kib: int
    rss_after_kib: int
    rss_settled_kib: int
    settle_s: float


@dataclass(frozen=True, slots=True)
class Result:
    """One measured run. `loss` is the share of sent packets that never arrived, 0 to 1."""

    url: str
    scenario: dict[str, Any]
    n_clients: int  # idle ones included
    cipher: str  # "" over plain TCP
    seconds: float
    sent: int
    delivered: int
    lost: int
    corrupt: int
    unexpected: int
    connections_lost: int
    packets_per_s: float
    mbit_per_s: float
    loss: float
    fairness: float
    latency: Latency
    logins_per_s: float
    storm_logins_per_s: float  # 0 without a storm
    load_cpu_share: float  # of one core, of the thread that sends and checks packets
    relay: RelayUse | None  # None unless the relay's process id was given

    def to_json(self) -> dict[str, Any]:
        """Return nested plain values."""
        return asdict(self)


def fairness(shares: Sequence[float]) -> float:
    """Return Jain's index of the shares: 1 when all are equal, 1/n when one of n has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def environment(command: Sequence[str]) -> dict[str, Any]:
    """Return the versions, machine and command of a result; every kept result has them."""
    return {
        "command": list(command),
        "fastderp": fastderp.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
