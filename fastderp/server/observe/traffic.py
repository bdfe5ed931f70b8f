"""Bytes and round-trip times of connections, from the kernel's counters. PROTOCOL §6.10, §14.

Loop thread only. For connections behind a bridge, the bridge has the counters. Pairs of streams
have none, because they are not TCP: their packets are counted instead.
"""

from __future__ import annotations

import asyncio
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple

from fastderp.dataplane.plane import Plane
from fastderp.wire.keys import NodePublic

ROUND_S = 2.0

_RTT_BOUNDS_MS = (10, 20, 50, 100, 150, 250, 500)
_RTT_LABELS = (*(f"{bound_ms}ms" for bound_ms in _RTT_BOUNDS_MS), "inf")


class BytesSentRecv(NamedTuple):
    """The bytes that one connection has moved since its start. PROTOCOL §6.10.

    Args:
        sent: bytes to the client: over TCP all that the kernel sent, over a pair of streams the
            data of packets.
        recv: bytes from the client, likewise.
        key: the client's.
        unique_senders: number of keys in the region that have sent it packets.
    """

    sent: int
    recv: int
    key: NodePublic
    unique_senders: int = 0

    def to_json(self) -> str:
        """Return it as a line of `/debug/traffic`."""
        members = {
            "Sent": self.sent,
            "Recv": self.recv,
            "Key": self.key.text,
            "UniqueSenders": self.unique_senders,
        }
        if not self.unique_senders:
            del members["UniqueSenders"]
        return json.dumps(members, separators=(",", ":"))


Bridged = Callable[[], Mapping[int, tuple[int, int]]]
"""Returns the bytes sent and received of the sessions behind bridges, by handle."""


async def rounds(
    plane: Plane, bridged: Bridged, interval_s: float = ROUND_S
) -> AsyncIterator[list[BytesSentRecv]]:
    """Yield, now and after each interval, the connections that moved bytes since the last round."""
    before: dict[int, tuple[int, int]] = {}
    while True:
        moved = _moved(plane, bridged())
        senders = plane.unique_senders()
        yield [
            BytesSentRecv(sent, recv, key, senders.get(handle, 0))
            for handle, (key, sent, recv) in moved.items()
            if before.get(handle, (0, 0)) != (sent, recv)
        ]
        before = {handle: (sent, recv) for handle, (_, sent, recv) in moved.items()}
        await asyncio.sleep(interval_s)


def _moved(
    plane: Plane, bridged: Mapping[int, tuple[int, int]]
) -> dict[int, tuple[NodePublic, int, int]]:
    """Return key, bytes sent and bytes received of every connection by handle."""
    others = {
        session.handle: (
            NodePublic(session.key),
            *bridged.get(session.handle, (session.totals.tx_bytes, session.totals.rx_bytes)),
        )
        for session in plane.sessions()
    }
    return others | {
        info.handle: (NodePublic(info.key), info.bytes_sent, info.bytes_received)
        for info in plane.tcp_infos()
    }


async def lines(
    plane: Plane, bridged: Bridged, interval_s: float = ROUND_S
) -> AsyncIterator[bytes]:
    """Yield rounds as `/debug/traffic` shows them: a JSON line per connection, an empty line."""
    async for moved in rounds(plane, bridged, interval_s):
        yield "".join(f"{one.to_json()}\n" for one in moved).encode() + b"\n"


class RoundTrips:
    """Counts the connections' round-trip times by class, at each call of `sample`."""

    def __init__(self, plane: Plane, bridged_us: Callable[[], list[int]]) -> None:
        """Sample the connections of `plane` and those behind bridges, in microseconds."""
        self._plane = plane
        self._bridged_us = bridged_us
        self.counts: Counter[str] = Counter()

    def sample(self) -> None:
        """Count each TCP connection by its round-trip time, every other connection only once."""
        bounds_us = [bound_ms * 1000 for bound_ms in _RTT_BOUNDS_MS]
        by_class, n_not_tcp, n_failed = self._plane.round_trips(bounds_us)
        for found_us in self._bridged_us():
            by_class[bisect_left(bounds_us, found_us)] += 1
        found = dict(zip(_RTT_LABELS, by_class, strict=True)) | {
            "non-tcp": n_not_tcp,
            "error": n_failed,
        }
        self.counts.update({label: n for label, n in found.items() if n})
