# Conversion of events, sessions and counters to Python; see reports.pxd for the thread and locks.

import os
from typing import NamedTuple

from libc.string cimport memcpy

from fastderp.dataplane.cardinality cimport sketch_estimate
from fastderp.dataplane.events cimport EVENT_DROP, EVENT_FRAME
from fastderp.dataplane.frame cimport FRAME_HEADER, KEY_SIZE, ROLE_LINK, ROLE_MESH
from fastderp.dataplane.backlog cimport backlog_bytes
from fastderp.tls.record cimport RecordStatus, record_status_text
from fastderp.dataplane.core cimport (
    CLOSE_RESET, CLOSE_TLS, CLOSE_UNREACHABLE, CLOSE_WRITE_ERROR, N_CLOSE_REASONS, SESSION_OPEN,
    CloseReason,
)
from fastderp.dataplane.output cimport lost_reason
from fastderp.dataplane.session cimport session_totals
from fastderp.dataplane.sys cimport (
    ECONNRESET, ENOPROTOOPT, EOPNOTSUPP, EPIPE, IPPROTO_TCP, TCP_INFO, atomic_load_u64,
    atomic_load_u8, atomic_peek_u64, clock_ns, errno, getsockopt, pthread_mutex_lock,
    pthread_mutex_unlock,
)

from fastderp.dataplane.counters import KIND, REASON, entries

# The names of CloseReason, in its order, for logs and metric labels.
CLOSE_REASONS = (
    "eof", "reset", "tcp_timeout", "unreachable", "bad_frame_size", "frame_not_permitted", "tls",
    "write_timeout", "write_error", "control_overflow", "no_memory", "server", "close_peer",
    "shutdown", "silent", "drain", "incomplete_frame",
)
assert len(CLOSE_REASONS) == N_CLOSE_REASONS
DROP_REASONS, PACKET_KINDS = REASON.values, KIND.values


class Totals(NamedTuple):
    """The traffic of one session, in packets and their payload bytes.

    rx is from the peer to the relay, tx from the relay to the peer.
    """

    seconds: float
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    dropped: int


class FrameEvent(NamedTuple):
    """A frame from the session `handle` for the control plane."""

    handle: int
    type: int
    payload: bytes


class ClosedEvent(NamedTuple):
    """The end of a session.

    `reason` is one of CLOSE_REASONS, `detail` a phrase or empty; `addr` has the form of
    PeerPresent; `app_name` is the client's own value.
    """

    handle: int
    key: bytes
    reason: str
    detail: str
    addr: bytes
    port: int
    totals: Totals
    app_name: bytes


class DropEvent(NamedTuple):
    """A dropped packet for a watched key; `source` is empty for a packet without a sender's key."""

    source: bytes
    destination: bytes
    reason: str
    kind: str


class SessionInfo(NamedTuple):
    """A connected session, for debug pages and tests.

    `senders` estimates how many distinct peers have sent to it; it is 0 unless the plane has
    `sender_cardinality`.
    """

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
    """The kernel's values for a session's socket.

    `rtt_us` is the smoothed round-trip time in microseconds.
    """

    handle: int
    key: bytes
    rtt_us: int
    bytes_sent: int
    bytes_received: int


# ---- sessions

cdef bint session_snapshot(Session* s, SessionSnapshot* seen, tcp_counts* info) noexcept nogil:
    """Copy the state of a slot's session; False when the slot has no open session.

    info, unless NULL, gets the kernel's tcp_info. No Python object is made under the lock, because
    senders wait for it.
    """
    cdef unsigned int n = sizeof(tcp_counts)
    cdef bint is_open
    cdef bint failed
    if atomic_load_u64(&s.handle) == 0:
        return False
    pthread_mutex_lock(&s.output_lock)
    is_open = s.state == SESSION_OPEN
    if is_open:
        seen.handle = s.handle
        seen.peer = s.peer
        seen.opened_ns = s.opened_ns
        seen.worker = s.worker
        seen.preferred = atomic_load_u8(&s.preferred)
        seen.active = s.route is not NULL and atomic_load_u64(&s.route.active) == s.handle
        seen.tls = s.records is not NULL
        seen.backlog_bytes = backlog_bytes(s.backlog) if s.backlog is not NULL else 0
        seen.n_app_name = s.app_name[0] if s.app_name is not NULL else 0
        if seen.n_app_name:
            memcpy(seen.app_name, s.app_name + 1, seen.n_app_name)
        seen.senders = sketch_estimate(s.senders) if s.senders is not NULL else 0
        session_totals(s, &seen.totals)
        if info is not NULL:
            failed = getsockopt(s.fd, IPPROTO_TCP, TCP_INFO, info, &n) != 0
            seen.is_tcp = not (failed and (errno == EOPNOTSUPP or errno == ENOPROTOOPT))
            seen.has_tcp = not failed and n == sizeof(tcp_counts)
    pthread_mutex_unlock(&s.output_lock)
    return is_open


cdef bint session_excuse(Session* s, uint64_t handle) noexcept nogil:
    """Note that a session has no round-trip time; False when that was noted before."""
    cdef bint is_new
    pthread_mutex_lock(&s.output_lock)
    is_new = s.handle == handle and not s.rtt_excused
    s.rtt_excused |= is_new
    pthread_mutex_unlock(&s.output_lock)
    return is_new


cdef object session_info(Session* s):
    cdef SessionSnapshot seen
    if not session_snapshot(s, &seen, NULL):
        return None
    return SessionInfo(
        seen.handle, seen.peer.key[:KEY_SIZE], seen.peer.addr[:16], seen.peer.port,
        seen.peer.role == ROLE_MESH, seen.peer.role == ROLE_LINK, bool(seen.peer.prober),
        bool(seen.peer.not_ideal),
        seen.preferred, seen.active, seen.tls, seen.worker, seen.backlog_bytes,
        totals_object(clock_ns() - seen.opened_ns, &seen.totals), seen.app_name[:seen.n_app_name],
        int(seen.senders + 0.5),
    )


cdef object tcp_info(Session* s):
    cdef SessionSnapshot seen
    cdef tcp_counts info
    if not session_snapshot(s, &seen, &info) or not seen.has_tcp:
        return None
    return TcpInfo(seen.handle, seen.peer.key[:KEY_SIZE], info.rtt_us, info.bytes_sent,
                   info.bytes_received)


cdef object totals_object(uint64_t lived_ns, const EventTotals* totals):
    return Totals(
        lived_ns / 1e9, totals.rx_packets, totals.rx_bytes, totals.tx_packets, totals.tx_bytes,
        totals.dropped)


# ---- events

cdef str close_detail(uint8_t reason, uint8_t detail):
    """Return a phrase for what the reason leaves open, or ""."""
    if reason == CLOSE_TLS:
        return record_status_text(<RecordStatus>detail).decode()
    if (reason == CLOSE_RESET and detail != ECONNRESET or reason == CLOSE_UNREACHABLE
            or reason == CLOSE_WRITE_ERROR and detail != EPIPE):
        return os.strerror(detail) if detail else ""
    return ""


cdef tuple kernel_cause(int error):
    cdef CloseReason reason = lost_reason(error, CLOSE_RESET)
    return CLOSE_REASONS[reason], close_detail(reason, <uint8_t>error)


cdef object event_object(Event* event):
    if event.kind == EVENT_FRAME:
        return FrameEvent(event.handle, event.frame[0], event.frame[FRAME_HEADER:event.n_frame])
    if event.kind == EVENT_DROP:
        return DropEvent(
            event.frame[:event.n_frame], event.key[:KEY_SIZE], DROP_REASONS[event.reason],
            PACKET_KINDS[event.detail])
    return ClosedEvent(
        event.handle, event.key[:KEY_SIZE], CLOSE_REASONS[event.reason],
        close_detail(event.reason, event.detail),
        event.addr[:16], event.port,
        totals_object(event.lived_ns, &event.totals), event.frame[:event.n_frame],
    )


# ---- counters

cdef uint64_t counters_moved(const Counters* c) noexcept:
    return (atomic_peek_u64(&c.opened) + atomic_peek_u64(&c.closed) + atomic_peek_u64(&c.reads)
            + atomic_peek_u64(&c.writes))


cdef void counters_sum(Counters* total, const Counters* part) noexcept:
    cdef uint64_t* into = <uint64_t*>total
    cdef const uint64_t* words = <const uint64_t*>part
    cdef size_t i
    for i in range(sizeof(Counters) // sizeof(uint64_t)):
        into[i] += atomic_peek_u64(&words[i])


cdef dict counters_dict(const Counters* c):
    cdef const uint64_t* words = <const uint64_t*>c
    named = entries(iter([words[i] for i in range(sizeof(Counters) // sizeof(uint64_t))]))
    return named | {
        "current_connections": named.pop("opened") - named.pop("closed"),
        "packets_received": sum(named["packets_received_kind"].values()),
    }
