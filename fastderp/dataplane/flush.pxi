# Included by output.pyx: writes a session's backlog to its socket. Every function runs under the
# session's output lock.


cdef int flush_offer(ThreadContext* t, Session* s, iovec* iov) noexcept nogil:
    """Fill iov with the next frames of the backlog, up to FLUSH_IOVS; return their number."""
    cdef Dropper dropper
    dropper.context = t
    dropper.session = s
    return backlog_peek(s.backlog, &t.core.budget, iov, FLUSH_IOVS, SEAL_CHUNK, t.now_ns,
                        drop_displaced, &dropper)


cdef bint flush_plain(ThreadContext* t, Session* s) noexcept nogil:
    """Write once; return whether the socket took everything offered."""
    cdef iovec iov[FLUSH_IOVS]
    cdef int n_iov = flush_offer(t, s, iov)
    cdef ssize_t taken = socket_write(t, s, iov, n_iov)
    cdef int i
    if taken < 0:
        fail_write_locked(t, s)
        return False
    if taken > 0:
        deadline_restart_locked(t, s)
    for i in range(n_iov):
        if <size_t>taken < iov[i].iov_len:
            if taken:
                backlog_take(s.backlog, <uint32_t>taken)
            if i:
                count_flush(t, <size_t>i)
            return False
        taken -= <ssize_t>iov[i].iov_len
        node_written(t, s, backlog_pop(s.backlog, &t.core.budget))
    count_flush(t, <size_t>n_iov)
    return True


cdef void node_written(ThreadContext* t, Session* s, Node* node) noexcept nogil:
    cdef uint64_t waited_ns
    if node.lane >= LANE_DISCO:
        waited_ns = node_waited_ns(t, node)
        t.waited_ns += waited_ns
        count_delay(t, 1, waited_ns)
        count_written(t, s, 1, frame_data_size(node.data, node.n))
    elif node.lane == LANE_CONTROL and node.data[0] == FRAME_PONG:
        s.backlog.has_pong = False
    free(node)


cdef bint flush_sealed(ThreadContext* t, Session* s) noexcept nogil:
    cdef iovec iov[FLUSH_IOVS]
    cdef int n_iov
    cdef int i
    cdef size_t produced
    cdef RecordStatus status
    if s.backlog.lanes[LANE_WIRE].head is not NULL:
        return flush_wire(t, s)
    n_iov = flush_offer(t, s, iov)
    status = record_seal(s.records, &t.keyring, iov, n_iov, t.sealed, t.sealed_capacity, &produced)
    if status != RECORD_OK:
        fail_locked(t, s, CLOSE_TLS, status)
        return False
    for i in range(n_iov):
        node_written(t, s, backlog_pop(s.backlog, &t.core.budget))
    count_flush(t, <size_t>n_iov)
    deadline_restart_locked(t, s)
    return sealed_write(t, s, produced)


cdef bint flush_wire(ThreadContext* t, Session* s) noexcept nogil:
    # The rest of sealed records is written unchanged. True when the socket took it all.
    cdef Node* node = s.backlog.lanes[LANE_WIRE].head
    cdef iovec wire
    cdef ssize_t taken
    wire.iov_base = node.data + node.offset
    wire.iov_len = node.n - node.offset
    taken = socket_write(t, s, &wire, 1)
    if taken < 0:
        fail_write_locked(t, s)
        return False
    if taken > 0:
        deadline_restart_locked(t, s)
    if <size_t>taken < wire.iov_len:
        backlog_take(s.backlog, <uint32_t>taken)
        return False
    free(backlog_pop(s.backlog, &t.core.budget))
    return True


cdef void flush_locked(ThreadContext* t, Session* s) noexcept nogil:
    """Write the backlog until the socket is full or nothing is left."""
    while s.state == SESSION_OPEN and s.backlog is not NULL and not backlog_empty(s.backlog):
        if not (flush_plain(t, s) if s.records is NULL else flush_sealed(t, s)):
            break
    if s.state == SESSION_OPEN and (s.backlog is NULL or backlog_empty(s.backlog)):
        if s.backlog is not NULL:
            if s.contended:
                s.spare = s.backlog
            else:
                # The backlog is empty, so no drop is reported.
                backlog_free(s.backlog, &t.core.budget, drop_displaced, NULL)
            s.backlog = NULL
        poll_set_locked(t, s, False, s.is_held)
        if s.leaving == LEAVING_WRITES:
            leave_written_locked(t, s)
