# Deficit round robin with fair displacement; see fair_queue.pxd for the idea and the lock.

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from fastderp.dataplane.fifo cimport fifo_append, fifo_pop
from fastderp.dataplane.frame cimport FRAME_HEADER
from fastderp.dataplane.sys cimport count_leading_zeros

cdef enum:
    FIRST_SLOTS = 8
    N_COMPARED = 4
    SERVED_BITS = 8              # the fraction of `served` and `asked`
    RANK_BITS = SERVED_BITS + 10     # 1 KiB per rank
    MODEST = FLOW_QUANTUM << SERVED_BITS
    ASKED_MAX = 32 << RANK_BITS      # half of the ranks: 32 KiB, about 22 full-sized packets


cdef void flows_init(Flows* f, uint64_t secret) noexcept nogil:
    """Prepare zeroed flows. The secret need not be odd."""
    f.secret = secret | 1
    f.current = f.jumper = NO_FLOW


cdef inline uint64_t frame_sender(const uint8_t* frame, uint32_t n) noexcept nogil:
    # RecvPacket and ForwardPacket both begin with the sender's key. Sharing another sender's flow
    # takes a key with the same first 8 bytes. Only RecvPacket without a key (§6.6) may be shorter.
    cdef uint64_t sender = 0
    memcpy(&sender, frame + FRAME_HEADER, min(n - FRAME_HEADER, <uint32_t>sizeof(sender)))
    return sender if sender != 0 else 1


cdef uint32_t slot_find(const Flows* f, uint64_t sender) noexcept nogil:
    """Return the sender's slot, or the free one where it belongs.

    The hash is the highest bits of a product with a secret odd number, so senders cannot choose
    keys that collide.
    """
    cdef uint32_t i = <uint32_t>(((sender * f.secret) >> 32) * f.capacity >> 32)
    while f.slots[i].sender != 0 and f.slots[i].sender != sender:
        i = (i + 1) & (f.capacity - 1)
    return i


cdef void ring_link(Flows* f, uint32_t i, uint32_t following) noexcept nogil:
    """Insert a flow just before another one."""
    cdef uint32_t previous = f.slots[following].previous
    f.slots[i].next = following
    f.slots[i].previous = previous
    f.slots[previous].next = i
    f.slots[following].previous = i


cdef void ring_insert(Flows* f, uint32_t i) noexcept nogil:
    # A new flow comes last. A flow below its fair share comes next, so that its packets do not wait
    # for hundreds of others; only one at a time may, so that the others get at least every second
    # round.
    cdef Flow* flow = &f.slots[i]
    flow.deficit = 0
    f.n_active += 1
    if f.current == NO_FLOW:
        flow.previous = flow.next = f.current = i
        flow.deficit = FLOW_QUANTUM
    elif f.jumper == NO_FLOW and is_modest(f, flow):
        ring_link(f, i, f.slots[f.current].next)
        f.jumper = i
    else:
        ring_link(f, i, f.current)


cdef void round_advance(Flows* f) noexcept nogil:
    if f.current == f.jumper:
        f.jumper = NO_FLOW
    f.current = f.slots[f.current].next
    f.slots[f.current].deficit += FLOW_QUANTUM


cdef void ring_remove(Flows* f, uint32_t i) noexcept nogil:
    cdef Flow* flow = &f.slots[i]
    f.n_active -= 1
    if f.n_active == 0:
        f.current = f.jumper = NO_FLOW
        return
    if f.current == i:
        round_advance(f)
    if f.jumper == i:
        f.jumper = NO_FLOW
    f.slots[flow.previous].next = flow.next
    f.slots[flow.next].previous = flow.previous


# ---- the order of senders by `asked`

cdef inline bint is_modest(const Flows* f, const Flow* flow) noexcept nogil:
    return flow.asked <= f.served + MODEST


cdef inline bint is_wanting(const Flows* f, const Flow* flow) noexcept nogil:
    return flow.asked >> RANK_BITS >= f.served >> RANK_BITS


cdef inline void wanting_add(Flows* f, const Flow* flow, uint32_t step) noexcept nogil:
    f.n_wanting += step
    f.wanting[flow.asked >> RANK_BITS & N_RANKS - 1] += step


cdef inline void flow_ask(Flows* f, Flow* flow, uint32_t n_bytes) noexcept nogil:
    # An idle flow starts at `served`. ASKED_MAX bounds the lead of a flooding flow, so that it
    # recovers in bounded time.
    if is_wanting(f, flow):
        wanting_add(f, flow, <uint32_t>-1)
    flow.asked = min(max(flow.asked, f.served) + (<uint64_t>n_bytes << SERVED_BITS),
                     f.served + ASKED_MAX)
    wanting_add(f, flow, 1)


cdef void served_advance(Flows* f, uint64_t n_bytes) noexcept nogil:
    # Flows whose rank is below `served` have had their fair share.
    cdef uint64_t rank = f.served >> RANK_BITS
    f.served += (n_bytes << SERVED_BITS) // max(f.n_wanting, <uint32_t>1)
    while rank < f.served >> RANK_BITS and f.n_wanting:
        f.n_wanting -= f.wanting[rank & N_RANKS - 1]
        f.wanting[rank & N_RANKS - 1] = 0
        rank += 1


cdef void rank_enter(Flows* f, uint32_t i, uint32_t rank) noexcept nogil:
    # The flow enters last in its ring: just before the one that is next to lose a packet.
    cdef Flow* flow = &f.slots[i]
    cdef Flow* first
    flow.rank = rank
    if not f.ranks_used >> rank & 1:
        f.ranks_used |= <uint64_t>1 << rank
        f.ranks[rank] = flow.rank_previous = flow.rank_next = i
        return
    first = &f.slots[f.ranks[rank]]
    flow.rank_next = f.ranks[rank]
    flow.rank_previous = first.rank_previous
    f.slots[first.rank_previous].rank_next = i
    first.rank_previous = i


cdef void rank_leave(Flows* f, uint32_t i) noexcept nogil:
    cdef Flow* flow = &f.slots[i]
    if flow.rank_next == i:
        f.ranks_used &= ~(<uint64_t>1 << flow.rank)
    elif f.ranks[flow.rank] == i:
        f.ranks[flow.rank] = flow.rank_next
    f.slots[flow.rank_previous].rank_next = flow.rank_next
    f.slots[flow.rank_next].rank_previous = flow.rank_previous
    flow.rank = NO_FLOW


cdef void rank_update(Flows* f, uint32_t i) noexcept nogil:
    """Move a flow to the ring of its rank: those furthest above their share are found at once."""
    cdef uint32_t rank = NO_FLOW
    if f.slots[i].packets.n:
        rank = <uint32_t>(f.slots[i].asked >> RANK_BITS) % N_RANKS
    if rank == f.slots[i].rank:
        return
    if f.slots[i].rank != NO_FLOW:
        rank_leave(f, i)
    if rank != NO_FLOW:
        rank_enter(f, i, rank)


cdef inline uint32_t rank_greediest(const Flows* f) noexcept nogil:
    """Return the rank furthest ahead of `served`; if all are behind it, the nearest.

    Only ranks of flows with packets count. The ranks form a circle: flows use half of it ahead of
    `served` (ASKED_MAX) and few ranks behind it, because each is served a quantum in every round.
    """
    cdef uint32_t now = <uint32_t>(f.served >> RANK_BITS) % N_RANKS
    cdef uint64_t turned = f.ranks_used >> now | (f.ranks_used << (N_RANKS - now) if now else 0)
    cdef uint64_t ahead = turned & ((<uint64_t>1 << N_RANKS // 2 + 1) - 1)
    return (now + 63 - count_leading_zeros(ahead if ahead else turned)) % N_RANKS


# ---- slots

cdef inline uint32_t slots_for(uint32_t n_flows) noexcept nogil:
    # The capacity for n_flows and one more, which fill a quarter to a half of the slots.
    cdef uint32_t capacity = FIRST_SLOTS
    while capacity < 2 * (n_flows + 1):
        capacity *= 2
    return capacity


cdef inline bint slots_are_full(const Flows* f) noexcept nogil:
    return 4 * (f.n_used + 1) > 3 * f.capacity


cdef uint64_t flows_growth_bytes(const Flows* f) noexcept nogil:
    """Return by how many bytes the next push may grow the slots, without remembered senders."""
    cdef uint32_t needed = slots_for(f.n_active) if slots_are_full(f) else 0
    return (needed - f.capacity) * sizeof(Flow) if needed > f.capacity else 0


cdef inline bint is_worth_a_slot(const Flows* f, const Flow* flow) noexcept nogil:
    return flow.sender != 0 and flow.packets.n == 0 and flow.asked > f.served


cdef uint32_t remembered_count(const Flows* f) noexcept nogil:
    """Return the number of senders to remember, up to the slots for them.

    They have no packets, but their `asked` exceeds `served`.
    """
    cdef uint32_t n = 0
    cdef uint32_t i
    for i in range(f.capacity):
        n += is_worth_a_slot(f, &f.slots[i])
    return min(n, <uint32_t>REMEMBERED_SLOTS // 2
               - min(f.n_active, <uint32_t>REMEMBERED_SLOTS // 2))


cdef bint slots_grow(Flows* f, bint remember) noexcept nogil:
    # Flows with packets move to the new slots in their order, and with `remember` also senders
    # above their share: otherwise a flooding sender that lost all packets would start with a full
    # share. Other senders are removed.
    cdef Flows fresh
    cdef uint32_t i = f.current
    cdef uint32_t left = f.n_active
    cdef uint32_t n_remembered = remembered_count(f) if remember else 0
    cdef uint32_t slot
    memset(&fresh, 0, sizeof(fresh))
    flows_init(&fresh, f.secret)
    fresh.served = f.served
    fresh.capacity = slots_for(f.n_active + n_remembered)
    fresh.slots = <Flow*>calloc(fresh.capacity, sizeof(Flow))
    if fresh.slots is NULL:
        return False
    fresh.n_used = f.n_active + n_remembered
    while left:
        slot = flow_move(&fresh, &f.slots[i])
        fresh.jumper = slot      # keeps the next flow from being inserted ahead
        ring_insert(&fresh, slot)
        fresh.slots[slot].deficit = f.slots[i].deficit
        rank_update(&fresh, slot)
        i = f.slots[i].next
        left -= 1
    fresh.jumper = NO_FLOW
    i = 0
    while n_remembered:
        if is_worth_a_slot(f, &f.slots[i]):
            flow_move(&fresh, &f.slots[i])
            n_remembered -= 1
        i += 1
    fresh.n = f.n
    fresh.bytes = f.bytes
    free(f.slots)
    f[0] = fresh
    return True


cdef uint32_t flow_move(Flows* into, const Flow* flow) noexcept nogil:
    cdef uint32_t slot = slot_find(into, flow.sender)
    into.slots[slot] = flow[0]
    into.slots[slot].rank = NO_FLOW
    if is_wanting(into, flow):
        wanting_add(into, flow, 1)
    return slot


# ---- packets

cdef uint32_t flows_arrive(Flows* f, const uint8_t* frame, uint32_t n) noexcept nogil:
    """Charge a sender for a packet, a frame of n bytes, and return its flow, NO_FLOW for a new one.

    The result is valid for the functions below until a packet is pushed.
    """
    cdef uint32_t own
    if f.capacity == 0:
        return NO_FLOW
    own = slot_find(f, frame_sender(frame, n))
    if f.slots[own].sender == 0:
        return NO_FLOW
    flow_ask(f, &f.slots[own], n)
    rank_update(f, own)
    return own


cdef bint flows_push(Flows* f, uint32_t own, Node* node, bint remember) noexcept nogil:
    """Queue a packet in its flow; own is the result of flows_arrive. False without memory."""
    cdef uint32_t i = own
    if own == NO_FLOW:
        if slots_are_full(f) and not slots_grow(f, remember):
            return False
        i = slot_find(f, frame_sender(node.data, node.n))
        f.slots[i].sender = frame_sender(node.data, node.n)
        f.slots[i].asked = f.served
        f.slots[i].rank = NO_FLOW
        f.n_used += 1
        wanting_add(f, &f.slots[i], 1)
        flow_ask(f, &f.slots[i], node.n)
    fifo_append(&f.slots[i].packets, node)
    if f.slots[i].packets.n == 1:
        ring_insert(f, i)
        rank_update(f, i)
    f.n += 1
    f.bytes += node.n
    return True


cdef void flows_bypass(Flows* f, uint64_t n_bytes) noexcept nogil:
    """Count bytes that were written past an empty lane as due to its senders, too."""
    served_advance(f, n_bytes)


cdef Node* flow_pop(Flows* f, uint32_t i) noexcept nogil:
    cdef Node* node = fifo_pop(&f.slots[i].packets)
    f.n -= 1
    f.bytes -= node.n
    if f.slots[i].packets.n == 0:
        rank_leave(f, i)
        ring_remove(f, i)
    return node


cdef Node* flows_pop(Flows* f) noexcept nogil:
    """Remove the next packet by deficit round robin; return NULL when the queue is empty."""
    cdef Flow* flow
    if f.n == 0:
        return NULL
    while True:
        flow = &f.slots[f.current]
        if flow.packets.head.n <= flow.deficit:
            flow.deficit -= flow.packets.head.n
            served_advance(f, flow.packets.head.n)
            return flow_pop(f, f.current)
        round_advance(f)


cdef Node* flows_pop_older(Flows* f, uint32_t own, uint64_t since_ns) noexcept nogil:
    """Remove a flow's oldest packet if it was queued before since_ns, else return NULL."""
    if own != NO_FLOW and f.slots[own].packets.n and f.slots[own].packets.head.queued_ns < since_ns:
        return flow_pop(f, own)
    return NULL


cdef uint32_t fattest_pick(Flows* f, uint32_t rank) noexcept nogil:
    """Return the flow with most bytes among the next few of a rank.

    Each call continues where the previous one stopped, so all flows of the rank are compared in
    time.
    """
    cdef uint32_t i = f.ranks[rank]
    cdef uint32_t fattest = i
    cdef int left = N_COMPARED
    while left:
        if f.slots[i].packets.bytes > f.slots[fattest].packets.bytes:
            fattest = i
        i = f.slots[i].rank_next
        left -= 1
    f.ranks[rank] = i
    return fattest


cdef Node* flows_pop_excess(Flows* f, uint32_t own) noexcept nogil:
    """Remove the packet to displace for a new one of the flow `own`; NULL to drop the new one.

    Among the flows that have asked for most above their fair share, one with many bytes loses its
    oldest packet.
    """
    cdef uint32_t rank
    cdef uint32_t fattest
    cdef Flow* flow
    if f.n == 0:
        return NULL
    rank = rank_greediest(f)
    if own == NO_FLOW:
        return flow_pop(f, fattest_pick(f, rank))
    flow = &f.slots[own]
    if flow.packets.n == 0 and flow.asked >> RANK_BITS > f.slots[f.ranks[rank]].asked >> RANK_BITS:
        return NULL
    fattest = fattest_pick(f, rank)
    if flow.rank == rank and flow.packets.bytes >= f.slots[fattest].packets.bytes:
        return flow_pop(f, own)
    return flow_pop(f, fattest)


cdef void flows_free(Flows* f) noexcept nogil:
    """Free the slots of an empty set of flows."""
    free(f.slots)
    f.slots = NULL
    f.capacity = 0
