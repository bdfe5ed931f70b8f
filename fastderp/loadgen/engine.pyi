from collections.abc import Iterable, Sequence
from typing import Protocol, TypedDict

from fastderp.tls.record import RecordLayer

class LoggedIn(Protocol):
    """A logged-in connection that the engine takes over."""

    @property
    def key(self) -> bytes:
        """The client's public key, 32 bytes."""
    @property
    def unread(self) -> bytes:
        """The plaintext read behind ServerInfo."""
    @property
    def records(self) -> RecordLayer | None:
        """The connection's TLS 1.3 keys, which the engine takes over; None over plain TCP."""
    def detach(self) -> int:
        """Return the socket's descriptor, which the engine owns from then on."""

class Totals(TypedDict):
    """The counters of one measurement."""

    seconds: float
    sent: int
    sent_bytes: int
    delivered: int
    delivered_bytes: int
    lost: int
    corrupt: int
    unexpected: int
    connections_lost: int
    latency_max_ns: int

class Engine:
    """A load over logged-in connections, whose sockets it takes over.

    `flows` are (source, target) indexes into `connections`. `sizes` are (bytes, weight) pairs from
    which packet sizes are drawn, 32 to 65,536 bytes each. With `window` each flow keeps that many
    packets in flight; with `rate` all flows together send that many per second by a fixed schedule,
    and latency counts from the scheduled time; with neither, senders never wait. `verify` compares
    every payload byte. A connection with several flows sends `in_a_row` packets of one flow before
    it changes to the next; a schedule releases that many at once. The connections numbered in
    `slow` read `slow_bytes_per_s` each, and latency omits packets to them. `seed` fixes sizes and
    contents. `joined_records` fills TLS records with as many packets as fit; otherwise each packet
    has its own record, as from real clients. With `busy_wait` the thread polls for packets instead
    of sleeping, so that the relay spends no CPU time on waking it; real clients sleep. Raises
    ValueError for arguments out of range, TlsError for keys that were moved away, OSError when the
    process is out of descriptors.
    """

    def __init__(
        self,
        connections: Iterable[LoggedIn],
        flows: Iterable[tuple[int, int]],
        *,
        sizes: Sequence[tuple[int, float]],
        window: int = 0,
        rate: float = 0.0,
        in_a_row: int = 1,
        slow: Iterable[int] = (),
        slow_bytes_per_s: int = 0,
        joined_records: bool = False,
        busy_wait: bool = False,
        verify: bool = False,
        seed: int = 0,
    ) -> None: ...
    def warm_up(self, seconds: float) -> None:
        """Run the load without measuring."""
    def measure(self, seconds: float) -> None:
        """Run the load and measure; discard the previous measurement."""
    def drain(self, limit_s: float) -> None:
        """Stop sending and wait up to `limit_s` seconds for packets in flight."""
    def stop(self) -> None:
        """End the current and every later phase within 0.1 s. Any thread may call it."""
    def close(self) -> None:
        """Close every connection."""
    def percentile_ns(self, percent: float) -> int:
        """Return the latency in ns that `percent` of the measured packets did not exceed."""
    def totals(self) -> Totals:
        """Return the measurement's counters.

        `delivered` counts arrivals during the measurement; `lost` counts packets sent during it that
        did not arrive by the end of the drain; `corrupt` counts packets that failed the content
        check; `unexpected` counts packets that came twice, out of order, or after they had been
        given up because their flow was silent for 0.5 s.
        """
    def delivered_by_flow(self) -> list[int]:
        """Return the number of packets delivered during the measurement, by flow."""
