# What a session keeps of its input between two reads, and the budget for that memory. The session's
# worker calls these functions; before session_publish and after the end of the workers it is the
# control thread.

from libc.stdint cimport uint8_t

from fastderp.dataplane.core cimport Core, Partials, Session, Stash

cdef enum:
    # bytes of unused memory that a stash may keep; a session may hold them outside the budget
    STASH_KEEP = 4096

cdef bint stash_put(Stash* stash, const uint8_t* data, size_t n) noexcept nogil
cdef void stashes_free(Core* core, Session* s) noexcept nogil
cdef void stashes_charge(Core* core, Session* s, bint has_moved) noexcept nogil
cdef void stashes_refund(Core* core, Session* s) noexcept nogil
cdef bint partials_over_cap(const Core* core, const Partials* part) noexcept nogil


cdef inline bint stashes_matter(const Session* s) noexcept nogil:
    # False for nearly every read: the packets of clients are smaller than STASH_KEEP.
    return s.charged_bytes != 0 or s.frame.capacity + s.record.capacity > <size_t>STASH_KEEP
