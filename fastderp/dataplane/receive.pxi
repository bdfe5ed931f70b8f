# Included by worker.pyx: from a session's socket to the whole frames that relay.pxi walks. Only the
# worker's thread runs this.

# ---- reading

cdef void read_ended(Worker* w, Session* s, CloseReason reason, uint8_t detail) noexcept nogil:
    # The session ends with this turn; a reason set earlier by session_fail stays.
    if s.is_ending:
        return
    if w.n_ending == MAX_ENDING:
        session_fail(&w.context, s, s.handle, reason, detail)
        session_defer(w, s)
        return
    s.is_ending = True
    session_undefer(w, s)
    w.ending[w.n_ending] = s
    w.n_ending += 1
    pthread_mutex_lock(&s.output_lock)
    if s.state == SESSION_OPEN and s.leaving != LEAVING_READS:
        s.close_reason = reason
        s.close_detail = detail
    pthread_mutex_unlock(&s.output_lock)


cdef void socket_failed(Worker* w, Session* s, int error) noexcept nogil:
    read_ended(w, s, lost_reason(error, CLOSE_RESET), <uint8_t>error)


cdef int socket_error(Session* s) noexcept nogil:
    """Return the error number that the kernel keeps for the next call; 0 for none."""
    cdef int error = 0
    cdef unsigned int n = sizeof(int)
    getsockopt(s.fd, SOL_SOCKET, SO_ERROR, &error, &n)
    return error


cdef inline size_t read_limit(const Worker* w, const Session* s) noexcept nogil:
    cdef const StashBudget* stashes = &w.context.core.stashes
    if (atomic_peek_u64(&stashes.postponed_bytes) > stashes.cap_bytes
            and s.peer.role == ROLE_CLIENT):
        return STASH_KEEP
    if s.is_contending:
        return READ_CONTENDING_MAX
    return READ_LIMITED_MAX if rate_applies(w, s) else READ_MAX


cdef ssize_t socket_read(Worker* w, Session* s, uint8_t* into) noexcept nogil:
    """Return the number of bytes read; 0 when none are ready or at the end (s.is_ending)."""
    cdef size_t most = read_limit(w, s)
    cdef ssize_t got = recv(s.fd, into, most, MSG_DONTWAIT)
    s.is_drained = got < <ssize_t>most and not s.has_hung_up
    if got > 0:
        s.heard_ns = w.context.now_ns
        counter_add(&w.counters.reads, 1)
        return got
    if got == 0:
        read_ended(w, s, CLOSE_EOF, 0)
    elif errno != EAGAIN and errno != EINTR:
        socket_failed(w, s, errno)
    else:
        s.is_drained = errno == EAGAIN
        s.has_hung_up = False
    return 0


cdef size_t read_sealed(Worker* w, Session* s, uint8_t* into) noexcept nogil:
    """Read once, unless whole records of the previous read are left; open up to READ_RECORDS.

    The plaintexts follow one another. A record that ends the session is opened again in a later
    turn, when the frames before it have been relayed.
    """
    cdef size_t n = s.record.n
    cdef size_t n_left = READ_RECORDS
    cdef size_t consumed = 0
    cdef size_t produced = 0
    cdef RecordStatus status
    if n:
        memcpy(w.cipher, s.record.data, n)
    if not s.has_records:
        n += <size_t>socket_read(w, s, w.cipher + n)
    status = record_open_some(s.records, &w.context.keyring, w.cipher, n, into, n, &n_left,
                              &consumed, &produced)
    s.has_records = n_left == 0 or status != RECORD_OK
    if status == RECORD_CLOSE_NOTIFY and produced == 0:
        read_ended(w, s, CLOSE_EOF, 0)
    elif status != RECORD_OK and produced == 0:
        read_ended(w, s, CLOSE_TLS, status)
    elif not stash_put(&s.record, w.cipher + consumed, n - consumed):
        read_ended(w, s, CLOSE_NO_MEMORY, 0)
    return produced


cdef void session_read(Worker* w, Session* s, bint more) noexcept nogil:
    """Relay the complete frames of a session's stash and, if `more`, of one read."""
    cdef uint8_t* start
    cdef size_t n = s.frame.n
    cdef size_t walked
    if w.n_gathered + n + s.record.n + READ_MAX > GATHER_MAX:
        targets_flush(w)
        w.n_gathered = w.n_forwarded = 0
    start = w.gather + w.n_gathered
    if n:
        memcpy(start, s.frame.data, n)
    if more:
        if s.records is not NULL:
            n += read_sealed(w, s, start + n)
        else:
            n += <size_t>socket_read(w, s, start + n)
    walked = frames_walk(w, s, start, n)
    if not stash_put(&s.frame, start + walked, n - walked):
        read_ended(w, s, CLOSE_NO_MEMORY, 0)
    if stashes_matter(s):
        stashes_charge(w.context.core, s, walked != 0)
    w.n_gathered += walked
    if (s.is_cut or s.has_records or not s.is_drained) and s.resume_ns == 0 and not s.is_ending:
        session_defer(w, s)


cdef void partials_shed(Worker* w) noexcept nogil:
    # Sessions end until the stashes are within their budget; the end of this turn frees them. The
    # sessions may be those of another worker, which is woken.
    cdef Core* core = w.context.core
    cdef Partials* part = &core.partials[w.index]
    cdef Session* s
    cdef int i
    if atomic_peek_u64(&core.stashes.partial_bytes) <= core.stashes.cap_bytes:
        return
    while partials_over_cap(core, part):
        s = part.sessions.first
        stashes_refund(core, s)
        read_ended(w, s, CLOSE_INCOMPLETE_FRAME, 0)
    for i in range(core.n_workers):
        if partials_over_cap(core, &core.partials[i]):
            eventfd_wake(core.peer_gone[i].wake_fd)


cdef void session_first_read(Worker* w, Session* s) noexcept nogil:
    # Bytes that followed the login may be in the stashes, while the socket is empty. They are
    # relayed first: if the socket is already at its end, this turn might not relay all.
    s.is_fresh = False
    s.is_drained = False
    s.has_records = s.record.n != 0
    session_read(w, s, s.frame.n == 0)


# ---- receive rate limit (§6.8)

cdef void limit_refresh(Worker* w) noexcept nogil:
    # Once per turn: a changed limit is copied for the worker.
    cdef Core* core = w.context.core
    if atomic_load_u64(&core.limit_version) == w.limit_version:
        return
    pthread_mutex_lock(&core.limit_lock)
    memcpy(w.limits, core.limits, sizeof(core.limits))
    w.limit_version = core.limit_version
    pthread_mutex_unlock(&core.limit_lock)


cdef inline const RateLimit* rate_limit(const Worker* w, const Session* s) noexcept nogil:
    return &w.limits[atomic_load_u8(&s.rate_class)]


cdef inline bint rate_applies(const Worker* w, const Session* s) noexcept nogil:
    return s.peer.role == ROLE_CLIENT and rate_limit(w, s).bytes_per_s > 0


cdef bint rate_allows(Worker* w, Session* s, size_t n_payload) noexcept nogil:
    """Charge a frame by its header. False when the session is now held back for its rate."""
    cdef Bucket* b = &s.bucket
    cdef double cost = <double>min(n_payload, <size_t>(KEY_SIZE + PACKET_MAX))
    cdef const RateLimit* limit = rate_limit(w, s)
    if b.version != w.limit_version:
        b.version = w.limit_version
        b.tokens = limit.burst_bytes
    else:
        b.tokens += <double>(w.context.now_ns - b.filled_ns) * 1e-9 * limit.bytes_per_s
        b.tokens = min(b.tokens, limit.burst_bytes)
    b.filled_ns = w.context.now_ns
    if b.tokens >= cost:
        b.tokens -= cost
        return True
    counter_add(&w.counters.rate_limit_per_client_waited, 1)
    s.resume_ns = w.context.now_ns + <uint64_t>((cost - b.tokens) / limit.bytes_per_s * 1e9) + 1
    pthread_mutex_lock(&s.output_lock)
    poll_set_locked(&w.context, s, s.wants_out, True)
    pthread_mutex_unlock(&s.output_lock)
    if atomic_load_u64(&w.context.core.limit_version) != w.limit_version:
        # set_rate_limits may have missed this session when it woke those that were held back.
        s.resume_ns = w.context.now_ns + RECHECK_NS
    if s.held_ns == 0:
        counter_add(&w.counters.clients_held_back, 1)
        session_set_problem(&w.context, s.handle, PROBLEM_RATE, True)
    s.held_ns = w.context.now_ns
    wheel_arm(&w.context.core.wheels[w.index], &s.timer, s.resume_ns)
    return False


cdef void session_resume(Worker* w, Session* s) noexcept nogil:
    s.resume_ns = 0
    pthread_mutex_lock(&s.output_lock)
    poll_set_locked(&w.context, s, s.wants_out, False)
    pthread_mutex_unlock(&s.output_lock)
    session_read(w, s, False)
