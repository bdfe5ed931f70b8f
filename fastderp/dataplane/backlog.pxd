# The backlog of one session: whole frames that its socket did not take (PROTOCOL §6.5). It exists
# only while it has frames, or as a session's spare. The session's output lock guards every field
# except the process-wide byte count. A frame that is partly written is never dropped.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastderp.dataplane.fifo cimport Fifo, Node
from fastderp.dataplane.fair_queue cimport Flows
from fastderp.dataplane.sys cimport iovec

cdef enum:
    LANE_BYTES = 262144          # limit of a lane of packets, disco or data
    LINK_LANE_BYTES = 4194304    # the same towards another relay, whose receivers share the lanes
    LANE_PACKETS = 32            # packets that wait regardless of their size (derper's queue depth)
    CONTROL_BYTES = 262144       # a peer with more bytes of control frames waiting is closed
    MESH_CONTROL_BYTES = 16777216    # the same for a mesh peer: PeerPresent for 300,000 clients
    NODE_BYTES = 48              # memory of a frame besides its bytes: head of Node and of malloc
    # 1/RESERVED_SHARE of the global cap is reserved: within it lanes of packets stop growing at
    # MIN_LANE_BYTES, two packets of the usual size
    RESERVED_SHARE = 8
    MIN_LANE_BYTES = 4096

cdef enum:                       # lanes, in the order they are written
    LANE_WIRE = 0                # the rest of a frame or of sealed records
    LANE_CONTROL = 1             # frames of the relay itself; never dropped
    # These two hold the packets to write next; `flows` holds the others.
    LANE_DISCO = 2
    LANE_DATA = 3
    N_LANES = 4

cdef struct Backlog:             # guarded by the session's output lock
    # LANE_BYTES or LINK_LANE_BYTES; 0 = only the number of packets counts, until half of the
    # global cap is used
    uint32_t lane_bytes
    uint32_t lane_packets        # LANE_PACKETS, or the operator's queue depth
    uint32_t control_bytes       # CONTROL_BYTES or MESH_CONTROL_BYTES
    # packets that waited longer are dropped instead of delivered late; 0 = no limit
    uint64_t age_ns
    bint has_pong                # a pong waits; output.pyx keeps this up to date
    Fifo lanes[N_LANES]
    Flows flows[N_LANES]         # by lane; used for disco and data only

# Shared by all sessions of a plane: the memory of waiting frames, with its overhead.
cdef struct BacklogBudget:
    uint64_t cap_bytes           # fixed; packets respect it; backlog_push describes the exceptions
    uint64_t bytes               # atomic

# Called for each dropped frame.
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
cdef void backlog_take(Backlog* b, uint32_t n) noexcept nogil


cdef inline bint backlog_empty(Backlog* b) noexcept nogil:
    return (b.lanes[LANE_WIRE].head is NULL and b.lanes[LANE_CONTROL].head is NULL
            and b.lanes[LANE_DISCO].head is NULL and b.flows[LANE_DISCO].n == 0
            and b.lanes[LANE_DATA].head is NULL and b.flows[LANE_DATA].n == 0)


cdef inline size_t backlog_bytes(Backlog* b) noexcept nogil:
    return (<size_t>b.lanes[LANE_WIRE].bytes + b.lanes[LANE_CONTROL].bytes
            + b.lanes[LANE_DISCO].bytes + b.flows[LANE_DISCO].bytes
            + b.lanes[LANE_DATA].bytes + b.flows[LANE_DATA].bytes)
