"""The highest rate of packets that one core of a relay carries with a short delay, by search.

The load sends by schedule, so the delay counts from the time at which a packet was due, and a relay
that is too slow cannot slow the load down. A rate is carried when 99 % of the packets arrive within
`DELAY_MS` and no more than `LOSS` of them are lost. A rate that is not carried is tried once more,
because other work on the machine can delay packets, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.lab import Lab, Measurement
from bench.relays import Relay, RelayError

DELAY_MS = 1.0
LOSS = 0.001
# Senders' kernels hand packets over in runs; one packet at a time would measure the load's timer.
IN_A_ROW = 16
# The first search covers all relays; later ones begin around the rate that was found before.
LOWEST, HIGHEST, STEPS = 20_000.0, 1_600_000.0, 6
AROUND, STEPS_AROUND = 1.25, 3
TRIES = 2
PROBE_S, PROBE_WARM_UP_S = 0.3, 0.1
# A core that is busy for this share of the time is full.
FULL = 0.95


class NoRateError(RelayError):
    """Not even the lowest rate is carried."""


Probe = Callable[[float], Measurement]
"""Offers a rate in packets per second and returns the result."""


@dataclass(slots=True)
class Search:
    """One search: the result at the highest carried rate, and at the lowest one above it."""

    carried: Measurement | None = None
    not_carried: Measurement | None = None
    probes: list[dict[str, Any]] = field(default_factory=list)

    def run(self, probe: Probe, found_before: float | None = None) -> None:
        """Search, first around `found_before`. Raises NoRateError when no rate is carried."""
        if found_before:
            self._bisect(probe, found_before / AROUND, found_before * AROUND, STEPS_AROUND)
        if self.carried is None:
            self._bisect(probe, LOWEST, HIGHEST, STEPS)
        below = [LOWEST / part for part in (1, 2, 4, 8)]
        if self.carried is None and not any(self._is_carried(probe, rate) for rate in below):
            raise NoRateError(
                f"{below[-1]:,.0f} packets/s already have a p99 above {DELAY_MS:.0f} ms "
                f"or lose more than {LOSS:.1%}"
            )

    def _bisect(self, probe: Probe, low: float, high: float, steps: int) -> None:
        for _ in range(steps):
            rate = math.sqrt(low * high)
            if self._is_carried(probe, rate):
                low = rate
            else:
                high = rate

    def _is_carried(self, probe: Probe, rate: float) -> bool:
        result: Measurement = {}
        for _ in range(TRIES):
            result = probe(rate)
            is_carried = _is_within_limits(result)
            self.probes.append(_short(rate, result) | {"is_carried": is_carried})
            if is_carried:
                self.carried = result
                return True
        self.not_carried = result
        return False

    @property
    def packets_per_s(self) -> float:
        """The highest carried rate, as delivered."""
        assert self.carried is not None
        return float(self.carried["packets_per_s"])

    @property
    def limit(self) -> str:
        """What prevented a higher rate: the full core of the relay, that of the load, or neither."""
        if self.not_carried is None:
            return "not found"
        if self.not_carried["relay"]["cpu_share"] >= FULL:
            return "relay"
        return "load" if self.not_carried["load_cpu_share"] >= FULL else "delay"


def searched(lab: Lab, relay: Relay, load: str, found_before: float | None = None) -> Search:
    """Search on a fresh relay. Raises NoRateError when it carries no rate."""
    search = Search()
    with lab.running(relay, load) as target:

        def probe(rate: float) -> Measurement:
            flags = ("--rate", f"{rate:.0f}", "--in-a-row", str(IN_A_ROW))
            times = ("--duration", str(PROBE_S), "--warmup", str(PROBE_WARM_UP_S))
            return lab.load(target, relay, load, *flags, *times)

        try:
            search.run(probe, found_before)
        except NoRateError as error:
            raise NoRateError(f"{relay.name}, {load}: {error}") from None
    return search


def capacity_of(relay: Relay, load: str, searches: Sequence[Search]) -> dict[str, Any]:
    """Return the searches of a relay as plain values, one of each list per round."""
    carried = [search.carried or {} for search in searches]
    return {
        "load": load,
        "relay_name": relay.name,
        "packets_per_s": [result["packets_per_s"] for result in carried],
        "gbit_per_s": [result["mbit_per_s"] / 1e3 for result in carried],
        "relay_cpu_share": [result["relay"]["cpu_share"] for result in carried],
        "load_cpu_share": [result["load_cpu_share"] for result in carried],
        "limit": [search.limit for search in searches],
        "probes": [search.probes for search in searches],
    }


def _is_within_limits(result: Measurement) -> bool:
    p99_us, loss = float(result["latency"]["p99_us"]), float(result["loss"])
    return p99_us <= DELAY_MS * 1e3 and loss <= LOSS


def _short(rate: float, result: Measurement) -> dict[str, Any]:
    """Return the numbers of a probe that decide and explain its verdict."""
    return {
        "rate": round(rate),
        "packets_per_s": round(result["packets_per_s"]),
        "p99_us": round(result["latency"]["p99_us"], 1),
        "loss": round(result["loss"], 5),
        "relay_cpu_share": round(result["relay"]["cpu_share"], 3),
        "load_cpu_share": round(result["load_cpu_share"], 3),
        "foreign_share": round(result["foreign_share"], 3),
    }
