# The life of one logged-in connection. The control thread creates a session (`session_open`), one
# worker serves it, and only that worker ends it (`session_end`). The types are in core.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastderp.dataplane.core cimport Core, Peer, Session, ThreadContext
from fastderp.dataplane.events cimport Totals
from fastderp.dataplane.peer_gone cimport PeerGoneQueue
from fastderp.tls.record cimport Records

# For the control thread: open, publish; discard after a failure.
cdef Session* session_open(ThreadContext* t, int worker, int fd, const Peer* peer,
                           const uint8_t* app_name, uint8_t n_app_name,
                           uint8_t rate_class, bint own_rtt, bint behind_proxy,
                           const Records* keys) noexcept nogil
cdef bint session_publish(ThreadContext* t, Session* s, const uint8_t* first,
                          size_t n_first) noexcept nogil
cdef void session_discard(ThreadContext* t, Session* s) noexcept nogil

# For the session's own worker.
cdef void session_due(ThreadContext* t, Session* s) noexcept nogil
cdef bint session_end(ThreadContext* t, Session* s) noexcept nogil
cdef void peer_gone_run(ThreadContext* t, PeerGoneQueue* queue) noexcept nogil

# For any thread.
cdef void session_note_sender(Core* core, uint64_t handle, uint64_t sender_hash) noexcept nogil
cdef void session_totals(Session* s, Totals* totals) noexcept nogil
cdef bint session_is_alive(void* core, uint64_t handle) noexcept nogil
cdef uint32_t sessions_touched(Core* core) noexcept nogil
