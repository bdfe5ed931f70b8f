# The packets that wait in one lane of a session, by sender, served by deficit round robin. In a
# full lane the sender that has asked for most above its fair share loses its oldest packet. The
# session's output lock guards everything.

# `served` is the fair share in bytes, since the flows were made, of a sender that always has
# packets: each byte that leaves the lane is divided equally among such senders. A sender's `asked`
# is the level of `served` at which its fair share covers all bytes that it sent, lost packets
# included: it stays near `served` for a sender below its fair share, and above it for a sender that
# exceeds its share.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastderp.dataplane.fifo cimport Fifo, Node

cdef enum:
    FLOW_QUANTUM = 2048          # bytes per round: more than a full-sized WireGuard packet
    NO_FLOW = 0xFFFFFFFF
    N_RANKS = 64                 # one bit each in `ranks_used`
    # limit of slots for senders above their share that have no packets
    REMEMBERED_SLOTS = 4096

cdef struct Flow:                # one cache line; guarded like Flows
    uint64_t sender              # the first bytes of its key; 0 = this slot was never used
    uint64_t asked               # in 1/256 bytes, as `served`
    Fifo packets
    uint32_t deficit             # bytes it may still send in this round
    uint32_t previous            # ring of the flows with packets; undefined for others
    uint32_t next
    uint32_t rank                # of `asked`; NO_FLOW = no packets
    uint32_t rank_previous       # ring of the flows of this rank
    uint32_t rank_next

cdef struct Flows:               # guarded by the session's output lock
    uint64_t secret              # odd; key of the table's hash, because senders choose their keys
    uint64_t served              # in 1/256 bytes
    uint32_t n_wanting           # flows whose `asked` has the rank of `served` or a higher one
    uint32_t wanting[N_RANKS]    # the same by rank
    Flow* slots                  # open addressing by sender; NULL until the first packet
    uint32_t capacity            # power of two
    uint32_t n_used              # slots with a sender
    uint32_t n_active            # flows with packets
    uint32_t current             # the flow being served; NO_FLOW without packets
    # the flow that was inserted ahead of its round, until the next regular one; or NO_FLOW
    uint32_t jumper
    uint32_t n                   # packets
    uint32_t bytes
    uint64_t ranks_used          # a bit for each rank that has flows
    uint32_t ranks[N_RANKS]      # by rank, the flow that is next to lose a packet

cdef void flows_init(Flows* f, uint64_t secret) noexcept nogil
cdef uint64_t flows_growth_bytes(const Flows* f) noexcept nogil
cdef uint32_t flows_arrive(Flows* f, const uint8_t* frame, uint32_t n) noexcept nogil
cdef bint flows_push(Flows* f, uint32_t own, Node* node, bint remember) noexcept nogil
cdef void flows_bypass(Flows* f, uint64_t n_bytes) noexcept nogil
cdef Node* flows_pop(Flows* f) noexcept nogil
cdef Node* flows_pop_older(Flows* f, uint32_t own, uint64_t since_ns) noexcept nogil
cdef Node* flows_pop_excess(Flows* f, uint32_t own) noexcept nogil
cdef void flows_free(Flows* f) noexcept nogil
