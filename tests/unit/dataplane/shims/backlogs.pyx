"""The backlog of one session as a Python class."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free

from fastderp.dataplane.backlog cimport (
    CONTROL_BYTES, LANE_BYTES, LANE_CONTROL, LANE_DATA, LANE_DISCO, LANE_PACKETS, LANE_WIRE,
    Backlog, BacklogBudget, backlog_bytes, backlog_empty, backlog_free, backlog_new, backlog_peek,
    backlog_pop, backlog_push, backlog_take,
)
from fastderp.dataplane.fifo cimport Node
from fastderp.dataplane.sys cimport iovec

LANES = {"wire": LANE_WIRE, "control": LANE_CONTROL, "disco": LANE_DISCO, "data": LANE_DATA}
CONTROL_MAX_BYTES = CONTROL_BYTES
cdef enum:
    N_IOV = 64


cdef void note_drop(void* context, const Node* node) noexcept nogil:
    with gil:
        (<list>context).append((<const uint8_t*>node.data)[:node.n])


cdef class PlaneBacklog:
    cdef Backlog* inner
    cdef BacklogBudget budget
    cdef readonly list dropped

    def __cinit__(self, uint64_t cap_bytes=1 << 40, uint32_t lane_packets=LANE_PACKETS,
                  uint32_t lane_bytes=LANE_BYTES, uint64_t age_ns=0):
        self.dropped = []
        self.budget.cap_bytes = cap_bytes
        self.budget.bytes = 0
        self.inner = backlog_new(lane_bytes, lane_packets, CONTROL_BYTES, age_ns, 1)
        if self.inner is NULL:
            raise MemoryError

    def push(self, str lane not None, bytes frame not None, uint32_t offset=0, uint64_t now_ns=0):
        """Queue a frame; False when it could not be kept."""
        return bool(backlog_push(
            self.inner, &self.budget, <uint8_t>LANES[lane], <const uint8_t*>frame,
            <uint32_t>len(frame), offset, now_ns, note_drop, <void*>self.dropped))

    def peek(self, size_t limit_bytes=1 << 30, int n_most=N_IOV, uint64_t now_ns=0):
        """Return the next pieces to write, in order."""
        cdef iovec iov[N_IOV]
        cdef int n = backlog_peek(self.inner, &self.budget, iov, min(n_most, N_IOV), limit_bytes,
                                  now_ns, note_drop, <void*>self.dropped)
        return [(<const uint8_t*>iov[i].iov_base)[:iov[i].iov_len] for i in range(n)]

    def take(self, uint32_t n):
        backlog_take(self.inner, n)

    def pop(self):
        """Return the next frame to write, whole, or None."""
        cdef Node* node = backlog_pop(self.inner, &self.budget)
        if node is NULL:
            return None
        frame = (<const uint8_t*>node.data)[:node.n]
        free(node)
        return frame

    @property
    def is_empty(self):
        return bool(backlog_empty(self.inner))

    @property
    def n_bytes(self):
        return backlog_bytes(self.inner)

    @property
    def charged_bytes(self):
        """The bytes charged to all of the plane's backlogs."""
        return self.budget.bytes

    def close(self):
        """Drop all frames."""
        if self.inner is not NULL:
            backlog_free(self.inner, &self.budget, note_drop, <void*>self.dropped)
            self.inner = NULL

    def __dealloc__(self):
        self.close()
