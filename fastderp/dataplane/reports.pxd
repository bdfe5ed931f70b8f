# Events, sessions and counters of the data plane as Python objects, for plane.pyx. The control
# plane runs this; it changes only `rtt_excused`. No packet passes through here.

from libc.stdint cimport uint8_t, uint16_t, uint64_t

from fastderp.dataplane.counters cimport Counters
from fastderp.dataplane.events cimport Event, Totals as EventTotals
from fastderp.dataplane.core cimport Peer, Session
from fastderp.dataplane.sys cimport tcp_counts

cdef struct SessionSnapshot:     # a copy taken under the session's output lock; caller's own
    uint64_t handle
    Peer peer
    uint64_t opened_ns
    uint16_t worker
    bint preferred
    bint active
    bint tls
    bint is_tcp
    bint has_tcp                 # the kernel returned its tcp_info
    size_t backlog_bytes
    uint8_t n_app_name
    uint8_t app_name[32]
    double senders
    EventTotals totals

cdef bint session_snapshot(Session* s, SessionSnapshot* seen, tcp_counts* info) noexcept nogil
cdef bint session_excuse(Session* s, uint64_t handle) noexcept nogil

# None for a slot without an open session; tcp_info also without a TCP socket.
cdef object session_info(Session* s)
cdef object tcp_info(Session* s)

cdef object event_object(Event* event)

# Reason and detail of a connection that the kernel has ended with an error number: those of a
# session that ends with it.
cdef tuple kernel_cause(int error)

cdef uint64_t counters_moved(const Counters* c) noexcept
cdef void counters_sum(Counters* total, const Counters* part) noexcept
cdef dict counters_dict(const Counters* c)
