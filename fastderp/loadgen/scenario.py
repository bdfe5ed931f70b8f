"""Loads: which clients send to which, how much, and when. Plain values; any thread may use them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from fastderp.util import files
from fastderp.wire.protocol import MAX_PACKET_SIZE

MIN_SIZE: Final = 32
"""Bytes for a packet's number, time and checksum."""

COUNT_MAX: Final = 1_000_000
"""Limit for each count of a scenario: more clients than one machine has descriptors for."""
RATE_MAX: Final = 1e9
"""Limit for packets or logins per second: the schedule counts nanoseconds."""
FLOWS_MAX: Final = 10_000_000
"""Limit for the flows of all clients, which the load lists."""

Flow = tuple[int, int]
"""(source, target), two indexes of clients."""


class Shape(StrEnum):
    """The graph of senders and receivers."""

    PAIRS = "pairs"  # 0 → 1, 2 → 3, …
    FAN_IN = "fan-in"  # all others → the last
    FAN_OUT = "fan-out"  # the first → all others
    ALL_TO_ALL = "all-to-all"
    RING = "ring"  # 0 → 1 → 2 → … → 0: once through every session in each direction


# logins under way, as of a crowd of clients that return
LOGINS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load: how much which clients send to which others.

    Args:
        name, summary: of the scenario, for the user.
        shape: which clients send to which.
        n: pairs of PAIRS, senders of FAN_IN, receivers of FAN_OUT, else clients.
        sizes: (payload bytes, weight) of the packets.
        window: packets in flight per flow; an arrival releases the next.
        rate: packets per second of all flows together, by schedule. With neither a window nor a
            rate senders never wait.
        idle: further clients that log in and stay silent.
        in_a_row: packets that a client with several flows sends of one flow before it changes to
            the next; a schedule releases that many at once.
        slow: the last receivers, which read `slow_kib_per_s` each; the latency omits them.
        storm: further clients that log in during the measurement, `storm_rate` per second, or as
            fast as possible when that is 0.
        at_once: maximum of logins under way before the measurement.
        fast_start: begin logins as PROTOCOL §3 says, over TLS.
        joined_records: fill TLS records with packets.
        busy_wait: poll for packets instead of sleeping, which real clients do not do.
    """

    name: str
    summary: str
    shape: Shape = Shape.PAIRS
    n: int = 10
    sizes: tuple[tuple[int, float], ...] = ((1400, 1.0),)
    window: int = 16
    rate: float = 0.0
    idle: int = 0
    in_a_row: int = 1
    slow: int = 0
    slow_kib_per_s: int = 64
    storm: int = 0
    storm_rate: float = 0.0
    at_once: int = LOGINS_AT_ONCE
    fast_start: bool = True
    joined_records: bool = False
    busy_wait: bool = False

    def __post_init__(self) -> None:
        least = 2 if self.shape in (Shape.ALL_TO_ALL, Shape.RING) else 1
        if self.n < least or self.idle < 0 or self.storm < 0:
            raise ValueError(
                f"{self.name}: n must be {least} or more, idle and storm must not be negative"
            )
        for name in ("at_once", "in_a_row"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{self.name}: {name} must be 1 or more, but is {getattr(self, name)}"
                )
        for name in ("n", "idle", "storm", "at_once", "in_a_row", "window", "slow_kib_per_s"):
            if getattr(self, name) > COUNT_MAX:
                raise ValueError(
                    f"{self.name}: {name} must be at most {COUNT_MAX}, but is {getattr(self, name)}"
                )
        if self.shape is Shape.ALL_TO_ALL and self.n * (self.n - 1) > FLOWS_MAX:
            raise ValueError(f"{self.name}: {self.n} clients have more than {FLOWS_MAX} flows")
        for name in ("rate", "storm_rate"):
            if not 0 <= getattr(self, name) <= RATE_MAX:
                raise ValueError(
                    f"{self.name}: {name} must be 0 to {RATE_MAX:g}, but is {getattr(self, name)}"
                )
        n_receivers = len(self.receivers()) if self.slow else 0
        if self.slow_kib_per_s < 1 or not 0 <= self.slow <= n_receivers:
            raise ValueError(
                f"{self.name}: slow must be between 0 and {n_receivers} receivers,"
                " slow_kib_per_s 1 or more"
            )
        if self.window < 0 or (self.window and self.rate):
            raise ValueError(
                f"{self.name}: window and rate must not be negative, and one of them must be 0"
            )
        for size, weight in self.sizes:
            if not MIN_SIZE <= size <= MAX_PACKET_SIZE:
                raise ValueError(
                    f"a packet size must be {MIN_SIZE} to {MAX_PACKET_SIZE} bytes, but is {size}"
                )
            if not 0 < weight < float("inf"):
                raise ValueError(f"the weight of size {size} must be positive, not {weight}")

    @property
    def n_clients(self) -> int:
        """The number of clients without the idle ones."""
        match self.shape:
            case Shape.PAIRS:
                return 2 * self.n
            case Shape.FAN_IN | Shape.FAN_OUT:
                return self.n + 1
            case Shape.ALL_TO_ALL | Shape.RING:
                return self.n

    def flows(self) -> list[Flow]:
        """Return all flows in a fixed order."""
        match self.shape:
            case Shape.PAIRS:
                return [(2 * i, 2 * i + 1) for i in range(self.n)]
            case Shape.FAN_IN:
                return [(i, self.n) for i in range(self.n)]
            case Shape.FAN_OUT:
                return [(0, i + 1) for i in range(self.n)]
            case Shape.ALL_TO_ALL:
                return [(i, j) for i in range(self.n) for j in range(self.n) if i != j]
            case Shape.RING:
                return [(i, (i + 1) % self.n) for i in range(self.n)]

    def receivers(self) -> list[int]:
        """Return the clients that receive packets, in ascending order."""
        return sorted({target for _, target in self.flows()})

    def slow_readers(self) -> list[int]:
        """Return the clients that read slowly."""
        return self.receivers()[-self.slow :] if self.slow else []


def parse_sizes(text: str) -> tuple[tuple[int, float], ...]:
    """Parse `1400` or a mix such as `100:3,1400:1` (bytes:weight). Raises ValueError."""
    sizes = []
    for part in text.split(","):
        size, _, weight = part.partition(":")
        try:
            sizes.append((int(size), float(weight or 1)))
        except ValueError:
            raise ValueError(f"{part!r} is not a size in bytes or bytes:weight") from None
    return tuple(sizes)


def read_scenario(path: Path) -> Scenario:
    """Read a TOML file with the fields of a Scenario; sizes are text (`100:3,1400:1`).

    Without `rate` the window is 16 unless given; with `rate = 0` and `window = 0` senders never
    wait. Raises ValueError, naming the file and the wrong field or the cause.
    """
    try:
        values = tomllib.loads(files.read(path).decode())
        return _scenario_of(values, path.stem)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text in UTF-8") from None
    except RecursionError:
        raise ValueError(f"{path}: too many nested arrays or tables") from None
    except (ValueError, TypeError) as error:  # TOMLDecodeError is a ValueError
        raise ValueError(f"{path}: {error}") from None


def _scenario_of(values: dict[str, Any], name: str) -> Scenario:
    # Annotations are text in this module; the type of every Scenario field is one of these.
    kinds: dict[str, tuple[type, ...]] = {
        "str": (str,),
        "int": (int,),
        "float": (int, float),
        "bool": (bool,),
        "Shape": (str,),
    }
    known = {field.name: str(field.type) for field in fields(Scenario)} | {"sizes": "str"}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{key}: unknown field; the fields are {', '.join(known)}")
        kind = kinds[known[key]]
        if not isinstance(value, kind) or (isinstance(value, bool) and bool not in kind):
            raise ValueError(f"{key}: {value!r} has the wrong type; it must be {known[key]}")
    chosen: dict[str, Any] = {"name": name, "summary": ""} | values
    if "sizes" in chosen:
        chosen["sizes"] = parse_sizes(chosen["sizes"])
    if "shape" in chosen:
        chosen["shape"] = Shape(chosen["shape"])
    if chosen.get("rate") and "window" not in chosen:
        chosen["window"] = 0
    return Scenario(**chosen)


_ALL = (
    Scenario("pairs-10", "10 pairs, 1400 bytes, 16 in flight each"),
    Scenario("pairs-50", "50 pairs, 1400 bytes, 16 in flight each", n=50),
    Scenario("small", "10 pairs, 100 bytes, 16 in flight each", sizes=((100, 1.0),)),
    Scenario("latency", "1 pair, 1400 bytes, one packet in flight", n=1, window=1),
    Scenario("never-wait", "10 pairs, 1400 bytes, senders never wait", window=0),
    Scenario(
        "never-wait-16-to-1",
        "16 senders that never wait to one receiver, 1400 bytes",
        shape=Shape.FAN_IN,
        n=16,
        window=0,
    ),
    # Larger windows exceed the queues of relays and would measure their drops. With this window,
    # relays lose up to one percent on an idle machine.
    Scenario(
        "fan-in",
        "100 senders to one receiver, 1400 bytes, 8 in flight each",
        shape=Shape.FAN_IN,
        n=100,
        window=8,
    ),
    # The kernels of real senders deliver packets for one peer in runs.
    Scenario(
        "fan-out",
        "one sender to 100 receivers, 1400 bytes, 16 in flight each, 8 in a row",
        shape=Shape.FAN_OUT,
        n=100,
        window=16,
        in_a_row=8,
    ),
    Scenario(
        "all-to-all",
        "50 clients, each to all others, 1400 bytes, one in flight per pair",
        shape=Shape.ALL_TO_ALL,
        n=50,
        window=1,
    ),
    Scenario(
        "mixed",
        "10 pairs, sizes of ordinary traffic, 16 in flight each",
        sizes=((64, 4.0), (576, 2.0), (1400, 4.0)),
    ),
    Scenario(
        "slow-readers",
        "20 pairs, 1400 bytes, 40,000 packets/s, 5 of them read 64 KiB/s",
        n=20,
        window=0,
        rate=40_000,
        slow=5,
    ),
    Scenario(
        "memory-5000",
        "5,000 clients, idle, then a burst through all of them",
        shape=Shape.RING,
        n=5000,
        window=4,
    ),
    Scenario(
        "memory-15000",
        "15,000 clients, idle, then a burst through all of them",
        shape=Shape.RING,
        n=15000,
        window=4,
    ),
    Scenario(
        "logins", "2,000 clients log in, 64 at a time; then one pair", n=1, window=1, idle=1998
    ),
    Scenario(
        "login",
        "1,000 clients log in one after the other, without a fast start; then one pair",
        n=1,
        window=1,
        idle=998,
        at_once=1,
        fast_start=False,
    ),
    # The traffic of pairs-50 at a given rate; its window is the length of the runs.
    Scenario(
        "storm",
        "50 pairs by schedule, 1400 bytes, 16 in a row, while 2,000 more clients log in",
        n=50,
        window=0,
        rate=100_000,
        in_a_row=16,
        storm=2000,
    ),
    Scenario(
        "crowd",
        "1,000 pairs, 1400 bytes, 16 in flight each, beside 10,000 idle clients",
        n=1000,
        idle=10000,
    ),
)
SCENARIOS: Final = {scenario.name: scenario for scenario in _ALL}
