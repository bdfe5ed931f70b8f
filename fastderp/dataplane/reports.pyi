from typing import NamedTuple

CLOSE_REASONS: tuple[str, ...]

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
    app_name: bytes

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
    app_name: bytes
    senders: int

class TcpInfo(NamedTuple):
    handle: int
    key: bytes
    rtt_us: int
    bytes_sent: int
    bytes_received: int
