# What the data plane has to tell, as Python objects: events, sessions, counters, and the names of
# what they are about. For plane.pyx, which hands them out; nothing here changes anything but
# `rtt_excused`. Never on the packet path.

from libc.stdint cimport uint8_t, uint16_t, uint64_t

from fastderp.dataplane.counters cimport Counters
from fastderp.dataplane.events cimport Event, Totals as EventTotals
from fastderp.dataplane.session cimport Peer, Session
from fastderp.dataplane.sys cimport tcp_counts

cdef struct SessionSnapshot:              # of a session, taken under its output lock
    uint64_t handle
    Peer peer
    uint64_t opened_ns
    uint16_t worker
    bint preferred
    bint active
    bint tls
    bint is_tcp
    bint has_tcp                 # and the kernel told what it counts
    size_t backlog_bytes
    uint8_t n_app_name
    uint8_t app_name[32]
    double senders
    EventTotals totals

cdef bint session_snapshot(Session* s, SessionSnapshot* seen, tcp_counts* info) noexcept nogil
cdef bint session_excuse(Session* s, uint64_t handle) noexcept nogil

# None when no open session is there, or not on a TCP socket.
cdef object session_info(Session* s)
cdef object tcp_info(Session* s)

cdef object event_object(Event* event)

cdef uint64_t counters_moved(const Counters* c) noexcept
cdef void counters_sum(Counters* total, const Counters* part) noexcept
cdef dict counters_dict(const Counters* c)
