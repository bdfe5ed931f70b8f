# The life of a packet, top to bottom: session_read → frames_walk → packet_relay → target_append → targets_flush.
#
# A turn reads every session that is ready into one gather buffer, rewrites its frames in place, and notes for each
# destination where its frames lie; then every destination is written once. Sessions that ended are taken apart last,
# so that what they sent before goes out before the news that they left.

from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memmove

from fastderp.dataplane.counters cimport (
    DROP_DUP_CLIENT, DROP_UNKNOWN_DEST, DROP_UNKNOWN_DEST_ON_FWD, KIND_DISCO, KIND_OTHER,
)
from fastderp.dataplane.peer_gone cimport departures_first, departures_init
from fastderp.dataplane.events cimport EVENT_FRAME, Event, event_new, events_push
from fastderp.dataplane.frame cimport (
    FORWARD_OVERHEAD, FRAME_BAD_SIZE, FRAME_FORWARD_PACKET, FRAME_HEADER, FRAME_NOTE_PREFERRED, FRAME_PARTIAL,
    FRAME_PEER_GONE, FRAME_PING, FRAME_PONG, FRAME_READY, FRAME_RECV_PACKET, FRAME_SEND_PACKET, FRAME_SKIP,
    FrameStatus, GONE_NOT_HERE, PACKET_MAX, PACKET_OVERHEAD, PEER_GONE_SIZE, PING_DATA, ROLE_CLIENT,
    frame_carries_disco, frame_is_known, frame_next, frame_put_header,
)
from fastderp.dataplane.output cimport (
    packet_drop, poll_set_locked, queue_time_fold, session_fail, session_output, session_writable, turn_free,
    turn_init, turn_rest,
)
from fastderp.tls.record cimport RECORD_CLOSE_NOTIFY, RECORD_OK, RecordStatus, record_open_some
from fastderp.dataplane.routes cimport (
    Route, RouteTable, routes_find, routes_hash, routes_note_speaker, routes_note_stranger, routes_note_told,
    routes_reader_enter, routes_reader_leave, routes_stranger_stamp,
)
from fastderp.dataplane.session cimport (
    CLOSE_BAD_SIZE, CLOSE_CONTROL_OVERFLOW, CLOSE_EOF, CLOSE_NOT_PERMITTED, CLOSE_NO_MEMORY, CLOSE_RESET, CLOSE_TLS,
    NOT_HERE_BURST, SESSION_CLOSING, SESSION_OPEN, Batch, Bucket, CloseReason, departures_tell, session_at, session_due, session_end,
    session_note_sender, stash_put,
)
from fastderp.dataplane.sys cimport (
    EAGAIN, EFD_CLOEXEC, EFD_NONBLOCK, EINTR, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLL_CLOEXEC,
    EPOLL_CTL_ADD, MSG_DONTWAIT, atomic_load_u64, atomic_load_u8, atomic_store_u8, clock_ns, close, counter_add,
    epoll_create1, epoll_ctl, epoll_wait, errno, eventfd, eventfd_drain, eventfd_wake, pages_release,
    pthread_attr_destroy, pthread_attr_init, pthread_attr_setstacksize, pthread_attr_t, pthread_create, pthread_join,
    pthread_mutex_lock, pthread_mutex_unlock, recv, thread_ask_short_slice,
)
from fastderp.dataplane.timer_wheel cimport Wheel, wheel_arm, wheel_awake, wheel_init, wheel_pop, wheel_sleep

cdef enum:
    NO_TARGET = -1
    FIGHTING = -2                # the sessions of the key fight over it, and none is sent anything
    STACK_BYTES = 262144
    SLICE_NS = 100000            # the shortest the kernel grants, and far more than most turns take
    WORKER_KEYS = 256            # expanded at once
    TIMED_PACKETS = 16           # written in one go, from which on the time they waited for it counts

cdef uint64_t WAKE = 0           # epoll's name for wake_fd; no session has handle 0
cdef uint64_t SECOND_NS = 1000000000
cdef uint64_t RECHECK_NS = 20000000              # a few ticks of the wheel: never due in the turn that sets it


# ---- reading

cdef void read_ended(Worker* w, Session* s, CloseReason reason, uint8_t detail) noexcept nogil:
    # The session ends with this turn; a reason given earlier, by whoever failed it, stays.
    if s.is_ending:
        return
    if w.n_ending == MAX_ENDING:
        session_fail(&w.turn, s, s.handle, reason, detail)
        line_append(&w.unfinished, s)
        return
    s.is_ending = True
    line_remove(&w.unfinished, s)
    w.ending[w.n_ending] = s
    w.n_ending += 1
    pthread_mutex_lock(&s.output_lock)
    if s.state == SESSION_OPEN:
        s.close_reason = reason
        s.close_detail = detail
    pthread_mutex_unlock(&s.output_lock)


cdef inline size_t read_limit(const Worker* w, const Session* s) noexcept nogil:
    if s.is_contending:
        return READ_CONTENDING_MAX
    return READ_LIMITED_MAX if rate_applies(w, s) else READ_MAX


cdef ssize_t socket_read(Worker* w, Session* s, uint8_t* into) noexcept nogil:
    # Bytes read; 0 when there are none now or ever again (then the session is ending).
    cdef size_t most = read_limit(w, s)
    cdef ssize_t got = recv(s.fd, into, most, MSG_DONTWAIT)
    s.is_drained = got < <ssize_t>most and not s.has_hung_up
    if got > 0:
        s.heard_ns = w.turn.now_ns
        counter_add(&w.counters.reads, 1)
        return got
    if got == 0:
        read_ended(w, s, CLOSE_EOF, 0)
    elif errno != EAGAIN and errno != EINTR:
        read_ended(w, s, CLOSE_RESET, 0)
    else:
        s.is_drained = errno == EAGAIN
        s.has_hung_up = False
    return 0


cdef size_t read_sealed(Worker* w, Session* s, uint8_t* into) noexcept nogil:
    # One read of ciphertext, unless whole records are left of the last one, and the complete records of it opened behind
    # each other, as many as one turn allows.
    cdef size_t n = s.record.n
    cdef size_t n_left = READ_RECORDS
    cdef size_t consumed = 0
    cdef size_t produced = 0
    cdef RecordStatus status
    if n:
        memcpy(w.cipher, s.record.data, n)
    if not s.has_records:
        n += <size_t>socket_read(w, s, w.cipher + n)
    status = record_open_some(s.records, &w.turn.keyring, w.cipher, n, into, n, &n_left, &consumed, &produced)
    s.has_records = n_left == 0
    if status == RECORD_CLOSE_NOTIFY:
        read_ended(w, s, CLOSE_EOF, 0)
    elif status != RECORD_OK:
        read_ended(w, s, CLOSE_TLS, status)
    elif not stash_put(&s.record, w.cipher + consumed, n - consumed):
        read_ended(w, s, CLOSE_NO_MEMORY, 0)
    return produced


cdef void session_read(Worker* w, Session* s, bint more) noexcept nogil:
    """Relay what is complete of one session's bytes: those it left in its stash and, if `more`, those of one read."""
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
        n += read_sealed(w, s, start + n) if s.records is not NULL else <size_t>socket_read(w, s, start + n)
    walked = frames_walk(w, s, start, n)
    if not stash_put(&s.frame, start + walked, n - walked):
        read_ended(w, s, CLOSE_NO_MEMORY, 0)
    w.n_gathered += walked
    if (s.is_cut or s.has_records or not s.is_drained) and s.resume_ns == 0 and not s.is_ending:
        line_append(&w.unfinished, s)


cdef void session_first_read(Worker* w, Session* s) noexcept nogil:
    # What came behind the login may be in the stashes without another byte to be read. It comes before what the socket
    # has: should that be the end already, a turn might not do for what was said before.
    s.is_fresh = False
    s.is_drained = False
    s.has_records = s.record.n != 0
    session_read(w, s, s.frame.n == 0)


# ---- receive rate limit (§6.8)

cdef void limit_refresh(Worker* w) noexcept nogil:
    # The worker's own copy of the limit, looked at once per turn.
    cdef Core* core = w.turn.core
    if atomic_load_u64(&core.limit_version) == w.limit_version:
        return
    pthread_mutex_lock(&core.limit_lock)
    w.limit = core.limit
    w.limit_version = core.limit_version
    pthread_mutex_unlock(&core.limit_lock)


cdef inline bint rate_applies(const Worker* w, const Session* s) noexcept nogil:
    return s.peer.role == ROLE_CLIENT and w.limit.bytes_per_s > 0


cdef bint rate_allows(Worker* w, Session* s, size_t n_payload) noexcept nogil:
    """Charge a frame by its header. False when the session must wait; then it is held back until it may go on."""
    cdef Bucket* b = &s.bucket
    cdef double cost = <double>min(n_payload, <size_t>(KEY_SIZE + PACKET_MAX))
    if b.version != w.limit_version:
        b.version = w.limit_version
        b.tokens = w.limit.burst_bytes
    else:
        b.tokens += <double>(w.turn.now_ns - b.filled_ns) * 1e-9 * w.limit.bytes_per_s
        b.tokens = min(b.tokens, w.limit.burst_bytes)
    b.filled_ns = w.turn.now_ns
    if b.tokens >= cost:
        b.tokens -= cost
        return True
    counter_add(&w.counters.rate_limit_per_client_waited, 1)
    s.resume_ns = w.turn.now_ns + <uint64_t>((cost - b.tokens) / w.limit.bytes_per_s * 1e9) + 1
    pthread_mutex_lock(&s.output_lock)
    poll_set_locked(&w.turn, s, s.wants_out, True)
    pthread_mutex_unlock(&s.output_lock)
    if atomic_load_u64(&w.turn.core.limit_version) != w.limit_version:
        s.resume_ns = w.turn.now_ns + RECHECK_NS    # a new limit; who set it may have missed this session
    wheel_arm(&w.turn.core.wheels[w.index], &s.timer, s.resume_ns)
    return False


cdef void session_resume(Worker* w, Session* s) noexcept nogil:
    s.resume_ns = 0
    pthread_mutex_lock(&s.output_lock)
    poll_set_locked(&w.turn, s, s.wants_out, False)
    pthread_mutex_unlock(&s.output_lock)
    session_read(w, s, False)


# ---- walking frames

cdef size_t frames_walk(Worker* w, Session* s, uint8_t* start, size_t n) noexcept nogil:
    """Act on every complete frame of start[:n]; return how many bytes are dealt with."""
    cdef uint8_t* p = start
    cdef uint8_t* end = start + n
    cdef size_t total = 0
    cdef size_t skip
    cdef bint spoke = s.route is NULL    # noted once per walk is enough
    cdef FrameStatus status
    w.has_last = False
    w.n_touched = 0
    s.is_cut = False
    while True:
        if w.n_touched >= TOUCH_MAX:
            s.is_cut = True
            break
        if s.skip_bytes:
            skip = min(s.skip_bytes, <uint64_t>(end - p))
            s.skip_bytes -= skip
            p += skip
        if end - p < FRAME_HEADER:
            break
        status = frame_next(p, <size_t>(end - p), s.peer.role, &total)
        if not s.has_begun:
            if rate_applies(w, s) and not rate_allows(w, s, total - FRAME_HEADER):
                break
            s.has_begun = True
            if not spoke:
                spoke = True
                routes_note_speaker(&w.turn.core.routes, s.route, s.handle)
        if status == FRAME_PARTIAL:
            break
        s.has_begun = False
        if status == FRAME_READY:
            frame_act(w, s, p, total)
            p += total
        elif status == FRAME_SKIP:
            counter_add(&w.counters.unknown_frames, not frame_is_known(p[0]))
            s.skip_bytes = total
        else:
            counter_add(&w.counters.got_ping, p[0] == FRAME_PING)    # counted before its size is judged (§5)
            read_ended(w, s, CLOSE_BAD_SIZE if status == FRAME_BAD_SIZE else CLOSE_NOT_PERMITTED, p[0])
            return n
    return <size_t>(p - start)


cdef void frame_act(Worker* w, Session* s, uint8_t* p, size_t total) noexcept nogil:
    if p[0] == FRAME_SEND_PACKET:
        packet_relay(w, s, p, total)
    elif p[0] == FRAME_FORWARD_PACKET:
        forward_receive(w, s, p, total)
    elif p[0] == FRAME_PING:
        ping_answer(w, s, p)
    elif p[0] == FRAME_NOTE_PREFERRED:
        preferred_note(w, s, p[FRAME_HEADER] != 0)
    else:
        frame_report(w, s, p, total)


cdef void packet_relay(Worker* w, Session* s, uint8_t* p, size_t total) noexcept nogil:
    """Turn a SendPacket into the RecvPacket it is, in place, and note whom it goes to (§6.4)."""
    cdef size_t n_data = total - PACKET_OVERHEAD
    cdef int kind = KIND_DISCO if frame_carries_disco(p, total) else KIND_OTHER
    counter_add(&s.rx_packets, 1)
    counter_add(&s.rx_bytes, n_data)
    counter_add(&w.counters.packets_received[kind], 1)
    counter_add(&w.counters.bytes_received, n_data)
    if not w.has_last or memcmp(p + FRAME_HEADER, w.last_dst, KEY_SIZE) != 0:
        memcpy(w.last_dst, p + FRAME_HEADER, KEY_SIZE)
        w.last_target = destination_find(w, s.route, s.peer.key, s.handle, w.last_dst, False)
        w.has_last = True
    if w.last_target < 0:
        packet_drop(&w.turn, DROP_UNKNOWN_DEST if w.last_target == NO_TARGET else DROP_DUP_CLIENT, p, total,
                    s.peer.key, w.last_dst)
        if kind == KIND_DISCO and w.last_target == NO_TARGET:
            not_here_answer(w, s, p)
    elif w.last_is_link:
        packet_forward(w, s, p, total, n_data)
    else:
        s.is_contending = w.targets[w.last_target].is_contended
        p[0] = FRAME_RECV_PACKET
        memcpy(p + FRAME_HEADER, s.peer.key, KEY_SIZE)
        target_append(w, &w.last_target, p, total, 1, n_data)


cdef void packet_forward(Worker* w, Session* s, const uint8_t* p, size_t total, size_t n_data) noexcept nogil:
    # To another relay: a ForwardPacket is 32 bytes longer, so it is written out beside the gather buffer (§7.6).
    cdef uint8_t* q = w.forward + w.n_forwarded
    frame_put_header(q, FRAME_FORWARD_PACKET, <uint32_t>(2 * KEY_SIZE + n_data))
    memcpy(q + FRAME_HEADER, s.peer.key, KEY_SIZE)
    memcpy(q + FRAME_HEADER + KEY_SIZE, p + FRAME_HEADER, KEY_SIZE + n_data)
    counter_add(&w.counters.packets_forwarded_out, 1)
    target_append(w, &w.last_target, q, FORWARD_OVERHEAD + n_data, 1, n_data)
    w.n_forwarded = <size_t>(q - w.forward) + FORWARD_OVERHEAD + n_data


cdef void forward_receive(Worker* w, Session* s, uint8_t* p, size_t total) noexcept nogil:
    """Turn a mesh peer's ForwardPacket into a RecvPacket 32 bytes further on (§7.4). Local destinations only."""
    cdef uint8_t* q = p + KEY_SIZE
    cdef size_t n_data = total - FORWARD_OVERHEAD
    cdef size_t n_payload = KEY_SIZE + n_data
    cdef Route* source = routes_find(&w.turn.core.routes, p + FRAME_HEADER)
    cdef int target
    counter_add(&w.counters.packets_forwarded_in, 1)
    memcpy(w.last_dst, q + FRAME_HEADER, KEY_SIZE)
    target = destination_find(w, source, p + FRAME_HEADER, 0, w.last_dst, True)
    w.has_last = False           # found among local ones only: a SendPacket behind this has to look anew
    if target < 0:
        packet_drop(&w.turn, DROP_UNKNOWN_DEST_ON_FWD if target == NO_TARGET else DROP_DUP_CLIENT, p, total,
                    p + FRAME_HEADER, w.last_dst)
        if target == NO_TARGET and frame_carries_disco(p, total):
            not_here_answer(w, s, q)
        return
    memmove(q + FRAME_HEADER, p + FRAME_HEADER, KEY_SIZE)
    if is_zero_key(p + FRAME_HEADER):
        q += KEY_SIZE            # the old form of RecvPacket, without a key (§6.6)
        n_payload = n_data
    frame_put_header(q, FRAME_RECV_PACKET, <uint32_t>n_payload)
    target_append(w, &target, q, FRAME_HEADER + n_payload, 1, n_data)


cdef inline bint is_zero_key(const uint8_t* key) noexcept nogil:
    cdef uint64_t words[4]
    memcpy(words, key, KEY_SIZE)
    return (words[0] | words[1] | words[2] | words[3]) == 0


cdef int destination_find(Worker* w, Route* source, const uint8_t* source_key, uint64_t sender, const uint8_t* dst,
                          bint only_local) noexcept nogil:
    # The target for a key, or NO_TARGET or FIGHTING (§6.4): local beats mesh.
    # A local receiver is noted as one to be told when the source leaves. w.last_is_link says what was found: the
    # session itself may belong to somebody else by now.
    cdef Route* route = routes_find(&w.turn.core.routes, dst)
    cdef uint64_t receiver
    if route is NULL:
        return NO_TARGET
    receiver = atomic_load_u64(&route.active)
    if receiver == 0 and atomic_load_u8(&route.is_fighting):
        return FIGHTING
    w.last_is_link = receiver == 0
    if receiver == 0:
        receiver = 0 if only_local else atomic_load_u64(&route.forwarder)
        return target_get(w, receiver) if receiver != 0 else NO_TARGET
    if receiver != sender:
        seen_pair_note(w, source, source_key, receiver)
    return target_get(w, receiver)


cdef void seen_pair_note(Worker* w, Route* source, const uint8_t* source_key, uint64_t receiver) noexcept nogil:
    # A mesh peer forwards packets of keys that are not known here, too: such a key is remembered by its hash, as long as
    # no key is new to the region.
    cdef RouteTable* routes = &w.turn.core.routes
    cdef uint64_t stamp = source.stamp if source is not NULL else routes_stranger_stamp(routes, source_key)
    cdef SeenPair* pair = &w.seen[((stamp * 0x9E3779B97F4A7C15u) ^ (receiver * 0xC2B2AE3D27D4EB4Fu)) >> 52]
    if pair.stamp == stamp and pair.receiver == receiver:
        return
    if source is not NULL:
        routes_note_told(routes, source, receiver)
    else:
        routes_note_stranger(routes, source_key, receiver)
    if w.turn.core.counts_senders:
        session_note_sender(w.turn.core, receiver, routes_hash(routes, source_key))
    pair.stamp = stamp
    pair.receiver = receiver


cdef void not_here_answer(Worker* w, Session* s, uint8_t* p) noexcept nogil:
    # PeerGone(NotHere) for w.last_dst, written over the packet it answers; 3 at once, then 1 per second.
    cdef uint64_t gained = (w.turn.now_ns - s.not_here_ns) // SECOND_NS
    cdef int target
    if gained:
        s.not_here_tokens = <uint8_t>min(<uint64_t>NOT_HERE_BURST, s.not_here_tokens + gained)
        s.not_here_ns += gained * SECOND_NS
    if s.not_here_tokens == 0:
        return
    if s.not_here_tokens == NOT_HERE_BURST:
        s.not_here_ns = w.turn.now_ns    # a full bucket gains nothing
    s.not_here_tokens -= 1
    frame_put_header(p, FRAME_PEER_GONE, KEY_SIZE + 1)
    memcpy(p + FRAME_HEADER, w.last_dst, KEY_SIZE)
    p[FRAME_HEADER + KEY_SIZE] = GONE_NOT_HERE
    counter_add(&w.counters.peer_gone_not_here_frames, 1)
    target = target_get(w, s.handle)
    target_append(w, &target, p, PEER_GONE_SIZE, 0, 0)


cdef void ping_answer(Worker* w, Session* s, uint8_t* p) noexcept nogil:
    # The pong is the ping with another type, cut to its first 8 bytes. Pings behind it are not answered until it is
    # written (§5): here until the flush, then while it waits in the backlog.
    cdef int target = target_get(w, s.handle)
    counter_add(&w.counters.got_ping, 1)
    if w.targets[target].has_pong:
        return
    counter_add(&w.counters.sent_pong, 1)
    frame_put_header(p, FRAME_PONG, PING_DATA)
    target_append(w, &target, p, FRAME_HEADER + PING_DATA, 0, 0)
    w.targets[target].has_pong = True


cdef void preferred_note(Worker* w, Session* s, bint preferred) noexcept nogil:
    cdef bint settled = w.turn.now_ns - s.opened_ns > w.turn.core.home_settled_ns
    if s.preferred == preferred:
        return
    atomic_store_u8(&s.preferred, preferred)
    counter_add(&w.counters.home_connections, 1 if preferred else <uint64_t>-1)
    if settled:
        counter_add(&w.counters.home_moves_in if preferred else &w.counters.home_moves_out, 1)


cdef void frame_report(Worker* w, Session* s, const uint8_t* p, size_t total) noexcept nogil:
    # Who sends faster than the control plane follows is closed: what it announces later would not fit together.
    cdef Event* event = event_new(&w.turn.core.events, EVENT_FRAME, s.handle, p, <uint32_t>total)
    if event is not NULL:
        events_push(&w.turn.core.events, event)
    else:
        session_fail(&w.turn, s, s.handle, CLOSE_CONTROL_OVERFLOW, 0)


# ---- targets

cdef int target_get(Worker* w, uint64_t handle) noexcept nogil:
    """Return the target for a session, new or already there."""
    cdef uint32_t bucket = <uint32_t>handle & (TARGET_BUCKETS - 1)
    cdef Target* target
    while w.buckets[bucket] != 0:
        if w.targets[w.buckets[bucket] - 1].handle == handle:
            return w.buckets[bucket] - 1
        bucket = (bucket + 1) & (TARGET_BUCKETS - 1)
    if w.n_targets == MAX_TARGETS:
        targets_flush(w)
        bucket = <uint32_t>handle & (TARGET_BUCKETS - 1)
    target = &w.targets[w.n_targets]
    w.n_targets += 1
    target.handle = handle
    target.session = session_at(w.turn.core, handle)
    target.is_contended = atomic_load_u8(&target.session.contended) != 0
    target.has_pong = False
    target.first_run = target.last_run = -1
    target.n_runs = 0
    target.n_packets = 0
    target.n_data = 0
    target.bucket = bucket
    w.n_touched += 1
    w.buckets[bucket] = <uint16_t>w.n_targets
    return w.n_targets - 1


cdef void target_append(Worker* w, int* index, uint8_t* frame, size_t n, uint32_t n_packets,
                        size_t n_data) noexcept nogil:
    """Note a whole frame for a target. *index changes when everything had to be flushed to make room."""
    cdef Target* target = &w.targets[index[0]]
    cdef uint64_t handle
    cdef Run* run
    if target.last_run >= 0:
        run = &w.runs[target.last_run]
        if run.data + run.n == frame and run.n < RUN_MAX:
            run.n += <uint32_t>n
            target.n_packets += n_packets
            target.n_data += n_data
            return
    if w.n_runs == MAX_RUNS:
        handle = target.handle
        targets_flush(w)
        index[0] = target_get(w, handle)
        target = &w.targets[index[0]]
    run = &w.runs[w.n_runs]
    run.data = frame
    run.n = <uint32_t>n
    run.next = -1
    if target.last_run >= 0:
        w.runs[target.last_run].next = w.n_runs
    else:
        target.first_run = w.n_runs
    target.last_run = w.n_runs
    target.n_runs += 1
    target.n_packets += n_packets
    target.n_data += n_data
    w.n_runs += 1


cdef void target_send(Worker* w, Target* target) noexcept nogil:
    cdef Batch batch
    cdef int run = target.first_run
    batch.iov = w.iov
    batch.n_iov = 0
    batch.n_bytes = 0
    batch.n_packets = target.n_packets
    batch.n_data = target.n_data
    while run >= 0:
        w.iov[batch.n_iov].iov_base = w.runs[run].data
        w.iov[batch.n_iov].iov_len = w.runs[run].n
        batch.n_bytes += w.runs[run].n
        batch.n_iov += 1
        run = w.runs[run].next
    session_output(&w.turn, target.session, target.handle, &batch)


cdef void targets_flush(Worker* w) noexcept nogil:
    """Write every target once. What was gathered is not needed any more."""
    cdef int i
    cdef uint64_t n_before = w.turn.n_direct
    for i in range(w.n_targets):
        if w.targets[i].n_runs:
            target_send(w, &w.targets[i])
        w.buckets[w.targets[i].bucket] = 0
    w.n_targets = 0
    w.n_runs = 0
    w.has_last = False
    gather_time_note(w, w.turn.n_direct - n_before)


cdef inline void gather_time_note(Worker* w, uint64_t n_direct) noexcept nogil:
    # Packets that went straight to their sockets waited here, each for half of the time that reading and writing all of
    # them took, on average. A handful takes microseconds, not worth a look at the clock.
    cdef uint64_t now_ns
    if n_direct >= TIMED_PACKETS:
        now_ns = clock_ns()
        w.turn.waited_ns += n_direct * ((now_ns - w.gather_ns) // 2)
        w.gather_ns = now_ns


# ---- the line of unfinished sessions

cdef void line_append(Line* line, Session* s) noexcept nogil:
    if s.is_unfinished:
        return
    s.is_unfinished = True
    s.next_unfinished = NULL
    s.previous_unfinished = line.last
    if line.last is not NULL:
        line.last.next_unfinished = s
    else:
        line.first = s
    line.last = s
    line.n += 1


cdef void line_remove(Line* line, Session* s) noexcept nogil:
    if not s.is_unfinished:
        return
    s.is_unfinished = False
    if s.previous_unfinished is not NULL:
        s.previous_unfinished.next_unfinished = s.next_unfinished
    else:
        line.first = s.next_unfinished
    if s.next_unfinished is not NULL:
        s.next_unfinished.previous_unfinished = s.previous_unfinished
    else:
        line.last = s.previous_unfinished
    line.n -= 1


cdef void line_rotate(Line* line) noexcept nogil:
    # Whose bytes come first in a turn finds room at a crowded receiver: nobody is that every time.
    cdef Session* first = line.first
    if line.n > 1:
        line_remove(line, first)
        line_append(line, first)


# ---- the thread

cdef void session_event(Worker* w, Session* s, uint32_t events) noexcept nogil:
    # epoll tells of what is new, once (EPOLLET): the kernel need not look at every socket again after it was read.
    if s.is_ending:
        return                   # earlier in this turn: what comes behind is not read any more
    if atomic_load_u8(&s.state) == SESSION_CLOSING:
        read_ended(w, s, CLOSE_EOF, 0)
        return
    if events & EPOLLOUT:
        session_writable(&w.turn, s)
    if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        s.has_hung_up = True
    if s.is_fresh:
        session_first_read(w, s)
    elif s.resume_ns == 0:
        if events & (EPOLLIN | EPOLLHUP | EPOLLERR):
            s.is_drained = False
            if not s.is_unfinished:
                session_read(w, s, True)
    elif events & (EPOLLHUP | EPOLLERR):
        read_ended(w, s, CLOSE_RESET, 0)


cdef void session_go_on(Worker* w, Session* s) noexcept nogil:
    line_remove(&w.unfinished, s)
    if atomic_load_u8(&s.state) == SESSION_CLOSING:
        read_ended(w, s, CLOSE_EOF, 0)
    elif s.resume_ns == 0:
        session_read(w, s, not s.is_cut)


cdef void timers_run(Worker* w) noexcept nogil:
    cdef uint64_t handle
    cdef Session* s
    while True:
        handle = wheel_pop(&w.turn.core.wheels[w.index], w.turn.now_ns)
        if handle == 0:
            return
        s = session_at(w.turn.core, handle)
        if s.is_ending:
            continue
        if s.resume_ns != 0 and (s.resume_ns <= w.turn.now_ns
                                 or s.bucket.version != atomic_load_u64(&w.turn.core.limit_version)):
            session_resume(w, s)
        session_due(&w.turn, s)


cdef void worker_turn(Worker* w, int n_events) noexcept nogil:
    cdef int i
    cdef int n_unfinished = min(w.unfinished.n, <int>MAX_EVENTS)
    cdef uint64_t handle
    w.turn.now_ns = clock_ns()
    w.gather_ns = w.turn.now_ns
    limit_refresh(w)
    line_rotate(&w.unfinished)
    for i in range(n_unfinished):
        session_go_on(w, w.unfinished.first)
    for i in range(n_events):
        handle = w.events[i].data.u64
        if handle == WAKE:
            eventfd_drain(w.wake_fd)
        else:
            session_event(w, session_at(w.turn.core, handle), w.events[i].events)
    timers_run(w)
    targets_flush(w)
    w.n_gathered = w.n_forwarded = 0
    for i in range(w.n_ending):
        session_end(&w.turn, w.ending[i])
    w.n_ending = 0
    departures_tell(&w.turn, &w.turn.core.departures[w.index])
    queue_time_fold(&w.turn)


cdef void scratch_release(Worker* w) noexcept nogil:
    turn_rest(&w.turn)
    pages_release(w.gather, GATHER_MAX)
    pages_release(w.forward, 2 * GATHER_MAX)
    pages_release(w.cipher, UNREAD_MAX + READ_MAX)


cdef int events_wait(Worker* w) noexcept nogil:
    # Until there is something to do; the number of events, which may be 0 or an error's -1.
    cdef Wheel* wheel = &w.turn.core.wheels[w.index]
    cdef int n_events
    if w.unfinished.n or departures_first(&w.turn.core.departures[w.index]) is not NULL:
        return epoll_wait(w.epoll, w.events, MAX_EVENTS, 0)
    n_events = epoll_wait(w.epoll, w.events, MAX_EVENTS, wheel_sleep(wheel, w.turn.now_ns))
    wheel_awake(wheel)
    return n_events


cdef void* worker_run(void* arg) noexcept nogil:
    cdef Worker* w = <Worker*>arg
    cdef Core* core = w.turn.core
    cdef int n_events
    thread_ask_short_slice(SLICE_NS)
    while not atomic_load_u8(&w.stop):
        n_events = events_wait(w)
        routes_reader_enter(&core.routes, w.index)
        worker_turn(w, max(n_events, 0))
        routes_reader_leave(&core.routes, w.index)
        if atomic_load_u8(&w.wants_rest):
            atomic_store_u8(&w.wants_rest, 0)
            scratch_release(w)
    return NULL


cdef bint worker_init(Worker* w, Core* core, int index) noexcept nogil:
    """Prepare a zeroed worker. False when descriptors or memory are out; then worker_free takes what there is."""
    cdef epoll_event event
    w.index = index
    w.epoll = epoll_create1(EPOLL_CLOEXEC)
    w.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    w.gather = <uint8_t*>malloc(GATHER_MAX)
    w.cipher = <uint8_t*>malloc(UNREAD_MAX + READ_MAX)
    w.forward = <uint8_t*>malloc(2 * GATHER_MAX)
    if not turn_init(&w.turn, core, &w.counters, WORKER_KEYS):
        return False
    if w.gather is NULL or w.cipher is NULL or w.forward is NULL:
        return False
    if w.epoll < 0 or w.wake_fd < 0:
        return False
    w.turn.now_ns = clock_ns()
    core.epolls[index] = w.epoll
    wheel_init(&core.wheels[index], w.wake_fd, w.turn.now_ns)
    departures_init(&core.departures[index], w.wake_fd)
    event.events = EPOLLIN
    event.data.u64 = WAKE
    return epoll_ctl(w.epoll, EPOLL_CTL_ADD, w.wake_fd, &event) == 0


cdef bint worker_start(Worker* w) noexcept nogil:
    cdef pthread_attr_t attributes
    cdef bint started
    pthread_attr_init(&attributes)
    pthread_attr_setstacksize(&attributes, STACK_BYTES)
    started = pthread_create(&w.thread, &attributes, worker_run, w) == 0
    pthread_attr_destroy(&attributes)
    return started


cdef void worker_rest(Worker* w) noexcept nogil:
    """Have the thread give back what its busiest turns left behind, between two turns."""
    atomic_store_u8(&w.wants_rest, 1)
    eventfd_wake(w.wake_fd)


cdef void worker_stop(Worker* w) noexcept nogil:
    """Have the thread leave its loop and wait for it."""
    atomic_store_u8(&w.stop, 1)
    eventfd_wake(w.wake_fd)
    pthread_join(w.thread, NULL)


cdef void worker_free(Worker* w) noexcept nogil:
    close(w.epoll)
    close(w.wake_fd)
    free(w.gather)
    free(w.cipher)
    free(w.forward)
    turn_free(&w.turn)
