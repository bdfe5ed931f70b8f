"""The table of the data plane's counters. PROTOCOL §14.

A row makes the member of the C struct (setup.py writes `counters.pxd`), the entry of
`Plane.counters()` and the metric on `/debug/varz`. It imports nothing of fastderp: setup.py runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

Owner = Literal["derper", "fastderp", "part"]


class Label(NamedTuple):
    """A label: its values in the order of the C enum, and the C name of how many there are."""

    name: str
    values: tuple[str, ...]
    size: str


class Counter(NamedTuple):
    """One row.

    owner selects the prefix: `derp_NAME`, `fastderp_NAME` (counters of ours end in `_total`), or
    `part` of a metric that is computed elsewhere. Names of derper's are on `/debug/vars` as
    `{"derp": {prefix + name}}`, or beside that object where nested is false.

    bounds are those of a histogram. The C struct counts its sum in units of `scale`.
    """

    name: str
    help: str
    owner: Owner = "derper"
    kind: Literal["counter", "gauge", "histogram", "untyped"] = "counter"
    labels: tuple[Label, ...] = ()
    bounds: tuple[float, ...] = ()
    scale: float = 1
    prefix: str = ""
    nested: bool = True

    @property
    def metric(self) -> str:
        """The name on `/debug/varz`."""
        if self.owner != "fastderp":
            return f"derp_{self.name}"
        return f"fastderp_{self.name}" + ("_total" if self.kind == "counter" else "")

    @property
    def keys(self) -> list[tuple[str, ...]]:
        """The values of the labels, in the order of the C array."""
        keys: list[tuple[str, ...]] = [()]
        for label in self.labels:
            keys = [(*key, value) for key in keys for value in label.values]
        return keys

    def take(self, words: Iterator[int]) -> Any:
        """Take this row's words and return the entry of `Plane.counters()`.

        It is a number, a dict by label values, or (counts, sum) of a histogram.
        """
        if self.bounds:
            counts = [next(words) for _ in (*self.bounds, None)]
            return counts, next(words) * self.scale
        numbers = {key: next(words) for key in self.keys}
        if not self.labels:
            return numbers[()]
        if len(self.labels) == 1:
            return {key: number for (key,), number in numbers.items()}
        return numbers


# The reason of a drop (PROTOCOL §6.5), and the kind of the packet.
REASON = Label(
    "reason",
    (
        "unknown_dest",
        "unknown_dest_on_fwd",
        "gone_disconnected",
        "queue_head",
        "queue_tail",
        "write_error",
        "dup_client",
    ),
    "N_DROP_REASONS",
)
KIND = Label("kind", ("disco", "other"), "N_KINDS")
# Bounds of the frames per write; one more count is for values above the last bound.
FLUSH_BOUNDS = (*range(11), 15, 20, 25, 50, 100)
# Bounds of the waiting times of packets, in seconds: those of derpprobe's delays (PROTOCOL §15), and
# two below.
DELAY_BOUNDS = (0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)

# Each thread has its own value, a member of the C struct.
PER_THREAD = (
    Counter("opened", "sessions that began", "part"),
    Counter("closed", "sessions that ended", "part"),
    Counter(
        "packets_received_kind",
        "packets received from clients, by kind",
        labels=(KIND,),
        prefix="counter_",
    ),
    Counter("bytes_received", "bytes of packet data received from clients"),
    Counter("packets_sent", "packets written to clients"),
    Counter("bytes_sent", "bytes of packet data written to clients"),
    Counter(
        "packets_dropped",
        "packets dropped, by reason and kind",
        labels=(REASON, KIND),
        nested=False,
    ),
    Counter(
        "bytes_dropped",
        "bytes of packet data dropped, by reason and kind",
        labels=(REASON, KIND),
        nested=False,
    ),
    Counter("packets_forwarded_in", "packets received from mesh peers"),
    Counter("packets_forwarded_out", "packets forwarded to mesh peers"),
    Counter(
        "packets_forwarded_lost",
        "packets for mesh peers dropped before they reached the socket",
        "fastderp",
    ),
    Counter(
        "peer_gone_lost",
        "PeerGone frames not sent because the client's backlog was full",
        "fastderp",
    ),
    Counter("peer_gone_disconnected_frames", "PeerGone frames written, reason disconnected"),
    Counter("peer_gone_not_here_frames", "PeerGone frames written, reason not here"),
    Counter("got_ping", "pings received"),
    Counter("sent_pong", "pongs written"),
    Counter("unknown_frames", "frames of an unknown type"),
    Counter("home_moves_in", "NotePreferred frames that made this relay a client's home"),
    Counter(
        "home_moves_out", "NotePreferred frames that ended this relay's role as a client's home"
    ),
    # Gauges may be negative in one thread; their sum is not.
    Counter(
        "current_home_connections",
        "connections of clients whose home is this relay",
        kind="gauge",
    ),
    Counter(
        "current_notideal_connections",
        "connections of clients that prefer another node of the region",
        kind="gauge",
    ),
    Counter(
        "sealed_connections", "connections whose TLS records the data plane opens", "part", "gauge"
    ),
    Counter(
        "total_dup_client_conns",
        "logins with a key that another connection uses",
        prefix="counter_",
    ),
    Counter("sclient_write_timeouts", "connections closed by the write timeout"),
    Counter("rate_limit_per_client_waited", "pauses of a client that exceeded its rate limit"),
    Counter(
        "clients_held_back",
        "clients that exceed their rate limit, until 5 s after the last pause",
        "fastderp",
        "gauge",
    ),
    Counter("reads", "receive calls of the data plane that returned bytes", "fastderp"),
    Counter("writes", "send calls of the data plane", "fastderp"),
    Counter(
        "buffered_write_frames",
        "frames per write to a client",
        kind="histogram",
        bounds=FLUSH_BOUNDS,
    ),
    Counter(
        "queue_delay_seconds",
        "time from the read of a packet to its write, seconds",
        "fastderp",
        "histogram",
        bounds=DELAY_BOUNDS,
        scale=1e-9,
    ),
)
# These are computed, or one value serves all threads.
SHARED = (
    Counter("packets_received", "packets received from clients"),
    Counter("current_connections", "logged-in connections", kind="gauge"),
    Counter(
        "clients_total", "keys connected to this relay or reachable through the mesh", kind="gauge"
    ),
    Counter("clients_local", "keys connected to this relay", kind="gauge"),
    Counter("clients_remote", "keys reachable through the mesh only", kind="gauge"),
    Counter("current_dup_client_keys", "keys with more than one connection", kind="gauge"),
    Counter(
        "current_dup_client_conns", "connections that share their key with another", kind="gauge"
    ),
    Counter("multiforwarder_created", "keys that became reachable through more than one mesh peer"),
    Counter(
        "multiforwarder_deleted",
        "keys that stopped being reachable through more than one mesh peer",
    ),
    Counter(
        "packet_forwarder_delete_other_value",
        "withdrawals of a mesh route that another route had replaced",
    ),
    Counter(
        "average_queue_duration_ms",
        "moving average of the time that packets wait to be written, ms",
        kind="untyped",
    ),
    Counter(
        "backlog_bytes",
        "memory of frames that wait to be written to clients, bytes",
        "fastderp",
        "gauge",
    ),
    Counter(
        "stash_bytes",
        "memory of clients' frames that are incomplete or wait to be relayed, above 4 KiB each, bytes",
        "fastderp",
        "gauge",
    ),
    Counter(
        "gone_watchers_bytes",
        "memory of the lists of gone watchers, bytes",
        "fastderp",
        "gauge",
    ),
    Counter("events_lost", "events of the data plane lost for lack of memory", "fastderp"),
    Counter("workers", "threads that move packets", "fastderp", "gauge"),
)

COUNTERS = (*PER_THREAD, *SHARED)


def entries(words: Iterator[int]) -> dict[str, Any]:
    """Return the entries of PER_THREAD from the words of the C struct."""
    return {row.name: row.take(words) for row in PER_THREAD}


def declarations() -> str:
    """Return `counters.pxd`."""
    lines = [
        "# Written by setup.py from the table in counters.py: change that.",
        "#",
        "# Counters of one thread, on cache lines of their own, and added up when they are read",
        "# (PROTOCOL §14). Written by that thread alone, with counter_add.",
        "",
        "from libc.stdint cimport uint64_t",
        "",
        "cdef enum DropReason:",
        *(f"    DROP_{value.upper()}" for value in REASON.values),
        f"    {REASON.size}",
        "",
        "cdef enum:",
        *(f"    KIND_{value.upper()}" for value in KIND.values),
        f"    {KIND.size}",
        "",
        "cdef struct Counters:",
        *(f"    uint64_t {member}" for row in PER_THREAD for member in _members(row)),
        "    uint64_t pad[8]",
        *(line for row in PER_THREAD if row.bounds for line in _bucket_function(row)),
    ]
    return "\n".join(lines) + "\n"


def _bucket_function(row: Counter) -> list[str]:
    """Return the C function of a histogram; a value is in units of its scale."""
    return [
        "",
        "",
        f"cdef inline int {row.name}_bucket(uint64_t value) noexcept nogil:",
        *(
            f"    if value <= {round(bound / row.scale)}:\n        return {i}"
            for i, bound in enumerate(row.bounds)
        ),
        f"    return {len(row.bounds)}",
    ]


def _members(row: Counter) -> list[str]:
    if row.bounds:
        return [f"{row.name}[{len(row.bounds) + 1}]", f"{row.name}_sum"]
    return [row.name + "".join(f"[{label.size}]" for label in row.labels)]
