# Included by logins.pyx: the steps of one login, from connect to ServerInfo, and the loop that runs
# many of them. Called by the thread that runs the crowd, without the GIL.


cdef bint bytes_add(Bytes* b, const uint8_t* data, size_t n) noexcept nogil:
    """Append data. False when memory is out."""
    cdef void* grown
    if b.n + n > b.capacity:
        grown = realloc(b.data, b.n + n)
        if grown == NULL:
            return False
        b.data = <uint8_t*>grown
        b.capacity = b.n + n
    if n:
        memcpy(b.data + b.n, data, n)
    b.n += n
    return True


cdef void bytes_cut(Bytes* b, size_t n) noexcept nogil:
    """Remove the first `n` bytes."""
    b.n -= n
    if b.n:
        memmove(b.data, b.data + n, b.n)


cdef bint fail(Crowd* c, Login* e, Failure failure, unsigned long code) noexcept nogil:
    """Record the first failure; return False, for the caller to return."""
    if c.failure == NO_FAILURE:
        c.failure = failure
        c.code = code
        c.n_failed = <uint32_t>(e - c.logins)
    return False


# Sending.

cdef bint bytes_send(Crowd* c, Login* e, const uint8_t* data, size_t n) noexcept nogil:
    """Send all bytes: a fresh socket has room for the messages of a login, or is broken."""
    cdef ssize_t taken = send(e.fd, data, n, MSG_DONTWAIT | MSG_NOSIGNAL)
    if taken < 0:
        return fail(c, e, FAILURE_SYSTEM, errno)
    return <size_t>taken == n or fail(c, e, FAILURE_SYSTEM, ENOBUFS)


cdef bint client_send(Crowd* c, Login* e, const uint8_t* data, size_t n) noexcept nogil:
    cdef iovec part
    cdef size_t n_wire = 0
    cdef RecordStatus status
    if not e.is_sealed:
        return bytes_send(c, e, data, n)
    part.iov_base = <void*>data
    part.iov_len = n
    status = record_seal(&e.records, &c.keyring, &part, 1, c.output, OUTPUT, &n_wire)
    if status != RECORD_OK:
        return fail(c, e, FAILURE_RECORD, status)
    return bytes_send(c, e, c.output, n_wire)


# TLS.

cdef bint handshake_begin(Crowd* c, Login* e) noexcept nogil:
    e.stage = STAGE_HANDSHAKE
    return bytes_send(c, e, c.hello_record, c.n_hello_record)


cdef bint handshake_continue(Crowd* c, Login* e) noexcept nogil:
    """Continue the handshake with the input; after its end send the upgrade over records."""
    cdef uint8_t answer[HELLO_ANSWER_MAX]
    cdef size_t n_answer = 0
    cdef size_t consumed = 0
    cdef HelloStatus status = hello_take(
        &e.hello, &c.share, &c.keyring, e.wire.data, e.wire.n, &consumed, c.opened, answer,
        &n_answer, &e.records)
    bytes_cut(&e.wire, consumed)
    if status == HELLO_MORE:
        return True
    if status != HELLO_DONE:
        return fail(c, e, FAILURE_TLS, status)
    hello_end(&e.hello, &c.keyring)
    e.is_sealed = True
    return bytes_send(c, e, answer, n_answer) and upgrade_send(c, e)


# The login.

cdef bint client_connect(Crowd* c, Login* e) noexcept nogil:
    """Open the next client's connection."""
    cdef uint32_t number = <uint32_t>(e - c.logins)
    cdef sockaddr_storage* source
    cdef epoll_event event
    e.fd = socket(c.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if e.fd < 0:
        return fail(c, e, FAILURE_SYSTEM, errno)
    e.stage = STAGE_CONNECTING
    if c.n_sources:
        # connect() chooses the port: bind() would reserve it for all destinations.
        source = &c.sources[number % c.n_sources]
        setsockopt(e.fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &ON, sizeof(ON))
        if bind(e.fd, <sockaddr*>source, c.address_size) < 0:
            return fail(c, e, FAILURE_SYSTEM, errno)
    setsockopt(e.fd, IPPROTO_TCP, TCP_NODELAY, &ON, sizeof(ON))
    setsockopt(e.fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &NOT_SENT_LIMIT_BYTES,
               sizeof(NOT_SENT_LIMIT_BYTES))
    if connect(e.fd, <sockaddr*>&c.address, c.address_size) < 0 and errno != EINPROGRESS:
        return fail(c, e, FAILURE_SYSTEM, errno)
    # EPOLLET reports each change once, so one epoll_ctl call serves the whole login.
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
    event.data.u32 = number
    if epoll_ctl(c.epoll, EPOLL_CTL_ADD, e.fd, &event) == 0:
        return True
    return fail(c, e, FAILURE_SYSTEM, errno)


cdef bint upgrade_send(Crowd* c, Login* e) noexcept nogil:
    if c.fast_start:
        e.stage = STAGE_SERVER_KEY
        return client_info_send(c, e)
    e.stage = STAGE_UPGRADE
    return client_send(c, e, c.request, c.n_request)


cdef bint client_info_send(Crowd* c, Login* e) noexcept nogil:
    return client_send(c, e, c.infos + <size_t>(e - c.logins) * c.n_info, c.n_info)


cdef bint client_read(Crowd* c, Login* e, bint to_the_end) noexcept nogil:
    """Read what the socket has; with `to_the_end` up to the end of the stream.

    epoll reports that end only once.
    """
    cdef ssize_t n = INPUT
    while (n == INPUT or to_the_end) and e.stage != STAGE_DONE:
        n = recv(e.fd, c.input, INPUT, MSG_DONTWAIT)
        if n < 0:
            return errno == EAGAIN or errno == EINTR or fail(c, e, FAILURE_SYSTEM, errno)
        if n == 0:
            return fail(c, e, FAILURE_ENDED, 0)
        if not bytes_received(c, e, c.input, n):
            return False
    return True


cdef bint bytes_received(Crowd* c, Login* e, const uint8_t* data, size_t n) noexcept nogil:
    """Process bytes from the socket."""
    if e.stage != STAGE_HANDSHAKE and not e.is_sealed:
        return plain_received(c, e, data, n)
    if not bytes_add(&e.wire, data, n):
        return fail(c, e, FAILURE_SYSTEM, ENOMEM)
    if e.stage == STAGE_HANDSHAKE and not handshake_continue(c, e):
        return False
    return e.stage == STAGE_HANDSHAKE or e.wire.n == 0 or records_received(c, e)


cdef bint records_received(Crowd* c, Login* e) noexcept nogil:
    cdef size_t consumed = 0
    cdef size_t produced = 0
    cdef RecordStatus status = record_open(
        &e.records, &c.keyring, e.wire.data, e.wire.n, c.opened, sizeof(c.opened), &consumed,
        &produced)
    bytes_cut(&e.wire, consumed)
    if produced and not plain_received(c, e, c.opened, produced):
        return False
    return status == RECORD_OK or fail(c, e, FAILURE_RECORD, status)


cdef bint plain_received(Crowd* c, Login* e, const uint8_t* data, size_t n) noexcept nogil:
    if not bytes_add(&e.plain, data, n):
        return fail(c, e, FAILURE_SYSTEM, ENOMEM)
    return messages_process(c, e)


cdef bint messages_process(Crowd* c, Login* e) noexcept nogil:
    """Process the complete messages in `plain`."""
    cdef size_t n
    if e.stage == STAGE_UPGRADE:
        n = answer_size(e)
        if n == 0:
            return e.plain.n <= ANSWER_MAX or fail(c, e, FAILURE_ANSWER, 0)
        if not answer_is_upgrade(e):
            return fail(c, e, FAILURE_ANSWER, 0)
        bytes_cut(&e.plain, n)
        e.stage = STAGE_SERVER_KEY
    if e.stage == STAGE_SERVER_KEY:
        n = frame_size(e)
        if n == 0:
            return True
        if e.plain.data[0] != SERVER_KEY or n < KEY_AT + KEY_SIZE or n > ANSWER_MAX:
            return fail(c, e, FAILURE_FRAME, e.plain.data[0])
        if e.plain.n < n:
            return True
        if memcmp(e.plain.data + KEY_AT, c.server_key, KEY_SIZE) != 0:
            return fail(c, e, FAILURE_KEY, 0)
        bytes_cut(&e.plain, n)
        e.stage = STAGE_SERVER_INFO
        if not c.fast_start and not client_info_send(c, e):
            return False
    if e.stage == STAGE_SERVER_INFO:
        n = frame_size(e)
        if n == 0:
            return True
        if e.plain.data[0] != SERVER_INFO or n > ANSWER_MAX:
            return fail(c, e, FAILURE_FRAME, e.plain.data[0])
        if e.plain.n >= n:
            login_finish(c, e)
    return True


cdef void login_finish(Crowd* c, Login* e) noexcept nogil:
    """Finish a login; its ServerInfo stays at the start of `plain` for members()."""
    e.stage = STAGE_DONE
    c.n_logged_in += 1
    c.last_ns = clock_ns()


cdef size_t answer_size(Login* e) noexcept nogil:
    """Return the size of the HTTP response head, 0 while it is incomplete."""
    cdef void* end = memmem(e.plain.data, e.plain.n, b"\r\n\r\n", 4) if e.plain.n else NULL
    return <size_t>(<uint8_t*>end - e.plain.data) + 4 if end != NULL else 0


cdef bint answer_is_upgrade(Login* e) noexcept nogil:
    return (e.plain.n >= 12 and memcmp(e.plain.data, b"HTTP/1.", 7) == 0
            and memcmp(e.plain.data + 8, b" 101", 4) == 0)


cdef size_t frame_size(Login* e) noexcept nogil:
    """Return the size of the next frame, 0 while its header is incomplete."""
    cdef const uint8_t* p = e.plain.data
    if e.plain.n < FRAME_HEAD:
        return 0
    return FRAME_HEAD + ((<size_t>p[1] << 24) | (<size_t>p[2] << 16) | (<size_t>p[3] << 8) | p[4])


# Time.

cdef void logins_begin(Crowd* c, uint64_t now_ns) noexcept nogil:
    """Begin the logins that are due, up to n_at_once at a time."""
    cdef Login* e
    cdef uint64_t due_ns
    while (c.n_started < c.n and c.n_started - c.n_logged_in < c.n_at_once
           and c.failure == NO_FAILURE):
        due_ns = c.first_ns + <uint64_t>(c.n_started * c.gap_ns)
        if due_ns > now_ns:
            timer_set(c, due_ns)
            return
        e = &c.logins[c.n_started]
        c.n_started += 1
        e.late_ns = now_ns + c.limit_ns
        client_connect(c, e)


cdef void timer_set(Crowd* c, uint64_t when_ns) noexcept nogil:
    cdef itimerspec wake
    wake.it_interval.tv_sec = wake.it_interval.tv_nsec = 0
    wake.it_value.tv_sec = <long>(when_ns // 1000000000)
    wake.it_value.tv_nsec = <long>(when_ns % 1000000000)
    timerfd_settime(c.timer, TFD_TIMER_ABSTIME, &wake, NULL)


cdef void deadlines_check(Crowd* c, uint64_t now_ns) noexcept nogil:
    """Fail at a login that takes longer than limit_ns."""
    cdef uint32_t i
    for i in range(c.n_started):
        if c.logins[i].stage != STAGE_DONE and c.logins[i].late_ns <= now_ns:
            fail(c, &c.logins[i], FAILURE_LATE, 0)
            return


cdef void login_event(Crowd* c, Login* e, uint32_t events) noexcept nogil:
    if e.stage == STAGE_CONNECTING:
        # The first write reports a connection that failed.
        if not (upgrade_send(c, e) if c.share.own is NULL else handshake_begin(c, e)):
            return
        # Input and end that have come already are not reported again.
        if not events & (EPOLLIN | EPOLLRDHUP):
            return
    if e.stage != STAGE_DONE:
        client_read(c, e, events & EPOLLRDHUP != 0)


cdef int wait_ms(uint64_t left_ns) noexcept nogil:
    return <int>(min(<uint64_t>WAIT_NS, left_ns) // 1000000 + 1)


cdef void crowd_run(Crowd* c, uint64_t until_ns) noexcept nogil:
    cdef epoll_event events[N_EVENTS]
    cdef uint64_t expirations
    cdef uint64_t now_ns = clock_ns()
    cdef uint64_t look_ns = now_ns + WAIT_NS
    cdef int i
    cdef int n
    if c.first_ns == 0:
        c.first_ns = now_ns
    while (c.n_logged_in < c.n and c.failure == NO_FAILURE and now_ns < until_ns
           and not flag_is_set(&c.stopped)):
        logins_begin(c, now_ns)
        if c.busy_wait:
            sched_yield()
        n = epoll_wait(c.epoll, events, N_EVENTS,
                       0 if c.busy_wait else wait_ms(until_ns - now_ns))
        for i in range(n):
            if events[i].data.u32 == TIMER:
                read(c.timer, &expirations, sizeof(expirations))
            else:
                login_event(c, &c.logins[events[i].data.u32], events[i].events)
        now_ns = clock_ns()
        if now_ns >= look_ns:
            deadlines_check(c, now_ns)
            look_ns = now_ns + WAIT_NS
