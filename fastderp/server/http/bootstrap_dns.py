"""`/bootstrap-dns`: the addresses of chosen names, for clients whose own DNS does not work.

PROTOCOL §9.6. Loop thread only. Names are looked up every ten minutes, never during a request: an
answer comes from two tables.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar
from urllib.parse import parse_qs

from fastderp.server.http.message import SECURITY_HEADERS, Request, Response
from fastderp.server.observe.supervisor import supervisor
from fastderp.server.observe.values import Value
from fastderp.util import jitter

log: logging.Logger = logging.getLogger("fastderp")

T = TypeVar("T")

REFRESH_S = 600.0
# Limit for one list of names.
BUDGET_S = 60.0
LOOKUPS_AT_ONCE = 16

# Limit of the set that counts distinct names in queries; it is cleared when full. Longer texts are
# not names.
QUERIED_LIMIT = 500
NAME_MAX = 253

_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_PERCENT = re.compile(r"[0-9]{1,3}", re.ASCII)
_MASK_64 = (1 << 64) - 1
_MASK_128 = (1 << 128) - 1


class Resolver(Protocol):
    """The interface of a resolver, such as `resolver.SystemResolver`."""

    async def addresses(self, name: str) -> list[str]:
        """Return the IPv4 and IPv6 addresses of a name, at least one.

        Raises LookupError with the reason when there is none.
        """

    async def text(self, name: str) -> str:
        """Return the text of a name's first TXT record. Raises LookupError."""


class Unpublished(NamedTuple):
    """A name whose addresses are in the answer only when the query contains the name.

    rollout names a TXT record with the percentage of clients that get them, 0 to 100; "" for all
    clients.
    """

    name: str
    rollout: str = ""

    @classmethod
    def parse(cls, text: str) -> Unpublished:
        """Read `name` or `name/rollout`. Raises ValueError."""
        name, slash, rollout = text.partition("/")
        return cls(checked_name(name), checked_name(rollout) if slash else "")


def checked_name(text: str) -> str:
    """Return a host name unchanged. Raises ValueError for any other text."""
    if len(text) <= NAME_MAX and _NAME.fullmatch(text):
        return text
    raise ValueError("want a host name such as login.example.com")


class BootstrapDns:
    """Answers requests for `/bootstrap-dns` and looks its names up while `running`.

    Args:
        published: names in every answer.
        unpublished: names in the answer only to a query with the name.
        resolver: looks them up; None only without names.
    """

    def __init__(
        self,
        published: Sequence[str] = (),
        unpublished: Sequence[Unpublished] = (),
        resolver: Resolver | None = None,
    ) -> None:
        self._published_names = published
        self._unpublished_names = unpublished
        self._resolver = resolver
        self._published: Mapping[str, list[str]] = {}
        self._published_body = b""
        self._unpublished: Mapping[str, list[str]] = {}
        self._fractions: Mapping[str, float] = {}
        self._queried: set[str] = set()
        self._counts: Counter[str] = Counter()

    def respond(self, request: Request) -> Response:
        """Answer with the unpublished name of the query, else with all published names."""
        self._counts["requests"] += 1
        body = self._published_body
        name = parse_qs(request.query).get("q", [""])[0]
        if name:
            self._note_queried(name)
            if self._tells_unpublished(name, request.remote[0]):
                body = _json({name: self._unpublished[name]})
            else:
                self._count_published(name)
        return Response(200, body, "application/json", SECURITY_HEADERS, close=True)

    def metrics(self) -> dict[str, Value]:
        """Return the counters by the names of `metrics.METRICS`."""
        return {
            **{f"bootstrap_dns_{name}": self._counts[name] for name in _COUNTED},
            "bootstrap_dns_queried_domains": len(self._queried),
        }

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[BootstrapDns]:
        """Look up the names every REFRESH_S within the block; do nothing without names."""
        task = supervisor.start("bootstrap DNS", self._refresh_for_ever) if self._resolver else None
        try:
            yield self
        finally:
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def refresh(self) -> None:
        """Look every name up once. A name without an answer is omitted until the next lookup."""
        assert self._resolver is not None
        if self._published_names:
            self._published = await self._addresses(self._published_names)
            self._published_body = _json(self._published)
        if self._unpublished_names:
            found, percents = await asyncio.gather(
                self._addresses([entry.name for entry in self._unpublished_names]),
                self._answers(
                    self._resolver.text,
                    {entry.rollout for entry in self._unpublished_names if entry.rollout},
                ),
            )
            self._fractions = {
                entry.name: fraction(percents.get(entry.rollout, "")) if entry.rollout else 1.0
                for entry in self._unpublished_names
            }
            self._unpublished = found

    # Answering

    def _note_queried(self, name: str) -> None:
        if len(name) <= NAME_MAX:
            self._queried.add(name)
            if len(self._queried) > QUERIED_LIMIT:
                self._queried.clear()

    def _tells_unpublished(self, name: str, ip: str) -> bool:
        if not self._unpublished.get(name):
            return False
        self._counts["unpublished_hits"] += 1
        if is_chosen(ip, self._fractions.get(name, 0.0)):
            return True
        self._counts["unpublished_percent_misses"] += 1
        return False

    def _count_published(self, name: str) -> None:
        if name not in self._published:
            self._counts["unpublished_misses"] += 1
        else:
            self._counts["published_hits" if self._published[name] else "published_misses"] += 1

    # Looking up

    async def _refresh_for_ever(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_S)

    async def _addresses(self, names: Iterable[str]) -> dict[str, list[str]]:
        assert self._resolver is not None
        found = await self._answers(self._resolver.addresses, names)
        # Clients use the first address, so the order is random across both families.
        return {name: jitter.shuffled(addresses) for name, addresses in found.items()}

    async def _answers(
        self, ask: Callable[[str], Awaitable[T]], names: Iterable[str]
    ) -> dict[str, T]:
        """Look up names, up to LOOKUPS_AT_ONCE at a time, within BUDGET_S.

        Names without an answer are logged and omitted.
        """
        turns = asyncio.Semaphore(LOOKUPS_AT_ONCE)
        found: dict[str, T] = {}
        failed = dict.fromkeys(names, "no answer in time")

        async def ask_about(name: str) -> None:
            async with turns:
                try:
                    found[name] = await ask(name)
                    del failed[name]
                except LookupError as error:
                    failed[name] = str(error)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BUDGET_S), asyncio.TaskGroup() as group:
                for name in list(failed):
                    group.create_task(ask_about(name))
        for name, reason in failed.items():
            log.warning("bootstrap DNS: %s is left out: %s", name, reason)
        return found


_COUNTED = (
    "requests",
    "published_hits",
    "published_misses",
    "unpublished_hits",
    "unpublished_misses",
    "unpublished_percent_misses",
)


def _json(addresses: Mapping[str, list[str]]) -> bytes:
    return json.dumps(addresses, indent="\t", sort_keys=True).encode()


# The rollout


def fraction(percent: str) -> float:
    """Return the share of clients in a rollout's TXT record, 0.0 for a malformed record."""
    if _PERCENT.fullmatch(percent) and int(percent) <= 100:
        return int(percent) / 100
    return 0.0


def is_chosen(ip: str, share: float) -> bool:
    """Return whether a client belongs to a share of all clients, 0.0 to 1.0.

    The result depends on the address only; on loopback it is random.
    """
    if share <= 0.0 or share >= 1.0:
        return share >= 1.0
    try:
        address = ipaddress.ip_address(ip.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        address = ipaddress.IPv6Address(f"::ffff:{address}")
    if (address.ipv4_mapped or address).is_loopback:
        return jitter.uniform(0, 1) < share
    return _number_of(address.packed) < share


def _number_of(address: bytes) -> float:
    """Map an IPv6 address to a number in [0, 1), the same on every relay.

    It is one step of PCG-DXSM seeded by the address.
    """
    high, low = int.from_bytes(address[:8], "little"), int.from_bytes(address[8:], "little")
    state = (
        high << 64 | low
    ) * 0x2360ED051FC65DA44385DF649FCCF645 + 0x5851F42D4C957F2D14057B7EF767814F
    state &= _MASK_128
    mixed = state >> 64
    mixed ^= mixed >> 32
    mixed = mixed * 0xDA942042E4DD58B5 & _MASK_64
    mixed ^= mixed >> 48
    mixed = mixed * (state & _MASK_64 | 1) & _MASK_64
    return (mixed & (1 << 53) - 1) / (1 << 53)
