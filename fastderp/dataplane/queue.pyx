from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from fastderp.dataplane.sys cimport atomic_add_u64, atomic_peek_u64, atomic_sub_u64


cdef Backlog* backlog_new(uint32_t lane_bytes) noexcept nogil:
    cdef Backlog* b = <Backlog*>calloc(1, sizeof(Backlog))
    if b is not NULL:
        b.lane_bytes = lane_bytes
    return b


cdef void backlog_free(Backlog* b, BacklogBudget* budget, drop_fn drop, void* context) noexcept nogil:
    """Throw everything away, each frame reported through drop."""
    cdef Node* node
    while True:
        node = backlog_pop(b, budget)
        if node is NULL:
            break
        drop(context, node.data, node.n, node.lane)
        free(node)
    free(b)


cdef inline void fifo_append(Fifo* f, Node* node) noexcept nogil:
    node.next = NULL
    if f.tail is NULL:
        f.head = node
    else:
        f.tail.next = node
    f.tail = node
    f.n += 1
    f.bytes += node.n


cdef inline Node* fifo_remove_head(Fifo* f) noexcept nogil:
    cdef Node* node = f.head
    f.head = node.next
    if f.head is NULL:
        f.tail = NULL
    f.n -= 1
    f.bytes -= node.n
    return node


cdef inline Node* node_new(BacklogBudget* budget, uint8_t lane, const uint8_t* frame, uint32_t n,
                           uint32_t offset, uint64_t now_ns) noexcept nogil:
    cdef Node* node = <Node*>malloc(sizeof(Node) + n)
    if node is not NULL:
        node.queued_ns = now_ns
        node.n = n
        node.offset = offset
        node.lane = lane
        memcpy(node.data, frame, n)
        atomic_add_u64(&budget.bytes, n)
    return node


cdef inline bint lane_has_room(const Backlog* b, const Fifo* f, const BacklogBudget* budget, uint32_t n) noexcept nogil:
    if atomic_peek_u64(&budget.bytes) + n > budget.cap_bytes:
        return False
    return f.n < LANE_PACKETS or f.bytes + n <= b.lane_bytes


cdef bint backlog_push(Backlog* b, BacklogBudget* budget, uint8_t lane, const uint8_t* frame, uint32_t n,
                       uint32_t offset, uint64_t now_ns, drop_fn drop, void* context) noexcept nogil:
    """Queue a copy of a frame of which the wire has already seen offset bytes.

    A packet that finds its lane full displaces the oldest ones there. False when the frame could not be kept:
    no memory, no room under the global cap, or too many control frames; the caller decides what that means.
    """
    cdef Fifo* f = &b.lanes[LANE_WIRE if offset else lane]
    cdef Node* node
    if offset or lane == LANE_WIRE:
        pass                     # must be kept: the peer has its beginning
    elif lane >= LANE_DISCO:
        while f.head is not NULL and not lane_has_room(b, f, budget, n):
            node = fifo_remove_head(f)
            atomic_sub_u64(&budget.bytes, node.n)
            drop(context, node.data, node.n, node.lane)
            free(node)
        if not lane_has_room(b, f, budget, n):
            return False
    elif f.bytes + n > CONTROL_BYTES:
        return False
    node = node_new(budget, lane, frame, n, offset, now_ns)
    if node is NULL:
        return False
    fifo_append(f, node)
    return True


cdef int backlog_peek(Backlog* b, iovec* iov, int n_iov, size_t limit_bytes) noexcept nogil:
    """Fill iov with what goes next, in order, up to limit_bytes but at least one frame; return how many were filled."""
    cdef int filled = 0
    cdef int lane
    cdef size_t total = 0
    cdef Node* node
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
    """Take out the frame that goes next; the caller frees it. NULL when there is none."""
    cdef int lane
    cdef Node* node
    for lane in range(N_LANES):
        if b.lanes[lane].head is not NULL:
            node = fifo_remove_head(&b.lanes[lane])
            atomic_sub_u64(&budget.bytes, node.n)
            return node
    return NULL


cdef void backlog_take(Backlog* b, BacklogBudget* budget, uint32_t n) noexcept nogil:
    """Note that the wire took n more bytes of the frame that goes next, which must now stay first."""
    cdef int lane
    cdef Node* node
    for lane in range(N_LANES):
        if b.lanes[lane].head is not NULL:
            node = b.lanes[lane].head
            node.offset += n
            if lane != LANE_WIRE:
                fifo_append(&b.lanes[LANE_WIRE], fifo_remove_head(&b.lanes[lane]))
            return
