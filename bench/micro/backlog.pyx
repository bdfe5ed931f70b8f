"""The backlog of one session: push packets of several senders, and pop them."""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free

from fastderp.dataplane.fifo cimport Node
from fastderp.dataplane.backlog cimport (
    CONTROL_BYTES, LANE_BYTES, LANE_DATA, LANE_PACKETS, Backlog, BacklogBudget, backlog_free,
    backlog_new, backlog_pop, backlog_push)


cdef void count_drop(void* n_dropped, const Node* node) noexcept nogil:
    (<size_t*>n_dropped)[0] += 1


def pass_through(const uint8_t[:, ::1] frames):
    """Push all frames, one per row, then pop all; return (popped, dropped)."""
    cdef BacklogBudget budget
    cdef Backlog* backlog = backlog_new(LANE_BYTES, LANE_PACKETS, CONTROL_BYTES, 0, 1)
    cdef Node* node
    cdef size_t popped = 0, dropped = 0
    cdef Py_ssize_t i
    if backlog is NULL:
        raise MemoryError()
    budget.cap_bytes = 1 << 40
    budget.bytes = 0
    with nogil:
        for i in range(frames.shape[0]):
            backlog_push(backlog, &budget, LANE_DATA, &frames[i, 0],
                         <uint32_t>frames.shape[1], 0, 0, count_drop, &dropped)
        while True:
            node = backlog_pop(backlog, &budget)
            if node is NULL:
                break
            free(node)
            popped += 1
        backlog_free(backlog, &budget, count_drop, &dropped)
    return popped, dropped
