"""What a load looks like: who sends to whom, how much, and when."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fastderp.protocol import MAX_PACKET_SIZE

MIN_SIZE: Final = 32
"""A packet's number, time and check take this much."""

Flow = tuple[int, int]
"""(source, target), both indexes of clients."""


class Shape(StrEnum):
    """Who sends to whom among the clients."""

    PAIRS = "pairs"  # 0 → 1, 2 → 3, …
    FAN_IN = "fan-in"  # everybody → the last
    FAN_OUT = "fan-out"  # the first → everybody
    ALL_TO_ALL = "all-to-all"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load. `n` counts pairs for PAIRS, senders for FAN_IN, receivers for FAN_OUT, else clients.

    `window` is the number of packets under way per flow, released by arrivals; `rate` the
    packets per second of all flows together, by schedule; neither: senders never wait.
    `sizes` are (payload bytes, weight). `idle` clients are logged in besides and stay silent.
    """

    name: str
    summary: str
    shape: Shape = Shape.PAIRS
    n: int = 10
    sizes: tuple[tuple[int, float], ...] = ((1400, 1.0),)
    window: int = 16
    rate: float = 0.0
    idle: int = 0
    joined_records: bool = False

    def __post_init__(self) -> None:
        if self.n < (2 if self.shape is Shape.ALL_TO_ALL else 1) or self.idle < 0:
            raise ValueError(f"{self.name}: too few clients")
        if self.window < 0 or self.rate < 0 or (self.window and self.rate):
            raise ValueError(f"{self.name}: a load has either a window or a rate, not below 0")
        for size, weight in self.sizes:
            if not MIN_SIZE <= size <= MAX_PACKET_SIZE:
                raise ValueError(
                    f"packets of {size} bytes: they must have {MIN_SIZE} to {MAX_PACKET_SIZE}"
                )
            if weight <= 0:
                raise ValueError(f"the weight of size {size} must be positive, not {weight}")

    @property
    def n_clients(self) -> int:
        """How many clients take part, without the idle ones."""
        match self.shape:
            case Shape.PAIRS:
                return 2 * self.n
            case Shape.FAN_IN | Shape.FAN_OUT:
                return self.n + 1
            case Shape.ALL_TO_ALL:
                return self.n

    def flows(self) -> list[Flow]:
        """Return every (source, target) in a fixed order."""
        match self.shape:
            case Shape.PAIRS:
                return [(2 * i, 2 * i + 1) for i in range(self.n)]
            case Shape.FAN_IN:
                return [(i, self.n) for i in range(self.n)]
            case Shape.FAN_OUT:
                return [(0, i + 1) for i in range(self.n)]
            case Shape.ALL_TO_ALL:
                return [(i, j) for i in range(self.n) for j in range(self.n) if i != j]


def parse_sizes(text: str) -> tuple[tuple[int, float], ...]:
    """Read `1400` or a mix such as `100:3,1400:1` (bytes:weight). Raises ValueError."""
    sizes = []
    for part in text.split(","):
        size, _, weight = part.partition(":")
        try:
            sizes.append((int(size), float(weight or 1)))
        except ValueError:
            raise ValueError(f"{part!r} is not a size in bytes or bytes:weight") from None
    return tuple(sizes)


_ALL = (
    Scenario("pairs-10", "10 pairs, 1400 bytes, 16 in flight each"),
    Scenario("pairs-50", "50 pairs, 1400 bytes, 16 in flight each", n=50),
    Scenario("small", "10 pairs, 100 bytes, 16 in flight each", sizes=((100, 1.0),)),
    Scenario("latency", "1 pair, 1400 bytes, one packet in flight", n=1, window=1),
    Scenario("never-wait", "10 pairs, 1400 bytes, senders never wait", window=0),
    Scenario("fan-in", "100 senders to one receiver, 1400 bytes, one in flight each",
             shape=Shape.FAN_IN, n=100, window=1),
    Scenario("fan-out", "one sender to 100 receivers, 1400 bytes, one in flight each",
             shape=Shape.FAN_OUT, n=100, window=1),
    Scenario("all-to-all", "50 clients, each to all others, 1400 bytes, one in flight per pair",
             shape=Shape.ALL_TO_ALL, n=50, window=1),
    Scenario("mixed", "10 pairs, sizes of ordinary traffic, 16 in flight each",
             sizes=((64, 4.0), (576, 2.0), (1400, 4.0))),
    Scenario("idle-5000", "5,000 idle clients, one pair with one packet in flight",
             n=1, window=1, idle=5000),
    Scenario("idle-15000", "15,000 idle clients, one pair with one packet in flight",
             n=1, window=1, idle=15000),
    Scenario("crowd", "1,000 pairs, 1400 bytes, 16 in flight each, beside 10,000 idle clients",
             n=1000, idle=10000),
)
SCENARIOS: Final = {scenario.name: scenario for scenario in _ALL}
