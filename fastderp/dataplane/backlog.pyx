# Queueing, displacing and taking frames; see backlog.pxd for the owner and the lock.

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from fastderp.dataplane.fifo cimport fifo_append, fifo_pop
from fastderp.dataplane.fair_queue cimport (
    NO_FLOW, REMEMBERED_SLOTS, Flow, Flows, flows_arrive, flows_free, flows_growth_bytes,
    flows_init, flows_pop, flows_pop_excess, flows_pop_older, flows_push,
)
from fastderp.dataplane.sys cimport atomic_add_u64, atomic_peek_u64, atomic_sub_u64


cdef Backlog* backlog_new(uint32_t lane_bytes, uint32_t lane_packets, uint32_t control_bytes,
                          uint64_t age_ns, uint64_t secret) noexcept nogil:
    cdef Backlog* b = <Backlog*>calloc(1, sizeof(Backlog))
    if b is not NULL:
        b.lane_bytes = lane_bytes
        b.lane_packets = lane_packets
        flows_init(&b.flows[LANE_DISCO], secret)
        flows_init(&b.flows[LANE_DATA], secret)
        b.control_bytes = control_bytes
        b.age_ns = age_ns
    return b


cdef void backlog_free(Backlog* b, BacklogBudget* budget, drop_fn drop,
                       void* context) noexcept nogil:
    """Free the backlog; call drop for each frame in it."""
    cdef Node* node
    while not backlog_empty(b):
        node = backlog_pop(b, budget)
        drop(context, node)
        free(node)
    atomic_sub_u64(
        &budget.bytes,
        (<uint64_t>b.flows[LANE_DISCO].capacity + b.flows[LANE_DATA].capacity) * sizeof(Flow))
    flows_free(&b.flows[LANE_DISCO])
    flows_free(&b.flows[LANE_DATA])
    free(b)


cdef inline bint budget_exceeds(const BacklogBudget* budget, uint64_t more_bytes,
                                uint64_t bytes) noexcept nogil:
    # True when more_bytes would bring all backlogs together above `bytes`.
    return atomic_peek_u64(&budget.bytes) + more_bytes > bytes


cdef inline void node_charge(BacklogBudget* budget, const Node* node) noexcept nogil:
    atomic_add_u64(&budget.bytes, node.n + NODE_BYTES)


cdef inline void node_refund(BacklogBudget* budget, const Node* node) noexcept nogil:
    atomic_sub_u64(&budget.bytes, node.n + NODE_BYTES)


cdef inline Node* node_new(BacklogBudget* budget, uint8_t lane, const uint8_t* frame, uint32_t n,
                           uint32_t offset, uint64_t now_ns) noexcept nogil:
    cdef Node* node = <Node*>malloc(sizeof(Node) + n)
    if node is not NULL:
        node.queued_ns = now_ns
        node.n = n
        node.offset = offset
        node.lane = lane
        memcpy(node.data, frame, n)
        node_charge(budget, node)
    return node


cdef inline uint32_t lane_count(const Backlog* b, uint8_t lane) noexcept nogil:
    return b.lanes[lane].n + b.flows[lane].n


cdef inline uint64_t lane_weight(const Backlog* b, uint8_t lane) noexcept nogil:
    # The weight is memory, because tiny packets need more memory for overhead than for bytes. It
    # counts active senders only; the table of senders is less than four times as large as they
    # need.
    return (<uint64_t>b.lanes[lane].bytes + b.flows[lane].bytes
            + <uint64_t>lane_count(b, lane) * NODE_BYTES
            + b.flows[lane].n_active * sizeof(Flow))


cdef struct Room:                # the limits of a lane when a packet arrives; on the stack
    bint has_places              # memory is plentiful: lane_packets wait regardless of their size
    # the lane keeps its packets but does not grow: sessions that fill the cap leave MIN_LANE_BYTES
    # to every other and displace only their own packets
    bint over_reserve
    uint64_t limit_bytes         # for the lane's weight


cdef Room lane_room(const Backlog* b, uint8_t lane, const BacklogBudget* budget,
                    uint32_t n) noexcept nogil:
    cdef Room room
    cdef uint64_t more_bytes = n + NODE_BYTES + flows_growth_bytes(&b.flows[lane])
    room.has_places = not budget_exceeds(budget, more_bytes, budget.cap_bytes // 2)
    room.over_reserve = budget_exceeds(budget, more_bytes,
                                       budget.cap_bytes - budget.cap_bytes // RESERVED_SHARE)
    room.limit_bytes = b.lane_bytes if b.lane_bytes else LANE_BYTES
    if room.over_reserve:
        room.limit_bytes = max(min(lane_weight(b, lane), room.limit_bytes),
                               <uint64_t>MIN_LANE_BYTES)
    return room


cdef inline bint lane_has_room(const Backlog* b, uint8_t lane, const Room* room,
                               uint32_t n) noexcept nogil:
    cdef bint has_place = lane_count(b, lane) < b.lane_packets
    cdef uint64_t weight
    if has_place and room.has_places:
        return True
    if not has_place and b.lane_bytes == 0:
        return False
    weight = lane_weight(b, lane) + n + NODE_BYTES
    if room.over_reserve:
        weight += flows_growth_bytes(&b.flows[lane])
    return weight <= room.limit_bytes


cdef Node* lane_pop_excess(Backlog* b, uint8_t lane, uint32_t own) noexcept nogil:
    """Remove the packet to displace from a full lane.

    Return NULL when the new packet, of the flow `own`, is the one to drop.
    """
    if b.flows[lane].n:
        return flows_pop_excess(&b.flows[lane], own)
    return fifo_pop(&b.lanes[lane]) if b.lanes[lane].n else NULL


cdef void node_displace(BacklogBudget* budget, Node* node, drop_fn drop,
                        void* context) noexcept nogil:
    node_refund(budget, node)
    drop(context, node)
    free(node)


cdef inline uint64_t oldest_ns(const Backlog* b, uint64_t now_ns) noexcept nogil:
    # Packets queued before this time have waited too long.
    return now_ns - b.age_ns if 0 < b.age_ns < now_ns else 0


cdef bint room_make(Backlog* b, uint8_t lane, BacklogBudget* budget, uint32_t own, uint32_t n,
                    uint64_t now_ns, drop_fn drop, void* context) noexcept nogil:
    """Displace packets until a new one of the flow `own` fits.

    Return False when it cannot fit: other backlogs use up the global cap, or all waiting packets
    are from senders that have asked for less.
    """
    cdef uint64_t since_ns = oldest_ns(b, now_ns)
    cdef Node* node = flows_pop_older(&b.flows[lane], own, since_ns)
    cdef Room room
    while node is not NULL:
        node_displace(budget, node, drop, context)
        node = flows_pop_older(&b.flows[lane], own, since_ns)
    room = lane_room(b, lane, budget, n)
    while not lane_has_room(b, lane, &room, n):
        node = lane_pop_excess(b, lane, own)
        if node is NULL:
            return False
        node_displace(budget, node, drop, context)
    return True


cdef bint backlog_push(Backlog* b, BacklogBudget* budget, uint8_t lane, const uint8_t* frame,
                       uint32_t n, uint32_t offset, uint64_t now_ns, drop_fn drop,
                       void* context) noexcept nogil:
    """Queue a copy of a frame of which offset bytes are already written.

    A packet displaces packets of its sender that have waited too long and, in a full lane, other
    packets there. False when memory is out, the global cap leaves no room, or too many control
    frames wait; the caller decides what follows.

    No session is closed because others fill the global cap. So frames that cannot be dropped may
    exceed it, with a bound per session: control_bytes for control frames; for a partly written
    frame or partly written records, one frame, or the records of SEAL_CHUNK and the run that
    crosses it. MIN_LANE_BYTES of each lane may exceed it, too.
    """
    cdef Node* node
    cdef bint is_rest = offset != 0 or lane == LANE_WIRE
    cdef uint32_t own = NO_FLOW
    if is_rest:
        pass
    elif lane == LANE_CONTROL:
        if b.lanes[lane].bytes + n > b.control_bytes:
            return False
    else:
        own = flows_arrive(&b.flows[lane], frame, n)
        if not room_make(b, lane, budget, own, n, now_ns, drop, context):
            return False
    node = node_new(budget, lane, frame, n, offset, now_ns)
    if node is NULL:
        return False
    if is_rest:
        fifo_append(&b.lanes[LANE_WIRE], node)
    elif lane == LANE_CONTROL:
        fifo_append(&b.lanes[lane], node)
    elif not flow_push(&b.flows[lane], budget, own, node):
        node_refund(budget, node)
        free(node)
        return False
    return True


cdef bint backlog_over_cap(const Backlog* b, const BacklogBudget* budget,
                           uint32_t n) noexcept nogil:
    """Return whether the global cap leaves no room for a control frame that may be lost."""
    return (budget_exceeds(budget, n + NODE_BYTES, budget.cap_bytes)
            and b.lanes[LANE_CONTROL].bytes + n > MIN_LANE_BYTES)


cdef bint flow_push(Flows* flows, BacklogBudget* budget, uint32_t own, Node* node) noexcept nogil:
    cdef uint32_t before = flows.capacity
    cdef bint has_memory = not budget_exceeds(budget, REMEMBERED_SLOTS * sizeof(Flow),
                                              budget.cap_bytes // 2)
    cdef bint pushed = flows_push(flows, own, node, has_memory)
    atomic_add_u64(&budget.bytes, (<uint64_t>flows.capacity - before) * sizeof(Flow))
    return pushed


cdef void lane_take(Backlog* b, BacklogBudget* budget, uint8_t lane, Node* node, uint64_t since_ns,
                    drop_fn drop, void* context) noexcept nogil:
    """Put a packet into its lane to be written next, unless it was queued before since_ns.

    When all packets are that old, the last one stays: the write deadline (§6.6) needs a packet to
    see whether the peer still reads.
    """
    if node.queued_ns < since_ns and not backlog_empty(b):
        node_displace(budget, node, drop, context)
    else:
        fifo_append(&b.lanes[lane], node)


cdef void lane_fill(Backlog* b, BacklogBudget* budget, uint8_t lane, uint32_t n_most,
                    size_t limit_bytes, uint64_t since_ns, drop_fn drop,
                    void* context) noexcept nogil:
    """Put the next packets of the flows into their lane, up to the first that reaches a limit."""
    cdef uint32_t n_before = b.lanes[lane].n
    while n_before:              # packets left from the previous write may be too old by now
        lane_take(b, budget, lane, fifo_pop(&b.lanes[lane]), since_ns, drop, context)
        n_before -= 1
    while b.flows[lane].n and b.lanes[lane].n < n_most and b.lanes[lane].bytes < limit_bytes:
        lane_take(b, budget, lane, flows_pop(&b.flows[lane]), since_ns, drop, context)


cdef int backlog_peek(Backlog* b, BacklogBudget* budget, iovec* iov, int n_iov, size_t limit_bytes,
                      uint64_t now_ns, drop_fn drop, void* context) noexcept nogil:
    """Fill iov with the next frames in order and return their number; drop old packets.

    The frames have up to limit_bytes, but at least one frame is filled in.
    """
    cdef uint64_t since_ns = oldest_ns(b, now_ns)
    cdef int filled = 0
    cdef int lane
    cdef size_t total = 0
    cdef Node* node
    if b.lanes[LANE_DATA].n or b.flows[LANE_DATA].n:
        # Disco goes first, but gets up to half of a write: junk may imitate it.
        lane_fill(b, budget, LANE_DISCO, <uint32_t>n_iov // 2, limit_bytes // 2, since_ns, drop,
                  context)
    else:
        lane_fill(b, budget, LANE_DISCO, <uint32_t>n_iov, limit_bytes, since_ns, drop, context)
    lane_fill(b, budget, LANE_DATA, <uint32_t>n_iov, limit_bytes, since_ns, drop, context)
    for lane in range(N_LANES):
        node = b.lanes[lane].head
        while node is not NULL:
            if filled == n_iov or (filled and total + node.n - node.offset > limit_bytes):
                return filled
            iov[filled].iov_base = node.data + node.offset
            iov[filled].iov_len = node.n - node.offset
            total += node.n - node.offset
            filled += 1
            node = node.next
    return filled


cdef Node* backlog_pop(Backlog* b, BacklogBudget* budget) noexcept nogil:
    """Remove the next frame, which the caller frees; NULL when the backlog is empty."""
    cdef int lane
    cdef Node* node = NULL
    for lane in range(N_LANES):
        if b.lanes[lane].head is not NULL:
            node = fifo_pop(&b.lanes[lane])
            break
    if node is NULL:
        node = flows_pop(&b.flows[LANE_DISCO])
    if node is NULL:
        node = flows_pop(&b.flows[LANE_DATA])
    if node is not NULL:
        node_refund(budget, node)
    return node


cdef void backlog_take(Backlog* b, uint32_t n) noexcept nogil:
    """Note that n more bytes of the next frame are written; that frame now stays first."""
    cdef int lane
    for lane in range(N_LANES):
        if b.lanes[lane].head is not NULL:
            b.lanes[lane].head.offset += n
            if lane != LANE_WIRE:
                fifo_append(&b.lanes[LANE_WIRE], fifo_pop(&b.lanes[lane]))
            return
