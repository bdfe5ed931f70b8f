# The backlog of one session: frames its socket did not take, waiting (PROTOCOL §6.5). Exists only
# while there is something in it. Every field is guarded by the session's output lock, except the
# process-wide byte count. Frames are copied in whole; a frame of which the wire has seen a part is
# never dropped.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastderp.dataplane.fifo cimport Fifo, Node
from fastderp.dataplane.fair_queue cimport Flows
from fastderp.dataplane.sys cimport iovec

cdef enum:
    LANE_BYTES = 262144          # of disco, and of data, this much may wait …
    LINK_LANE_BYTES = 4194304    # (towards another relay, whose many receivers share the lanes)
    LANE_PACKETS = 32            # … and never less than this many packets (derper's queue depth)
    CONTROL_BYTES = 262144       # a peer that lets this much of control frames pile up is closed
    MESH_CONTROL_BYTES = 16777216    # (a mesh peer: it may be told of 300,000 clients at once)
    # of memory that a frame takes besides its own: Node's head, malloc's
    NODE_BYTES = 48
    # above all but one part in so many of the global cap no lane of packets grows …
    RESERVED_SHARE = 8
    # … beyond this, which everybody gets: two packets of the usual size
    MIN_LANE_BYTES = 4096

cdef enum:                       # lanes, in the order they are written
    LANE_WIRE = 0                # the rest of a frame, or of sealed records
    LANE_CONTROL = 1             # frames of the relay itself; never dropped
    # of these two: the packets whose turn has come; the others are in their `flows`
    LANE_DISCO = 2
    LANE_DATA = 3
    N_LANES = 4

cdef struct Backlog:
    # LANE_BYTES or LINK_LANE_BYTES; 0 where only the number of packets counts, until half of the
    # global cap is used
    uint32_t lane_bytes
    uint32_t lane_packets        # LANE_PACKETS, or what the operator wants
    uint32_t control_bytes       # CONTROL_BYTES or MESH_CONTROL_BYTES
    # a packet that has waited longer is not worth writing any more; 0 = any is
    uint64_t age_ns
    bint has_pong                # a pong waits; who queues and writes frames says so
    Fifo lanes[N_LANES]
    Flows flows[N_LANES]         # by lane; of disco and data only

# shared by all sessions of a plane: memory, frames and what is needed to keep them
cdef struct BacklogBudget:
    uint64_t cap_bytes           # packets keep to it; see backlog_push for what may exceed it
    uint64_t bytes               # atomic

# Called for each frame thrown away.
ctypedef void (*drop_fn)(void* context, const Node* node) noexcept nogil

cdef Backlog* backlog_new(uint32_t lane_bytes, uint32_t lane_packets, uint32_t control_bytes,
                          uint64_t age_ns, uint64_t secret) noexcept nogil
cdef void backlog_free(Backlog* b, BacklogBudget* budget, drop_fn drop,
                       void* context) noexcept nogil
cdef bint backlog_push(Backlog* b, BacklogBudget* budget, uint8_t lane, const uint8_t* frame,
                       uint32_t n,
                       uint32_t offset, uint64_t now_ns, drop_fn drop, void* context) noexcept nogil
cdef bint backlog_over_cap(const Backlog* b, const BacklogBudget* budget, uint32_t n) noexcept nogil
cdef int backlog_peek(Backlog* b, BacklogBudget* budget, iovec* iov, int n_iov, size_t limit_bytes,
                      uint64_t now_ns,
                      drop_fn drop, void* context) noexcept nogil
cdef Node* backlog_pop(Backlog* b, BacklogBudget* budget) noexcept nogil
cdef void backlog_take(Backlog* b, BacklogBudget* budget, uint32_t n) noexcept nogil


cdef inline bint backlog_empty(Backlog* b) noexcept nogil:
    return (b.lanes[LANE_WIRE].head is NULL and b.lanes[LANE_CONTROL].head is NULL
            and b.lanes[LANE_DISCO].head is NULL and b.flows[LANE_DISCO].n == 0
            and b.lanes[LANE_DATA].head is NULL and b.flows[LANE_DATA].n == 0)


cdef inline size_t backlog_bytes(Backlog* b) noexcept nogil:
    return (<size_t>b.lanes[LANE_WIRE].bytes + b.lanes[LANE_CONTROL].bytes
            + b.lanes[LANE_DISCO].bytes + b.flows[LANE_DISCO].bytes
            + b.lanes[LANE_DATA].bytes + b.flows[LANE_DATA].bytes)
