# The packets that wait in one lane of a session, by sender: each sender gets its turn (deficit round robin), and when
# the room is used up the sender with the most of it loses its oldest packet. Guarded by the session's output lock.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastderp.dataplane.fifo cimport Fifo, Node

cdef enum:
    FLOW_QUANTUM = 2048          # bytes per turn: more than a full-sized WireGuard packet
    NO_FLOW = 0xFFFFFFFF
    N_RANKS = 24                 # by the length of a flow's bytes in bits; the last one holds all that is longer

cdef struct Flow:
    uint64_t sender              # the first bytes of its key; 0 = this slot was never used
    Fifo packets
    uint32_t deficit             # bytes it may still send this turn
    uint32_t previous            # ring of the flows that have packets; meaningless for others
    uint32_t next
    uint32_t rank                # 0 = it has no packets
    uint32_t rank_previous       # ring of the flows of this rank
    uint32_t rank_next

cdef struct Flows:
    uint64_t secret              # of the table's hash, since senders choose their keys; odd
    Flow* slots                  # open addressing by sender; NULL until the first packet
    uint32_t capacity            # power of two
    uint32_t n_used              # slots with a sender
    uint32_t n_active            # flows with packets
    uint32_t current             # whose turn it is; NO_FLOW when there are no packets
    uint32_t n                   # packets
    uint32_t bytes
    uint32_t ranks_used          # a bit for each rank that has flows
    uint32_t ranks[N_RANKS]      # one flow of it, the next to lose a packet

cdef void flows_init(Flows* f, uint64_t secret) noexcept nogil
cdef uint64_t flows_growth_bytes(const Flows* f) noexcept nogil
cdef bint flows_push(Flows* f, Node* node) noexcept nogil
cdef Node* flows_pop(Flows* f) noexcept nogil
cdef Node* flows_pop_older(Flows* f, const uint8_t* newcomer, uint32_t n, uint64_t since_ns) noexcept nogil
cdef Node* flows_pop_excess(Flows* f, const uint8_t* newcomer, uint32_t n) noexcept nogil
cdef void flows_free(Flows* f) noexcept nogil
