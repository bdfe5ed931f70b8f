from collections.abc import Sequence

from fastderp.dataplane.reports import CLOSE_REASONS as CLOSE_REASONS
from fastderp.dataplane.reports import DROP_REASONS as DROP_REASONS
from fastderp.dataplane.reports import FLUSH_BOUNDS as FLUSH_BOUNDS
from fastderp.dataplane.reports import PACKET_KINDS as PACKET_KINDS
from fastderp.dataplane.reports import ClosedEvent as ClosedEvent
from fastderp.dataplane.reports import DropEvent as DropEvent
from fastderp.dataplane.reports import FrameEvent as FrameEvent
from fastderp.dataplane.reports import SessionInfo as SessionInfo
from fastderp.dataplane.reports import TcpInfo as TcpInfo
from fastderp.dataplane.reports import Totals as Totals
from fastderp.errors import DerpError
from fastderp.tls.record import RecordLayer

DEFAULT_BACKLOG_AGE_S: float
DEFAULT_BACKLOG_CAP_BYTES: int
MAX_UNREAD_BYTES: int

class PlaneError(DerpError): ...

class Plane:
    n_workers: int
    write_timeout_s: float
    def __init__(
        self,
        *,
        workers: int = 0,
        write_timeout_s: float = 2.0,
        mesh_write_timeout_s: float = 30.0,
        home_settled_s: float = 5.0,
        keep_alive_s: float = 60.0,
        rate_calm_s: float = 5.0,
        disable_fighters: bool = False,
        backlog_cap_bytes: int = ...,
        gone_watchers_cap_bytes: int = ...,
        backlog_age_s: float = ...,
        queue_packets: int = 0,
        watch_drops: Sequence[bytes] = (),
        sender_cardinality: bool = False,
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
        app_name: bytes = b"",
        rate_class: int = 0,
        own_rtt: bool = False,
        behind_proxy: bool = False,
    ) -> int: ...
    def send(self, handle: int, frames: bytes) -> bool: ...
    def close_session(self, handle: int) -> bool: ...
    def close_key(self, key: bytes) -> int: ...
    def handles(self, key: bytes) -> list[int]: ...
    def is_connected(self, key: bytes) -> bool: ...
    def add_forwarder(self, key: bytes, link: int) -> None: ...
    def remove_forwarder(self, key: bytes, link: int) -> None: ...
    def set_rate_limit(self, bytes_per_s: int, burst_bytes: int = 0) -> None: ...
    def set_rate_limits(self, limits: Sequence[tuple[int, int]]) -> None: ...
    def set_rate_class(self, handle: int, rate_class: int) -> None: ...
    def set_duplicate(self, handle: int, is_duplicate: bool) -> bool: ...
    def events(self, n_most: int = 0) -> list[FrameEvent | ClosedEvent | DropEvent]: ...
    def sessions(self) -> list[SessionInfo]: ...
    def trim(self) -> None: ...
    def trim_memory(self) -> None: ...
    def n_moved(self) -> int: ...
    def tcp_infos(self) -> list[TcpInfo]: ...
    def round_trips(self, bounds_us: Sequence[int]) -> tuple[list[int], int, int]: ...
    def unique_senders(self) -> dict[int, int]: ...
    def counters(
        self,
    ) -> dict[
        str, int | float | dict[str, int] | dict[tuple[str, str], int] | tuple[list[int], int]
    ]: ...
