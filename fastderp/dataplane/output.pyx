# Functions that write to a session: straight to its socket, or to the end of its backlog. Any
# thread calls them; the caller of a function marked "locked" holds the session's output lock, which
# serializes frames from many threads.

from libc.math cimport pow
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset, strlen

from fastderp.tls.aead cimport keyring_clear, keyring_free, keyring_init
from fastderp.dataplane.counters cimport (
    DROP_GONE_DISCONNECTED, DROP_QUEUE_HEAD, DROP_QUEUE_TAIL, DROP_WRITE_ERROR, KIND_DISCO,
    KIND_OTHER, buffered_write_frames_bucket, queue_delay_seconds_bucket,
)
from fastderp.dataplane.events cimport EVENT_DROP, Event, event_new, events_push
from fastderp.dataplane.fair_queue cimport flows_bypass
from fastderp.dataplane.fifo cimport Node
from fastderp.dataplane.frame cimport (
    FRAME_FORWARD_PACKET, FRAME_HEADER, FRAME_HEALTH, FRAME_KEEP_ALIVE, FRAME_PEER_GONE, FRAME_PONG,
    GONE_DISCONNECTED, GONE_NOT_HERE, KEY_SIZE, PACKET_OVERHEAD, ROLE_CLIENT, ROLE_LINK, ROLE_MESH,
    frame_carries_disco, frame_data_size, frame_is_packet, frame_put_header, frame_size,
)
from fastderp.dataplane.backlog cimport (
    CONTROL_BYTES, LANE_BYTES, LANE_CONTROL, LANE_DATA, LANE_DISCO, LANE_PACKETS, LANE_WIRE,
    LINK_LANE_BYTES, MESH_CONTROL_BYTES, backlog_empty, backlog_free, backlog_over_cap, backlog_new,
    backlog_peek, backlog_pop, backlog_push, backlog_take,
)
from fastderp.tls.record cimport (
    NO_ALERT, RECORD_OK, RecordStatus, record_seal, record_seal_alert, record_sealed_size,
    record_status_alert,
)
from fastderp.dataplane.core cimport (
    CLOSE_CLOSE_PEER, CLOSE_CONTROL_OVERFLOW, CLOSE_DRAIN, CLOSE_NO_MEMORY, CLOSE_SERVER,
    CLOSE_TCP_TIMEOUT, CLOSE_TLS, CLOSE_UNREACHABLE, CLOSE_WRITE_ERROR, CLOSE_WRITE_TIMEOUT,
    LEAVING_READS, LEAVING_WRITES, OUTPUT_IOVS, PROBLEM_DUPLICATE, PROBLEM_RATE, SEAL_CHUNK,
    SESSION_CLOSING, SESSION_OPEN, Problem, session_at,
)
from fastderp.dataplane.sys cimport (
    EAGAIN, EHOSTDOWN, EHOSTUNREACH, EINTR, ENETDOWN, ENETUNREACH, ENONET, EPOLLET, EPOLLIN,
    EPOLLOUT, EPOLLRDHUP, EPOLL_CTL_MOD, ETIMEDOUT, MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_RDWR,
    SHUT_WR, atomic_load_u64, atomic_peek_u64, atomic_poke_u64,
    atomic_store_u8, clock_ns, counter_add, epoll_ctl, epoll_event, errno, msghdr, pages_release,
    pthread_mutex_lock, pthread_mutex_unlock, send, sendmsg, shutdown,
)
from fastderp.dataplane.timer_wheel cimport wheel_arm

cdef enum:
    FLUSH_IOVS = 64              # frames of a backlog per write
    ALERT_ROOM = 64              # bytes; a sealed alert takes 24
    TLS_WARNING = 1
    TLS_FATAL = 2
    TLS_CLOSE_NOTIFY = 0
    CONTENDED_FOR = 16           # complete writes until a session counts as uncontended again
    REPORTS_PER_SECOND = 16      # drops that each thread reports to the control plane

cdef uint64_t REPORT_WINDOW_NS = 1000000000
# The time of a leaving session's peer, after the end of our output, to close.
cdef uint64_t LEAVE_NS = 2000000000
cdef double QUEUE_TIME_KEPT = 0.9    # the share of the moving average that a packet keeps (§6.6)


# ---- the thread's own scratch

cdef bint context_init(ThreadContext* t, Core* core, Counters* counters,
                       uint32_t n_keys) noexcept nogil:
    """Prepare a context with up to n_keys expanded keys (a power of two). False without memory."""
    memset(t, 0, sizeof(ThreadContext))
    t.core = core
    t.counters = counters
    # A chunk ends with the run that crosses SEAL_CHUNK; a run is less than RUN_MAX plus one frame.
    t.sealed_capacity = record_sealed_size(4 * SEAL_CHUNK)
    t.sealed = <uint8_t*>malloc(t.sealed_capacity)
    return keyring_init(&t.keyring, n_keys) and t.sealed is not NULL


cdef void context_trim(ThreadContext* t) noexcept nogil:
    """Release the expanded keys and the scratch memory; both are made again on demand."""
    keyring_clear(&t.keyring)
    pages_release(t.sealed, t.sealed_capacity)


cdef void context_free(ThreadContext* t) noexcept nogil:
    keyring_free(&t.keyring)
    free(t.sealed)


include "accounting.pxi"


# ---- locked

cdef void close_notify_locked(ThreadContext* t, Session* s) noexcept nogil:
    """Send a TLS peer the alert for the close reason, unless its socket is full or broken."""
    cdef uint8_t wire[ALERT_ROOM]
    cdef uint8_t level = TLS_WARNING
    cdef uint8_t description = TLS_CLOSE_NOTIFY
    cdef size_t produced
    if s.records is NULL or s.backlog is not NULL or s.leaving == LEAVING_READS:
        return
    if s.close_reason == CLOSE_TLS:
        level = TLS_FATAL
        description = record_status_alert(<RecordStatus>s.close_detail)
        if description == NO_ALERT:
            return
    if record_seal_alert(s.records, &t.keyring, level, description, wire, sizeof(wire),
                         &produced) == RECORD_OK:
        send(s.fd, wire, produced, MSG_DONTWAIT | MSG_NOSIGNAL)


cdef void fail_locked(ThreadContext* t, Session* s, CloseReason reason,
                      uint8_t detail) noexcept nogil:
    # The shutdown makes epoll report the session to its worker.
    if s.state == SESSION_OPEN:
        atomic_store_u8(&s.state, SESSION_CLOSING)
        s.close_reason = reason
        s.close_detail = detail
        if reason == CLOSE_SERVER or reason == CLOSE_CLOSE_PEER:
            close_notify_locked(t, s)    # after the other reasons found here no alert can be sent
        shutdown(s.fd, SHUT_RDWR)


cdef CloseReason lost_reason(int error, CloseReason otherwise) noexcept nogil:
    # The kernel reports an ICMP error, if one came, instead of the time-out that it explains.
    if error == ETIMEDOUT:
        return CLOSE_TCP_TIMEOUT
    if (error == EHOSTUNREACH or error == ENETUNREACH or error == EHOSTDOWN or error == ENETDOWN
            or error == ENONET):
        return CLOSE_UNREACHABLE
    return otherwise


cdef void fail_write_locked(ThreadContext* t, Session* s) noexcept nogil:
    """End a session whose socket refused a write with `errno`."""
    cdef int error = errno
    fail_locked(t, s, lost_reason(error, CLOSE_WRITE_ERROR), <uint8_t>error)


cdef void poll_set_locked(ThreadContext* t, Session* s, bint wants_out,
                          bint is_held) noexcept nogil:
    """Arm EPOLLOUT if wants_out, and EPOLLIN unless is_held."""
    cdef epoll_event event
    if s.wants_out == wants_out and s.is_held == is_held:
        return
    s.wants_out = wants_out
    s.is_held = is_held
    event.events = EPOLLET | (EPOLLOUT if wants_out else 0)
    if not is_held:
        event.events |= EPOLLIN | EPOLLRDHUP
    event.data.u64 = s.handle
    epoll_ctl(t.core.epolls[s.worker], EPOLL_CTL_MOD, s.fd, &event)


cdef void deadline_restart_locked(ThreadContext* t, Session* s) noexcept nogil:
    cdef uint64_t timeout_ns = t.core.mesh_write_timeout_ns
    if s.peer.role == ROLE_CLIENT:
        timeout_ns = atomic_peek_u64(&t.core.write_timeout_ns)
    if timeout_ns == 0:
        s.write_deadline_ns = 0      # one may be left from before the timeout was changed
        return
    # t.now_ns may be long past: the machine may have stopped since.
    s.write_deadline_ns = clock_ns() + timeout_ns
    wheel_arm(&t.core.wheels[s.worker], &s.timer, s.write_deadline_ns)


cdef ssize_t socket_write(ThreadContext* t, Session* s, iovec* iov, int n_iov) noexcept nogil:
    """Return the number of bytes taken, 0 when the socket is full, -1 when it is broken."""
    cdef msghdr msg
    cdef ssize_t taken
    counter_add(&t.counters.writes, 1)
    if n_iov == 1:
        taken = send(s.fd, iov.iov_base, iov.iov_len, MSG_DONTWAIT | MSG_NOSIGNAL)
    else:
        memset(&msg, 0, sizeof(msg))
        msg.msg_iov = iov
        msg.msg_iovlen = <size_t>n_iov
        taken = sendmsg(s.fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL)
    if taken < 0 and (errno == EAGAIN or errno == EINTR):
        return 0
    return taken


cdef inline Backlog* backlog_for(const Core* core, uint8_t role) noexcept nogil:
    cdef uint32_t control_bytes = MESH_CONTROL_BYTES if role == ROLE_MESH else CONTROL_BYTES
    cdef uint64_t secret = core.routes.secret[0]
    if role == ROLE_LINK:
        return backlog_new(LINK_LANE_BYTES, LANE_PACKETS, control_bytes, core.packet_age_ns, secret)
    if core.lane_packets:
        return backlog_new(0, core.lane_packets, control_bytes, 0, secret)
    return backlog_new(LANE_BYTES, LANE_PACKETS, control_bytes, core.packet_age_ns, secret)


cdef Backlog* backlog_get(ThreadContext* t, Session* s) noexcept nogil:
    """Return the session's backlog, created on demand; NULL when memory is out."""
    if s.backlog is NULL:
        s.backlog = s.spare if s.spare is not NULL else backlog_for(t.core, s.peer.role)
        s.spare = NULL
        if s.backlog is not NULL:
            poll_set_locked(t, s, True, s.is_held)
            deadline_restart_locked(t, s)
    return s.backlog


cdef void spare_free_locked(ThreadContext* t, Session* s) noexcept nogil:
    if s.spare is not NULL:
        backlog_free(s.spare, &t.core.budget, drop_displaced, NULL)
        s.spare = NULL


cdef void backlog_discard_locked(ThreadContext* t, Session* s) noexcept nogil:
    """Discard the backlog of a session that is gone (§6.5)."""
    cdef Dropper dropper
    dropper.context = t
    dropper.session = s
    dropper.reason = DROP_GONE_DISCONNECTED
    if (s.close_reason == CLOSE_WRITE_TIMEOUT or s.close_reason == CLOSE_WRITE_ERROR
            or s.close_reason == CLOSE_TCP_TIMEOUT or s.close_reason == CLOSE_UNREACHABLE):
        dropper.reason = DROP_WRITE_ERROR
    spare_free_locked(t, s)
    if s.backlog is not NULL:
        backlog_free(s.backlog, &t.core.budget, drop_gone, &dropper)
        s.backlog = NULL


cdef inline bint control_is_vital(const Session* s, const uint8_t* frame) noexcept nogil:
    # A client can lose a PeerGone, which it gets again when it sends to that key, and a pong or
    # keep-alive while many other frames wait for it. Mesh peers cannot lose any control frame, and
    # clients cannot lose any other.
    return s.peer.role != ROLE_CLIENT or (
        frame[0] != FRAME_PEER_GONE and frame[0] != FRAME_PONG and frame[0] != FRAME_KEEP_ALIVE)


cdef void control_lose(ThreadContext* t, Session* s, const uint8_t* frame) noexcept nogil:
    if control_is_vital(s, frame):
        fail_locked(t, s, CLOSE_CONTROL_OVERFLOW, 0)
        return
    answer_uncount(t, frame)
    if frame[0] == FRAME_PEER_GONE:
        counter_add(&t.counters.peer_gone_lost, 1)
        if frame[FRAME_HEADER + KEY_SIZE] == GONE_DISCONNECTED:
            counter_add(&t.counters.peer_gone_disconnected_frames, <uint64_t>-1)


cdef void frame_queue(ThreadContext* t, Session* s, const uint8_t* frame, size_t n,
                      size_t offset) noexcept nogil:
    cdef uint8_t lane = LANE_CONTROL
    cdef Backlog* backlog = s.backlog
    cdef Dropper dropper
    dropper.context = t
    dropper.session = s
    if frame_is_packet(frame):
        lane = LANE_DISCO if frame_carries_disco(frame, n) else LANE_DATA
    elif frame[0] == FRAME_PONG and backlog.has_pong:
        counter_add(&t.counters.sent_pong, <uint64_t>-1)    # a flood of pings leaves one pong (§5)
        return
    elif (offset == 0 and not control_is_vital(s, frame)
            and backlog_over_cap(backlog, &t.core.budget, <uint32_t>n)):
        control_lose(t, s, frame)
        return
    if backlog_push(backlog, &t.core.budget, lane, frame, <uint32_t>n, <uint32_t>offset, t.now_ns,
                    drop_displaced, &dropper):
        backlog.has_pong |= frame[0] == FRAME_PONG
        return
    if offset:
        fail_locked(t, s, CLOSE_NO_MEMORY, 0)
    elif lane == LANE_CONTROL:
        control_lose(t, s, frame)
    if lane != LANE_CONTROL:
        s.dropped += 1
        packet_lose(t, DROP_QUEUE_TAIL, frame, n, s.peer.key)


cdef void frames_queue(ThreadContext* t, Session* s, Batch* batch, size_t taken) noexcept nogil:
    """Queue the rest of a batch of which the socket took `taken` bytes."""
    cdef int i
    cdef uint8_t* p
    cdef uint8_t* end
    cdef size_t size
    if backlog_get(t, s) is NULL:
        fail_locked(t, s, CLOSE_NO_MEMORY, 0)
        batch_lose(t, DROP_QUEUE_TAIL, batch, taken, s.peer.key)
        return
    for i in range(batch.n_iov):
        p = <uint8_t*>batch.iov[i].iov_base
        end = p + batch.iov[i].iov_len
        if taken >= batch.iov[i].iov_len:
            taken -= batch.iov[i].iov_len
            continue
        while p < end:
            size = frame_size(p)
            if taken >= size:
                taken -= size
            else:
                frame_queue(t, s, p, size, taken)
                taken = 0
            p += size


cdef void count_taken(ThreadContext* t, Session* s, Batch* batch, size_t taken) noexcept nogil:
    """Count the packets that the socket took whole."""
    cdef int i
    cdef uint8_t* p
    cdef uint8_t* end
    cdef size_t size
    cdef uint32_t n_packets = 0
    cdef size_t n_data = 0
    if taken >= batch.n_bytes:
        t.n_direct += batch.n_packets
        count_written(t, s, batch.n_packets, batch.n_data)
        return
    for i in range(batch.n_iov):
        p = <uint8_t*>batch.iov[i].iov_base
        end = p + batch.iov[i].iov_len
        while p < end:
            size = frame_size(p)
            if taken < size:
                t.n_direct += n_packets
                count_written(t, s, n_packets, n_data)
                return
            taken -= size
            if frame_is_packet(p):
                n_packets += 1
                n_data += frame_data_size(p, size)
            p += size


cdef void output_plain(ThreadContext* t, Session* s, Batch* batch) noexcept nogil:
    cdef size_t done = 0
    cdef ssize_t taken
    cdef int first = 0
    cdef int n
    while first < batch.n_iov:
        n = min(batch.n_iov - first, OUTPUT_IOVS)
        taken = socket_write(t, s, &batch.iov[first], n)
        if taken < 0:
            fail_write_locked(t, s)
            break
        done += <size_t>taken
        if <size_t>taken < iov_bytes(&batch.iov[first], n):
            break
        first += n
    batch_finish(t, s, batch, done)


cdef void batch_finish(ThreadContext* t, Session* s, Batch* batch, size_t taken) noexcept nogil:
    """Count the taken packets of a batch, and queue the rest unless the session broke."""
    if taken:
        count_flush(t, max(batch.n_packets, 1))    # the relay's own frames mostly come one by one
        if s.spare is not NULL:
            flows_bypass(&s.spare.flows[LANE_DATA], taken)
    count_taken(t, s, batch, taken)
    if taken >= batch.n_bytes:
        return
    if s.state == SESSION_OPEN:
        frames_queue(t, s, batch, taken)
    else:
        batch_lose(t, DROP_WRITE_ERROR, batch, taken, s.peer.key)


cdef inline size_t iov_bytes(const iovec* iov, int n) noexcept nogil:
    cdef size_t total = 0
    cdef int i
    for i in range(n):
        total += iov[i].iov_len
    return total


cdef bint sealed_write(ThreadContext* t, Session* s, size_t n) noexcept nogil:
    """Write n bytes of t.sealed and queue the rest in front of everything else.

    Return whether all were written; after an error the session is no longer open.
    """
    cdef iovec wire
    cdef ssize_t taken
    wire.iov_base = t.sealed
    wire.iov_len = n
    taken = socket_write(t, s, &wire, 1)
    if taken < 0:
        fail_write_locked(t, s)
        return False
    if <size_t>taken == n:
        return True
    if backlog_get(t, s) is NULL or not backlog_push(
            s.backlog, &t.core.budget, LANE_WIRE, t.sealed + taken,
            <uint32_t>(n - <size_t>taken), 0, t.now_ns,
            drop_displaced, NULL):
        fail_locked(t, s, CLOSE_NO_MEMORY, 0)
    return False


cdef void output_first_locked(ThreadContext* t, Session* s, const uint8_t* data,
                              size_t n) noexcept nogil:
    """Write the first bytes of a session and open the gate that backlog_gate closed.

    data may begin with the answer to an upgrade before its frames; n is up to SEAL_CHUNK.
    """
    cdef ssize_t taken
    cdef size_t produced
    cdef RecordStatus status
    cdef iovec whole
    whole.iov_base = <void*>data
    whole.iov_len = n
    if s.records is not NULL and n:
        status = record_seal(s.records, &t.keyring, &whole, 1, t.sealed, t.sealed_capacity,
                             &produced)
        if status == RECORD_OK:
            sealed_write(t, s, produced)
        else:
            fail_locked(t, s, CLOSE_TLS, status)
    elif n:
        taken = socket_write(t, s, &whole, 1)
        if taken < 0:
            fail_write_locked(t, s)
        elif <size_t>taken < n and not backlog_push(
                s.backlog, &t.core.budget, LANE_WIRE, data + taken, <uint32_t>(n - <size_t>taken),
                0, t.now_ns,
                drop_displaced, NULL):
            fail_locked(t, s, CLOSE_NO_MEMORY, 0)
    if backlog_empty(s.backlog):
        # The backlog is empty, so no drop is reported.
        backlog_free(s.backlog, &t.core.budget, drop_displaced, NULL)
        s.backlog = NULL
    else:
        deadline_restart_locked(t, s)


cdef bint backlog_gate(const Core* core, Session* s) noexcept nogil:
    """Make all output wait for output_first_locked. False without memory."""
    cdef bint made
    # The session is new, but a thread that reads all sessions may read it.
    pthread_mutex_lock(&s.output_lock)
    s.backlog = backlog_for(core, s.peer.role)
    made = s.backlog is not NULL
    pthread_mutex_unlock(&s.output_lock)
    return made


cdef void output_sealed(ThreadContext* t, Session* s, Batch* batch) noexcept nogil:
    # Sealing chunk by chunk bounds what is sealed beyond the room in the socket to one chunk.
    cdef int first = 0
    cdef int n
    cdef size_t chunk_bytes
    cdef size_t done_bytes = 0
    cdef size_t produced
    cdef bint all_written
    cdef RecordStatus status
    while first < batch.n_iov:
        n = 0
        chunk_bytes = 0
        while first + n < batch.n_iov and chunk_bytes < SEAL_CHUNK:
            chunk_bytes += batch.iov[first + n].iov_len
            n += 1
        status = record_seal(s.records, &t.keyring, &batch.iov[first], n, t.sealed,
                             t.sealed_capacity, &produced)
        if status != RECORD_OK:
            fail_locked(t, s, CLOSE_TLS, status)
            break
        all_written = sealed_write(t, s, produced)
        if s.state == SESSION_OPEN:
            done_bytes += chunk_bytes
            first += n
        if not all_written:
            break
    batch_finish(t, s, batch, done_bytes)


include "flush.pxi"


cdef inline void contention_note(ThreadContext* t, Session* s) noexcept nogil:
    # When several senders want more than the socket takes, their workers read them in small equal
    # pieces from now on: no sender gets all the room, and TCP slows all of them alike.
    if s.backlog is not NULL:
        if s.backlog.flows[LANE_DATA].n_active > 1 and s.contended != CONTENDED_FOR:
            atomic_store_u8(&s.contended, CONTENDED_FOR)
    elif s.contended:
        atomic_store_u8(&s.contended, s.contended - 1)
        if s.contended == 0:
            spare_free_locked(t, s)


# ---- output, by any thread

cdef void output_locked(ThreadContext* t, Session* s, Batch* batch) noexcept nogil:
    if s.backlog is not NULL:
        frames_queue(t, s, batch, 0)
    elif s.records is NULL:
        output_plain(t, s, batch)
    else:
        output_sealed(t, s, batch)
    contention_note(t, s)


cdef bint session_output(ThreadContext* t, Session* s, uint64_t handle,
                         Batch* batch) noexcept nogil:
    """Send whole frames to a session: to its socket, or to the end of its backlog. Never block.

    False when the session is gone, is closing, or broke during the write; then some or all frames
    are lost.
    """
    cdef bint is_open = False
    pthread_mutex_lock(&s.output_lock)
    if atomic_load_u64(&s.handle) != handle:
        # The slot has another session or none: only its handle may be read.
        batch_lose(t, DROP_GONE_DISCONNECTED, batch, 0, NULL)
    elif s.state != SESSION_OPEN or s.leaving:
        batch_lose(t, DROP_GONE_DISCONNECTED, batch, 0, s.peer.key)
    else:
        output_locked(t, s, batch)
        is_open = s.state == SESSION_OPEN
    pthread_mutex_unlock(&s.output_lock)
    return is_open


cdef void batch_of_frame(Batch* batch, iovec* iov, uint8_t* frame, size_t n) noexcept nogil:
    iov.iov_base = frame
    iov.iov_len = n
    batch.iov = iov
    batch.n_iov = 1
    batch.n_bytes = n
    batch.n_packets = 0
    batch.n_data = 0


cdef bint session_output_frame(ThreadContext* t, uint64_t handle, uint8_t* frame,
                               size_t n) noexcept nogil:
    """Send frames of the relay itself; return what session_output returns."""
    cdef Session* s = session_at(t.core, handle)
    cdef Batch batch
    cdef iovec iov
    if atomic_load_u64(&s.handle) != handle:
        return False
    batch_of_frame(&batch, &iov, frame, n)
    return session_output(t, s, handle, &batch)


include "health.pxi"


cdef bint session_fail(ThreadContext* t, Session* s, uint64_t handle, CloseReason reason,
                       uint8_t detail) noexcept nogil:
    """Have a session closed by its worker. False when it is gone or closing already."""
    cdef bint was_open
    pthread_mutex_lock(&s.output_lock)
    was_open = atomic_load_u64(&s.handle) == handle and s.state == SESSION_OPEN
    if was_open:
        fail_locked(t, s, reason, detail)
    pthread_mutex_unlock(&s.output_lock)
    return was_open


cdef void leave_written_locked(ThreadContext* t, Session* s) noexcept nogil:
    """End the output of a leaving session without a backlog.

    Reading goes on until the peer closes, for LEAVE_NS at most: closing with unread input would
    reset the connection and discard what the kernel has not delivered yet.
    """
    s.close_reason = CLOSE_DRAIN
    close_notify_locked(t, s)
    s.leaving = LEAVING_READS
    shutdown(s.fd, SHUT_WR)
    s.write_deadline_ns = clock_ns() + LEAVE_NS
    wheel_arm(&t.core.wheels[s.worker], &s.timer, s.write_deadline_ns)


cdef bint session_leave(ThreadContext* t, Session* s, uint64_t handle) noexcept nogil:
    """Have a session closed once its backlog is written, or at its write deadline.

    False when it is gone, closing or leaving already.
    """
    cdef bint leaves
    pthread_mutex_lock(&s.output_lock)
    leaves = (atomic_load_u64(&s.handle) == handle and s.state == SESSION_OPEN
              and not s.leaving)
    if leaves:
        s.leaving = LEAVING_WRITES
        if s.backlog is NULL:
            leave_written_locked(t, s)
    pthread_mutex_unlock(&s.output_lock)
    return leaves


cdef void session_writable(ThreadContext* t, Session* s) noexcept nogil:
    """Write the backlog, now that the socket has room."""
    pthread_mutex_lock(&s.output_lock)
    flush_locked(t, s)
    pthread_mutex_unlock(&s.output_lock)
