# The output side of a session. Any thread writes, under the session's output lock; frames that the
# socket does not take wait in the backlog. No function blocks on a slow peer.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastderp.dataplane.counters cimport Counters, DropReason
from fastderp.dataplane.backlog cimport Backlog
from fastderp.dataplane.core cimport Batch, CloseReason, Core, Problem, Session, ThreadContext
from fastderp.dataplane.sys cimport iovec

cdef bint context_init(ThreadContext* t, Core* core, Counters* counters,
                       uint32_t n_keys) noexcept nogil
cdef void context_trim(ThreadContext* t) noexcept nogil
cdef void context_free(ThreadContext* t) noexcept nogil

# For any thread; these take the output lock.
cdef bint session_output(ThreadContext* t, Session* s, uint64_t handle, Batch* batch) noexcept nogil
cdef bint session_output_frame(ThreadContext* t, uint64_t handle, uint8_t* frame,
                               size_t n) noexcept nogil
cdef bint session_fail(ThreadContext* t, Session* s, uint64_t handle, CloseReason reason,
                       uint8_t detail) noexcept nogil
cdef bint session_leave(ThreadContext* t, Session* s, uint64_t handle) noexcept nogil
cdef bint session_set_problem(ThreadContext* t, uint64_t handle, Problem problem,
                              bint is_on) noexcept nogil
cdef void packet_drop(ThreadContext* t, DropReason reason, const uint8_t* frame, size_t n,
                      const uint8_t* src, const uint8_t* dst) noexcept nogil
cdef void queue_time_fold(ThreadContext* t) noexcept nogil
cdef void count_delay(ThreadContext* t, uint64_t n_packets, uint64_t waited_ns) noexcept nogil

# Return the reason for a connection that the kernel has ended with this error number; `otherwise`
# for those without a reason of their own.
cdef CloseReason lost_reason(int error, CloseReason otherwise) noexcept nogil

# For the session's own worker.
cdef void session_writable(ThreadContext* t, Session* s) noexcept nogil

# For session.pyx; the caller holds the output lock, except for backlog_gate.
cdef void close_notify_locked(ThreadContext* t, Session* s) noexcept nogil
cdef void fail_locked(ThreadContext* t, Session* s, CloseReason reason,
                      uint8_t detail) noexcept nogil
cdef void poll_set_locked(ThreadContext* t, Session* s, bint wants_out, bint is_held) noexcept nogil
cdef void flush_locked(ThreadContext* t, Session* s) noexcept nogil
cdef void deadline_restart_locked(ThreadContext* t, Session* s) noexcept nogil
cdef bint backlog_gate(const Core* core, Session* s) noexcept nogil
cdef void output_first_locked(ThreadContext* t, Session* s, const uint8_t* data,
                              size_t n) noexcept nogil
cdef void spare_free_locked(ThreadContext* t, Session* s) noexcept nogil
cdef void backlog_discard_locked(ThreadContext* t, Session* s) noexcept nogil
