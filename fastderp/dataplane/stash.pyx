# The memory of incomplete frames and records. A peer may start a frame and stop, so such memory
# has a budget; when it is used, worker.pyx ends the sessions whose frames are the oldest. Whole
# frames that wait for us end no session: while they use their budget, sessions are read in small
# pieces. Links and mesh peers have the region's key and are exempt.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from fastderp.dataplane.core cimport LIST_PARTIAL
from fastderp.dataplane.frame cimport ROLE_CLIENT
from fastderp.dataplane.session_list cimport list_append, list_remove
from fastderp.dataplane.sys cimport (
    atomic_add_u64, atomic_peek_u64, atomic_sub_u64, counter_add,
)


cdef inline bint stash_fits(const Stash* stash, size_t n) noexcept nogil:
    # A buffer that is much too large is replaced: an idle session must not keep the memory of one
    # busy read.
    return n <= stash.capacity and (stash.capacity <= STASH_KEEP or n >= stash.capacity // 4)


cdef bint stash_put(Stash* stash, const uint8_t* data, size_t n) noexcept nogil:
    """Replace the contents by data; n = 0 frees the memory. False without memory."""
    cdef void* resized
    if n == 0:
        stash_free(stash)
        return True
    if not stash_fits(stash, n):
        resized = realloc(stash.data, n)
        if resized is NULL:
            return False
        stash.data = <uint8_t*>resized
        stash.capacity = <uint32_t>n
    memcpy(stash.data, data, n)
    stash.n = <uint32_t>n
    return True


cdef void stash_free(Stash* stash) noexcept nogil:
    free(stash.data)
    memset(stash, 0, sizeof(Stash))


cdef void stashes_free(Core* core, Session* s) noexcept nogil:
    """Free both stashes of a session."""
    stashes_refund(core, s)
    stash_free(&s.frame)
    stash_free(&s.record)


# ---- the budget

cdef void stashes_refund(Core* core, Session* s) noexcept nogil:
    """Take a session out of the budget."""
    cdef Partials* part = &core.partials[s.worker]
    if s.charged_bytes == 0:
        return
    if s.is_postponed:
        atomic_sub_u64(&core.stashes.postponed_bytes, s.charged_bytes)
    else:
        atomic_sub_u64(&core.stashes.partial_bytes, s.charged_bytes)
        counter_add(&part.n_bytes, <uint64_t>0 - s.charged_bytes)
        list_remove(&part.sessions, LIST_PARTIAL, s)
    s.charged_bytes = 0


cdef void stashes_charge(Core* core, Session* s, bint has_moved) noexcept nogil:
    """Bring a session's part of the budget up to date after a read.

    has_moved: the read completed a frame. A peer that adds a byte now and then keeps its place in
    the order.
    """
    cdef Partials* part = &core.partials[s.worker]
    cdef uint32_t n = s.frame.capacity + s.record.capacity
    cdef bint is_postponed = s.is_cut or s.has_records or s.resume_ns != 0
    cdef bint keeps_place = (s.charged_bytes != 0 and n > STASH_KEEP and not has_moved
                             and not is_postponed and not s.is_postponed)
    if keeps_place:
        atomic_add_u64(&core.stashes.partial_bytes, <uint64_t>n - s.charged_bytes)
        counter_add(&part.n_bytes, <uint64_t>n - s.charged_bytes)
        s.charged_bytes = n
        return
    stashes_refund(core, s)
    if n <= STASH_KEEP or s.peer.role != ROLE_CLIENT:
        return
    s.charged_bytes = n
    s.is_postponed = is_postponed
    if is_postponed:
        atomic_add_u64(&core.stashes.postponed_bytes, n)
    else:
        atomic_add_u64(&core.stashes.partial_bytes, n)
        counter_add(&part.n_bytes, n)
        list_append(&part.sessions, LIST_PARTIAL, s)


cdef bint partials_over_cap(const Core* core, const Partials* part) noexcept nogil:
    """Return whether the budget is exceeded, and this worker has more than its share."""
    return (atomic_peek_u64(&core.stashes.partial_bytes) > core.stashes.cap_bytes
            and atomic_peek_u64(&part.n_bytes)
            > core.stashes.cap_bytes // <uint64_t>core.n_workers)
