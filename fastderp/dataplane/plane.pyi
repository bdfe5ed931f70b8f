from collections.abc import Sequence
from typing import NamedTuple

from fastderp.dataplane.record import RecordLayer
from fastderp.errors import DerpError

DEFAULT_BACKLOG_CAP_BYTES: int
MAX_UNREAD_BYTES: int
CLOSE_REASONS: tuple[str, ...]
DROP_REASONS: tuple[str, ...]
PACKET_KINDS: tuple[str, ...]
FLUSH_BOUNDS: tuple[int, ...]

class PlaneError(DerpError): ...

class Totals(NamedTuple):
    seconds: float
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    dropped: int

class FrameEvent(NamedTuple):
    handle: int
    type: int
    payload: bytes

class ClosedEvent(NamedTuple):
    handle: int
    key: bytes
    reason: str
    detail: str
    addr: bytes
    port: int
    totals: Totals

class DropEvent(NamedTuple):
    source: bytes
    destination: bytes
    reason: str
    kind: str

class SessionInfo(NamedTuple):
    handle: int
    key: bytes
    addr: bytes
    port: int
    mesh: bool
    link: bool
    prober: bool
    not_ideal: bool
    preferred: bool
    active: bool
    tls: bool
    worker: int
    backlog_bytes: int
    totals: Totals

class TcpInfo(NamedTuple):
    handle: int
    key: bytes
    rtt_us: int
    bytes_sent: int
    bytes_received: int

class Plane:
    n_workers: int
    def __init__(
        self,
        *,
        workers: int = 0,
        write_timeout_s: float = 2.0,
        keep_alive_s: float = 60.0,
        disable_fighters: bool = False,
        backlog_cap_bytes: int = ...,
        queue_packets: int = 0,
        watch_drops: Sequence[bytes] = (),
    ) -> None: ...
    def start(self) -> None: ...
    def close(self) -> None: ...
    def fileno(self) -> int: ...
    def promote(
        self,
        fd: int,
        key: bytes,
        *,
        first: bytes = b"",
        unread: bytes = b"",
        opened: bytes = b"",
        records: RecordLayer | None = None,
        mesh: bool = False,
        link: bool = False,
        prober: bool = False,
        not_ideal: bool = False,
        addr: bytes = ...,
        port: int = 0,
        own_rtt: bool = False,
    ) -> int: ...
    def send(self, handle: int, frames: bytes) -> bool: ...
    def close_session(self, handle: int) -> bool: ...
    def close_key(self, key: bytes) -> int: ...
    def handles(self, key: bytes) -> list[int]: ...
    def is_connected(self, key: bytes) -> bool: ...
    def add_forwarder(self, key: bytes, link: int) -> None: ...
    def remove_forwarder(self, key: bytes, link: int) -> None: ...
    def set_rate_limit(self, bytes_per_s: int, burst_bytes: int = 0) -> None: ...
    def events(self) -> list[FrameEvent | ClosedEvent | DropEvent]: ...
    def sessions(self) -> list[SessionInfo]: ...
    def rest(self) -> None: ...
    def trim_memory(self) -> None: ...
    def n_moved(self) -> int: ...
    def tcp_infos(self) -> list[TcpInfo]: ...
    def round_trips(self, bounds_us: Sequence[int]) -> tuple[list[int], int]: ...
    def unique_senders(self) -> dict[int, int]: ...
    def counters(
        self,
    ) -> dict[str, int | float | dict[str, int] | dict[tuple[str, str], int] | tuple[list[int], int]]: ...
