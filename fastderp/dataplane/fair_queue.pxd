# The packets that wait in one lane of a session, by sender. Each sender gets its turn (deficit
# round robin). When the room is used up, the sender that has asked for most above its fair share
# loses its oldest packet. Guarded by the session's output lock.
#
# `served` is what a sender that always wants more has been due since the flows were made: each byte
# that leaves the lane is due in equal parts to those that want more. A sender's `asked` is the
# level of `served` at which it will have been due all that it sent, lost packets included: it stays
# near `served` for a sender below its fair share, and runs ahead of it for one above.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastderp.dataplane.fifo cimport Fifo, Node

cdef enum:
    FLOW_QUANTUM = 2048          # bytes per turn: more than a full-sized WireGuard packet
    NO_FLOW = 0xFFFFFFFF
    N_RANKS = 64                 # a bit each in `ranks_used`
    # the most for the sake of senders that have asked for too much and have nothing waiting
    REMEMBERED_SLOTS = 4096

cdef struct Flow:                # one cache line
    uint64_t sender              # the first bytes of its key; 0 = this slot was never used
    uint64_t asked               # in 1/256 bytes, as `served`
    Fifo packets
    uint32_t deficit             # bytes it may still send this turn
    uint32_t previous            # ring of the flows that have packets; meaningless for others
    uint32_t next
    uint32_t rank                # of `asked`; NO_FLOW = it has no packets
    uint32_t rank_previous       # ring of the flows of this rank
    uint32_t rank_next

cdef struct Flows:
    uint64_t secret              # of the table's hash, since senders choose their keys; odd
    uint64_t served              # in 1/256 bytes
    uint32_t n_wanting           # flows whose `asked` is of the rank of `served` or ahead of it …
    uint32_t wanting[N_RANKS]    # … by rank
    Flow* slots                  # open addressing by sender; NULL until the first packet
    uint32_t capacity            # power of two
    uint32_t n_used              # slots with a sender
    uint32_t n_active            # flows with packets
    uint32_t current             # whose turn it is; NO_FLOW when there are no packets
    # the flow that was let in ahead of its turn, until the next regular turn; or NO_FLOW
    uint32_t jumper
    uint32_t n                   # packets
    uint32_t bytes
    uint64_t ranks_used          # a bit for each rank that has flows
    uint32_t ranks[N_RANKS]      # one flow of it, the next to lose a packet

cdef void flows_init(Flows* f, uint64_t secret) noexcept nogil
cdef uint64_t flows_growth_bytes(const Flows* f) noexcept nogil
cdef uint32_t flows_arrive(Flows* f, const uint8_t* frame, uint32_t n) noexcept nogil
cdef bint flows_push(Flows* f, uint32_t own, Node* node, bint remember) noexcept nogil
cdef void flows_bypass(Flows* f, uint64_t n_bytes) noexcept nogil
cdef Node* flows_pop(Flows* f) noexcept nogil
cdef Node* flows_pop_older(Flows* f, uint32_t own, uint64_t since_ns) noexcept nogil
cdef Node* flows_pop_excess(Flows* f, uint32_t own) noexcept nogil
cdef void flows_free(Flows* f) noexcept nogil
