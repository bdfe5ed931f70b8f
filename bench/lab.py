"""One measurement: a fresh relay on its core, the load on another, the result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine import Watch
from bench.relays import Relay, RelayError, Running, running, running_region
from fastderp.loadgen.process import Processes

BENCH = str(Path(sys.executable).with_name("fastderp-bench"))
# one suite for all relays, as their own choices differ in cost
SUITE = "TLS_AES_128_GCM_SHA256"
TLS = "tls/"
"""Stands in front of a scenario's name when it is run over TLS 1.3."""

# Above this share of foreign work a measurement depends more on the machine than on the relay.
QUIET = 0.05

Measurement = dict[str, Any]
"""A `Result` of fastderp.loadgen as plain values, and the share of foreign work meanwhile."""


@dataclass(frozen=True, slots=True)
class Lab:
    """The cores of relay and load, and the duration of a measurement."""

    relay_core: int = 0
    load_core: int = 1
    duration_s: float = 3.0

    @property
    def two_cores(self) -> frozenset[int]:
        """Return the relay's core and another one, which the load does not use if possible."""
        cores = os.sched_getaffinity(0)
        spare = sorted(cores - {self.relay_core, self.load_core}) or [self.load_core]
        return frozenset({self.relay_core, spare[0]})

    def measure(
        self, relay: Relay, load: str, *flags: str, cores: Collection[int] = ()
    ) -> Measurement:
        """Put a load (a scenario's name, with the prefix tls/ over TLS) on a fresh `relay`.

        `flags` are for fastderp-bench, `cores` are the relay's if not its usual one. Raises
        RelayError when relay or load fail.
        """
        with self.running(relay, load, cores) as target:
            return self.load(target, relay, load, *flags)

    @contextmanager
    def running(
        self, relay: Relay, load: str = "", cores: Collection[int] = ()
    ) -> Iterator[Running]:
        """Run `relay` for `load`, over TLS or plain."""
        own = cores or {self.relay_core}
        with running(relay, cores=own, tls=load.startswith(TLS)) as target:
            yield target

    @contextmanager
    def region(self, relay: Relay, load: str) -> Iterator[Running]:
        """Run two linked relays on one core; clients that only receive log in at the second one."""
        with running_region(relay, cores={self.relay_core}, tls=load.startswith(TLS)) as target:
            yield target

    def load(self, target: Running, relay: Relay, load: str, *flags: str) -> Measurement:
        """Put a load on a running relay."""
        command = [
            BENCH,
            target.url,
            "--scenario",
            load.removeprefix(TLS),
            *(word for pid in target.pids for word in ("--pid", str(pid))),
            *(["--to", target.neighbour.url] if target.neighbour else []),
            "--cpu",
            str(self.load_core),
            "--duration",
            str(self.duration_s),
            "--json",
            "-",
            *(["--insecure", "--suite", SUITE] if load.startswith(TLS) else []),
            *relay.bench_flags,
            *flags,
        ]
        watch = Watch((self.relay_core, self.load_core), Processes(target.pids))
        done = subprocess.run(command, capture_output=True, text=True)
        foreign_share = watch.foreign_share()
        if done.returncode != 0:
            raise RelayError(f"{relay.name}, {load}: {done.stderr.strip() or done.stdout.strip()}")
        result: Measurement = json.loads(done.stdout)["result"]
        return result | {"relay_name": relay.name, "foreign_share": foreign_share}


def cost(result: Measurement) -> float:
    """Return CPU µs of the relay per delivered packet; infinite when none was delivered."""
    value = result["relay"]["cpu_us_per_packet"]
    return float("inf") if value is None else float(value)


def cost_per_login(result: Measurement) -> float:
    """Return CPU µs of the relay per login."""
    return float(result["relay"]["cpu_us_per_login"])
