"""Figures of a running relay: a snapshot of its debug pages, and the rates between two of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastderp.util.text import printable
from fastderp.wire.keys import NodePublic

_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_NS = 1_000_000_000
_FLAGS = {
    "home": "home",
    "dup": "dup",
    "disabled": "off",
    "meshPeer": "mesh",
    "notIdeal": "other-home",
    "prober": "prober",
}

Labels = Mapping[str, str]


class Metrics:
    """The samples of `/debug/varz`."""

    def __init__(self, samples: Iterable[tuple[str, Labels, float]]) -> None:
        self._samples: dict[str, list[tuple[Labels, float]]] = {}
        for name, labels, value in samples:
            self._samples.setdefault(name, []).append((labels, value))

    @classmethod
    def parse(cls, text: str) -> Metrics:
        """Read Prometheus text. Raises ValueError when it is none."""
        samples = []
        for line in text.splitlines():
            if not line or line.startswith("#"):
                continue
            match = _SAMPLE.fullmatch(line)
            if match is None:
                raise ValueError(f"no metric: {line}")
            name, labels, value = match.groups()
            samples.append((name, dict(_LABEL.findall(labels or "")), float(value)))
        return cls(samples)

    def total(self, name: str) -> float | None:
        """Return the sum of a metric over its labels; None if it is not exported."""
        samples = self._samples.get(name)
        return None if samples is None else sum(value for _, value in samples)

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return the sums of a metric by the values of a label."""
        sums: dict[str, float] = {}
        for labels, value in self._samples.get(name, ()):
            key = labels.get(label, "")
            sums[key] = sums.get(key, 0.0) + value
        return sums

    def label(self, name: str, label: str) -> str:
        """Return the value of a label of the first sample; "" if there is none."""
        return next((labels.get(label, "") for labels, _ in self._samples.get(name, ())), "")


@dataclass(frozen=True, slots=True)
class Client:
    """A connection of `/debug/clients/`. Texts are printable; counts since it began.

    Only a fastderp relay tells the last three: packets dropped on the way to this client, bytes
    that wait for it, and its round-trip time.
    """

    number: int
    key: str
    address: str
    app: str
    flags: str
    connected_s: float
    packets_in: int
    bytes_in: int
    packets_out: int
    bytes_out: int
    dropped: int | None = None
    waiting_bytes: int | None = None
    rtt_us: int | None = None

    @property
    def bytes_both(self) -> int:
        """Bytes in both directions."""
        return self.bytes_in + self.bytes_out

    @classmethod
    def parse(cls, item: Mapping[str, Any]) -> Client:
        """Read an object of the page's JSON. Raises ValueError for another object."""
        try:
            return cls(
                number=int(item["connNum"]),
                key=NodePublic.from_text(item["key"]).short,
                address=printable(str(item["remote"])),
                app=printable(str(item["appName"])),
                flags=" ".join(text for name, text in _FLAGS.items() if item.get(name)),
                connected_s=int(item["connected"]) / _NS,
                packets_in=int(item["rxPkts"]),
                bytes_in=int(item["rxBytes"]),
                packets_out=int(item["txPkts"]),
                bytes_out=int(item["txBytes"]),
                dropped=_known(item.get("dropped")),
                waiting_bytes=_known(item.get("waitingBytes")),
                rtt_us=_known(item.get("rttMicros")),
            )
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"no client: {error!r}") from None


def _known(value: Any) -> int | None:
    return None if value is None else int(value)


@dataclass(frozen=True, slots=True)
class Clients:
    """The clients at one moment; `n_connections` counts those beyond the list, too."""

    taken_s: float
    n_connections: int
    listed: tuple[Client, ...]

    @property
    def is_complete(self) -> bool:
        """Whether the list has all clients."""
        return len(self.listed) >= self.n_connections

    @classmethod
    def parse(cls, pages: Iterable[Mapping[str, Any]], taken_s: float) -> Clients:
        """Read pages that have the same clients in different orders. Raises ValueError."""
        listed: dict[int, Client] = {}
        n_connections = 0
        for page in pages:
            try:
                n_connections = int(page["conns"])
                items = tuple(page["clients"])
            except (KeyError, TypeError, OverflowError) as error:
                raise ValueError(f"no list of clients: {error!r}") from None
            for client in map(Client.parse, items):
                listed.setdefault(client.number, client)
        return cls(taken_s, n_connections, tuple(listed.values()))


@dataclass(frozen=True, slots=True)
class ClientRates:
    """What a connection moved per second; None where it was not known at both moments."""

    client: Client
    packets_in: float | None = None
    bytes_in: float | None = None
    packets_out: float | None = None
    bytes_out: float | None = None

    @property
    def bytes_both(self) -> float | None:
        """Bytes per second in both directions."""
        if self.bytes_in is None or self.bytes_out is None:
            return None
        return self.bytes_in + self.bytes_out

    @property
    def packets_both(self) -> float | None:
        """Packets per second in both directions."""
        if self.packets_in is None or self.packets_out is None:
            return None
        return self.packets_in + self.packets_out


def client_rates(before: Clients | None, now: Clients) -> list[ClientRates]:
    """Return the rates of the clients of `now`; those that came meanwhile count from zero."""
    if before is None or now.taken_s <= before.taken_s:
        return [ClientRates(client) for client in now.listed]
    seconds = now.taken_s - before.taken_s
    previous = {client.number: client for client in before.listed}
    rows = []
    for client in now.listed:
        old = previous.get(client.number)
        if old is None and not before.is_complete and client.connected_s > seconds:
            rows.append(ClientRates(client))
            continue
        rows.append(
            ClientRates(
                client,
                (client.packets_in - (old.packets_in if old else 0)) / seconds,
                (client.bytes_in - (old.bytes_in if old else 0)) / seconds,
                (client.packets_out - (old.packets_out if old else 0)) / seconds,
                (client.bytes_out - (old.bytes_out if old else 0)) / seconds,
            )
        )
    return rows


@dataclass(frozen=True, slots=True)
class Reading:
    """The metrics at one moment, in seconds of a monotonic clock."""

    taken_s: float
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Rates:
    """The metrics at one moment, and what they grew by since an earlier one of the same process."""

    before: Reading | None
    now: Reading

    @classmethod
    def between(cls, before: Reading | None, now: Reading) -> Rates:
        """Compare two readings; a relay that has started meanwhile has no rates yet."""
        if before is not None and (
            now.taken_s <= before.taken_s
            or now.metrics.total("process_start_time_seconds")
            != before.metrics.total("process_start_time_seconds")
        ):
            before = None
        return cls(before, now)

    def total(self, name: str) -> float | None:
        """Return the present sum of a metric."""
        return self.now.metrics.total(name)

    def rate(self, name: str) -> float | None:
        """Return the growth of a counter per second, over all labels."""
        now = self.now.metrics.total(name)
        if self.before is None or now is None:
            return None
        return self._per_second(now - (self.before.metrics.total(name) or 0.0))

    def rates(self, name: str, label: str) -> dict[str, float]:
        """Return the growth of a counter per second by the values of a label, largest first."""
        if self.before is None:
            return {}
        old = self.before.metrics.by(name, label)
        found = {
            value: self._per_second(total - old.get(value, 0.0))
            for value, total in self.now.metrics.by(name, label).items()
        }
        return dict(sorted(((k, v) for k, v in found.items() if v > 0), key=lambda pair: -pair[1]))

    def logins(self) -> float | None:
        """Return the sessions that began, per second: those that ended and the increase."""
        connections = "derp_current_connections"
        if self.before is None or self.total(connections) is None:
            return None
        grown = (self.total(connections) or 0.0) - (self.before.metrics.total(connections) or 0.0)
        return max(
            0.0, self.rate_or_zero("fastderp_session_closed_total") + self._per_second(grown)
        )

    def rate_or_zero(self, name: str) -> float:
        """Return the rate of a counter whose labels appear with its first event."""
        return self.rate(name) or 0.0

    def upper_bound(self, histogram: str, share: float) -> float | None:
        """Return the bound of a histogram that this share of the new observations does not exceed.

        None without observations; infinity above the last bound.
        """
        if self.before is None:
            return None
        name = f"{histogram}_bucket"
        old = self.before.metrics.by(name, "le")
        counts = [
            (float(bound), n - old.get(bound, 0.0))
            for bound, n in self.now.metrics.by(name, "le").items()
        ]
        wanted = share * max((n for _, n in counts), default=0.0)
        if not wanted:
            return None
        return next((bound for bound, n in sorted(counts) if n >= wanted), math.inf)

    def _per_second(self, growth: float) -> float:
        assert self.before is not None
        return growth / (self.now.taken_s - self.before.taken_s)
