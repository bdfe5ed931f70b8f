from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from fastderp.dataplane.fifo cimport fifo_append, fifo_pop
from fastderp.dataplane.frame cimport FRAME_HEADER

cdef extern from *:
    int count_leading_zeros "__builtin_clz"(unsigned int x) noexcept nogil

cdef enum:
    FIRST_SLOTS = 8


cdef void flows_init(Flows* f, uint64_t secret) noexcept nogil:
    """Prepare zeroed flows. The secret need not be odd."""
    f.secret = secret | 1
    f.current = NO_FLOW


cdef inline uint64_t frame_sender(const uint8_t* frame, uint32_t n) noexcept nogil:
    # RecvPacket and ForwardPacket both begin with the sender's key. Who wants to share another's turn has to find a
    # key with the same first 8 bytes. Only the old RecvPacket without a key (§6.6) may be shorter than those.
    cdef uint64_t sender = 0
    memcpy(&sender, frame + FRAME_HEADER, min(n - FRAME_HEADER, <uint32_t>sizeof(sender)))
    return sender if sender != 0 else 1


cdef uint32_t slot_find(const Flows* f, uint64_t sender) noexcept nogil:
    # The sender's slot, or the free one where it belongs. The highest bits of a product with an unknown odd number: of
    # those nobody can say which senders share them.
    cdef uint32_t i = <uint32_t>(((sender * f.secret) >> 32) * f.capacity >> 32)
    while f.slots[i].sender != 0 and f.slots[i].sender != sender:
        i = (i + 1) & (f.capacity - 1)
    return i


cdef void ring_insert(Flows* f, uint32_t i) noexcept nogil:
    # Last in turn: just before the current one.
    cdef Flow* flow = &f.slots[i]
    cdef Flow* current
    flow.deficit = 0
    f.n_active += 1
    if f.current == NO_FLOW:
        flow.previous = flow.next = f.current = i
        flow.deficit = FLOW_QUANTUM
        return
    current = &f.slots[f.current]
    flow.next = f.current
    flow.previous = current.previous
    f.slots[current.previous].next = i
    current.previous = i


cdef void turn_pass(Flows* f) noexcept nogil:
    f.current = f.slots[f.current].next
    f.slots[f.current].deficit += FLOW_QUANTUM


cdef void ring_remove(Flows* f, uint32_t i) noexcept nogil:
    cdef Flow* flow = &f.slots[i]
    f.n_active -= 1
    if f.n_active == 0:
        f.current = NO_FLOW
        return
    if f.current == i:
        turn_pass(f)
    f.slots[flow.previous].next = flow.next
    f.slots[flow.next].previous = flow.previous


cdef inline uint32_t rank_of(uint32_t n_bytes) noexcept nogil:
    return min(32 - count_leading_zeros(n_bytes), <uint32_t>N_RANKS - 1) if n_bytes else 0


cdef void rank_enter(Flows* f, uint32_t i, uint32_t rank) noexcept nogil:
    # Last in its ring: just before the one that is next to lose.
    cdef Flow* flow = &f.slots[i]
    cdef Flow* first
    flow.rank = rank
    if not f.ranks_used >> rank & 1:
        f.ranks_used |= <uint32_t>1 << rank
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
        f.ranks_used &= ~(<uint32_t>1 << flow.rank)
    elif f.ranks[flow.rank] == i:
        f.ranks[flow.rank] = flow.rank_next
    f.slots[flow.rank_previous].rank_next = flow.rank_next
    f.slots[flow.rank_next].rank_previous = flow.rank_previous
    flow.rank = 0


cdef void rank_update(Flows* f, uint32_t i) noexcept nogil:
    """Keep a flow among those that hold about as many bytes: who holds most is then known without looking at all."""
    cdef uint32_t rank = rank_of(f.slots[i].packets.bytes)
    if rank == f.slots[i].rank:
        return
    if f.slots[i].rank:
        rank_leave(f, i)
    if rank:
        rank_enter(f, i, rank)


cdef inline uint32_t slots_needed(const Flows* f) noexcept nogil:
    # For those with packets and a newcomer: a quarter to a half of the slots are in use then.
    cdef uint32_t capacity = FIRST_SLOTS
    while capacity < 2 * (f.n_active + 1):
        capacity *= 2
    return capacity


cdef inline bint slots_are_full(const Flows* f) noexcept nogil:
    return 4 * (f.n_used + 1) > 3 * f.capacity


cdef uint64_t flows_growth_bytes(const Flows* f) noexcept nogil:
    """Return what the slots may grow by when another packet is pushed."""
    cdef uint32_t needed = slots_needed(f) if slots_are_full(f) else 0
    return (needed - f.capacity) * sizeof(Flow) if needed > f.capacity else 0


cdef bint slots_grow(Flows* f) noexcept nogil:
    # Only flows with packets move on, in the order of their turns: senders of long ago are forgotten.
    cdef Flows fresh
    cdef uint32_t i = f.current
    cdef uint32_t left = f.n_active
    cdef uint32_t slot
    memset(&fresh, 0, sizeof(fresh))
    flows_init(&fresh, f.secret)
    fresh.capacity = slots_needed(f)
    fresh.slots = <Flow*>calloc(fresh.capacity, sizeof(Flow))
    if fresh.slots is NULL:
        return False
    while left:
        slot = slot_find(&fresh, f.slots[i].sender)
        fresh.slots[slot] = f.slots[i]
        ring_insert(&fresh, slot)
        fresh.slots[slot].deficit = f.slots[i].deficit
        fresh.slots[slot].rank = 0
        rank_update(&fresh, slot)
        i = f.slots[i].next
        left -= 1
    fresh.n_used = f.n_active
    fresh.n = f.n
    fresh.bytes = f.bytes
    free(f.slots)
    f[0] = fresh
    return True


cdef bint flows_push(Flows* f, Node* node) noexcept nogil:
    """Queue a packet behind its sender's others. False without memory."""
    cdef uint64_t sender = frame_sender(node.data, node.n)
    cdef uint32_t i
    if slots_are_full(f) and not slots_grow(f):
        return False
    i = slot_find(f, sender)
    if f.slots[i].sender == 0:
        f.slots[i].sender = sender
        f.n_used += 1
    if f.slots[i].packets.n == 0:
        ring_insert(f, i)
    fifo_append(&f.slots[i].packets, node)
    rank_update(f, i)
    f.n += 1
    f.bytes += node.n
    return True


cdef Node* flow_pop(Flows* f, uint32_t i) noexcept nogil:
    cdef Node* node = fifo_pop(&f.slots[i].packets)
    rank_update(f, i)
    f.n -= 1
    f.bytes -= node.n
    if f.slots[i].packets.n == 0:
        ring_remove(f, i)
    return node


cdef Node* flows_pop(Flows* f) noexcept nogil:
    """Take out the packet whose sender's turn it is; NULL when there is none."""
    cdef Flow* flow
    if f.n == 0:
        return NULL
    while True:
        flow = &f.slots[f.current]
        if flow.packets.head.n <= flow.deficit:
            flow.deficit -= flow.packets.head.n
            return flow_pop(f, f.current)
        turn_pass(f)


cdef Node* flows_pop_older(Flows* f, const uint8_t* newcomer, uint32_t n, uint64_t since_ns) noexcept nogil:
    """Take out the oldest packet of the sender of newcomer, a frame of n bytes, if it was queued before since_ns."""
    cdef uint32_t own
    if f.n == 0:
        return NULL
    own = slot_find(f, frame_sender(newcomer, n))
    if f.slots[own].packets.n and f.slots[own].packets.head.queued_ns < since_ns:
        return flow_pop(f, own)
    return NULL


cdef Node* flows_pop_excess(Flows* f, const uint8_t* newcomer, uint32_t n) noexcept nogil:
    """Take out the packet that has to go so that the newcomer finds room; NULL when there is none.

    newcomer is a frame of n bytes. What goes is the oldest packet of its own sender if that one has its fair share
    already, otherwise the oldest of whoever has most, give or take a factor of two.
    """
    cdef uint32_t own
    cdef uint32_t rank
    cdef uint32_t i
    if f.n == 0:
        return NULL
    own = slot_find(f, frame_sender(newcomer, n))
    if <uint64_t>f.slots[own].packets.bytes * f.n_active >= f.bytes and f.slots[own].packets.n:
        return flow_pop(f, own)
    rank = 31 - count_leading_zeros(f.ranks_used)
    i = f.ranks[rank]
    f.ranks[rank] = f.slots[i].rank_next     # they lose in turn
    return flow_pop(f, i)


cdef void flows_free(Flows* f) noexcept nogil:
    """Free the slots of an empty set of flows."""
    free(f.slots)
    f.slots = NULL
    f.capacity = 0
