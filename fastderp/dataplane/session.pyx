# The life of a session: the control thread creates it, its worker keeps it alive and ends it.
# output.pyx writes to it, worker.pyx reads from it.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from fastderp.dataplane.arena cimport (
    ARENA_FULL, arena_alloc, arena_at, arena_free, arena_place,
)
from fastderp.dataplane.cardinality cimport SenderSketch, sketch_add
from fastderp.dataplane.peer_gone cimport (
    PeerGone, peer_gone_add, peer_gone_first, peer_gone_hand_over, peer_gone_pop,
)
from fastderp.dataplane.core cimport (
    Bucket, CLOSE_DRAIN, CLOSE_EOF, CLOSE_SHUTDOWN, CLOSE_SILENT, CLOSE_WRITE_TIMEOUT,
    LEAVING_READS, NOT_HERE_BURST, NOT_LEAVING, PEER_GONE_SLOTS, PROBLEM_RATE, SESSION_FREE,
    SESSION_OPEN, CloseReason, Stash, session_at,
)
from fastderp.dataplane.events cimport EVENT_CLOSED, Event, event_new, events_push
from fastderp.dataplane.frame cimport (
    FRAME_HEADER, FRAME_KEEP_ALIVE, FRAME_PEER_GONE, GONE_DISCONNECTED, KEY_SIZE, PEER_GONE_SIZE,
    ROLE_LINK, frame_put_header,
)
from fastderp.dataplane.output cimport (
    backlog_discard_locked, backlog_gate, fail_locked, flush_locked, close_notify_locked,
    output_first_locked, poll_set_locked, spare_free_locked, session_fail, session_output_frame,
    session_set_problem,
)
from fastderp.tls.record cimport Records, record_wipe
from fastderp.dataplane.routes cimport (
    HandleSet, Route, routes_find, routes_add_gone_watcher, routes_register, routes_unregister,
)
from fastderp.dataplane.stash cimport stashes_free
from fastderp.dataplane.sys cimport (
    EPOLLET, EPOLLIN, EPOLLRDHUP, EPOLL_CTL_ADD, EPOLL_CTL_DEL, atomic_load_u64, atomic_peek_u64,
    atomic_store_u64, atomic_store_u8, close, counter_add, epoll_ctl, epoll_event,
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)
from fastderp.dataplane.timer_wheel cimport Timer, wheel_arm, wheel_disarm


cdef enum:
    # 65,536 divided by the golden ratio: any number of steps in a row are spread evenly.
    JITTER_STEP = 40503


# ---- life

cdef uint32_t sessions_touched(Core* core) noexcept nogil:
    """Return how many slots were ever in use.

    Taking the lock makes their memory visible to this thread.
    """
    cdef uint32_t n
    pthread_mutex_lock(&core.sessions_lock)
    n = core.sessions.n_touched
    pthread_mutex_unlock(&core.sessions_lock)
    return n


cdef bint session_is_alive(void* core, uint64_t handle) noexcept nogil:
    return atomic_load_u64(&session_at(<Core*>core, handle).handle) == handle


cdef bint write_expired(ThreadContext* t, Session* s, uint64_t* due_ns) noexcept nogil:
    # True when the peer took nothing for the whole write timeout, or did not close after the end of
    # our output. *due_ns becomes the time of the next check, 0 = none. A session that broke at the
    # deadline or was closing did not time out.
    cdef bint expired
    pthread_mutex_lock(&s.output_lock)
    if s.backlog is not NULL and s.write_deadline_ns != 0 and t.now_ns >= s.write_deadline_ns:
        # epoll reports room only when much of the buffer is free; a slow reader may have freed
        # less.
        flush_locked(t, s)
    due_ns[0] = 0
    if s.state == SESSION_OPEN and (s.backlog is not NULL or s.leaving == LEAVING_READS):
        due_ns[0] = s.write_deadline_ns
    expired = due_ns[0] != 0 and t.now_ns >= due_ns[0]
    if expired and s.leaving == LEAVING_READS:
        fail_locked(t, s, CLOSE_DRAIN, 0)
    elif expired:
        counter_add(&t.counters.sclient_write_timeouts, 1)
        fail_locked(t, s, CLOSE_WRITE_TIMEOUT, 0)
    pthread_mutex_unlock(&s.output_lock)
    return expired


cdef void keep_alive(ThreadContext* t, Session* s, bint stuck) noexcept nogil:
    cdef uint8_t frame[FRAME_HEADER]
    s.next_keep_alive_ns = t.now_ns + s.keep_alive_ns
    pthread_mutex_lock(&s.output_lock)
    spare_free_locked(t, s)      # the contention that it records may have ended
    pthread_mutex_unlock(&s.output_lock)
    if not stuck:                # a peer that does not read already has a write deadline
        frame_put_header(frame, FRAME_KEEP_ALIVE, 0)
        session_output_frame(t, s.handle, frame, FRAME_HEADER)


cdef void link_watch(ThreadContext* t, Session* s) noexcept nogil:
    # A server sends something at least once per keep-alive period; after two silent ones the link
    # is closed (§4).
    cdef uint64_t silence_ns = 2 * t.core.keep_alive_ns
    s.next_keep_alive_ns = s.heard_ns + silence_ns
    if t.now_ns >= s.next_keep_alive_ns:
        session_fail(t, s, s.handle, CLOSE_SILENT, 0)
        s.next_keep_alive_ns = t.now_ns + silence_ns


cdef uint64_t held_back_watch(ThreadContext* t, Session* s) noexcept nogil:
    # Notify a client that it is no longer held back (§6.8). Returns the time of the next check.
    cdef uint64_t calm_ns = s.held_ns + t.core.rate_calm_ns
    if s.resume_ns == 0 and t.now_ns >= calm_ns:
        s.held_ns = 0
        counter_add(&t.counters.clients_held_back, <uint64_t>-1)
        session_set_problem(t, s.handle, PROBLEM_RATE, False)
        return <uint64_t>-1
    return calm_ns if t.now_ns < calm_ns else <uint64_t>-1


cdef void session_due(ThreadContext* t, Session* s) noexcept nogil:
    """Run the duties of the session's timer that are due, and arm it again."""
    cdef uint64_t due_ns
    if write_expired(t, s, &due_ns):
        return
    if t.now_ns >= s.next_keep_alive_ns:
        if s.peer.role == ROLE_LINK:
            link_watch(t, s)
        else:
            keep_alive(t, s, due_ns != 0)
    if due_ns == 0 or s.next_keep_alive_ns < due_ns:
        due_ns = s.next_keep_alive_ns
    if s.resume_ns != 0 and s.resume_ns < due_ns:
        due_ns = s.resume_ns
    if s.held_ns != 0:
        due_ns = min(due_ns, held_back_watch(t, s))
    wheel_arm(&t.core.wheels[s.worker], &s.timer, due_ns)


# ---- opening

cdef uint64_t keep_alive_period(Core* core, bint behind_proxy) noexcept nogil:
    # 60 s + [0, 5) s, or in that proportion. Each session has its own jitter, so that sessions that
    # logged in together do not come due together. Behind a proxy, which may close a connection that
    # is silent for 60 s: 50 s + [0, 5) s.
    cdef uint64_t period_ns = core.keep_alive_ns
    core.jitter += JITTER_STEP
    if behind_proxy:
        period_ns -= period_ns // 6
    return period_ns + (core.keep_alive_ns // 12 * core.jitter >> 16)


cdef Session* slot_take(Core* core, bint with_keys) noexcept nogil:
    cdef uint32_t slot
    cdef Session* s = NULL
    pthread_mutex_lock(&core.sessions_lock)
    slot = arena_alloc(&core.sessions)
    if slot != ARENA_FULL and with_keys and arena_place(&core.keys, slot) is NULL:
        arena_free(&core.sessions, slot)
        slot = ARENA_FULL
    if slot != ARENA_FULL:
        s = <Session*>arena_at(&core.sessions, slot)
        if s.generation == 0:    # the slot's first session
            pthread_mutex_init(&s.output_lock, NULL)
        s.generation += 1
        if s.generation == 0:
            s.generation = 1
        s.slot = slot
    pthread_mutex_unlock(&core.sessions_lock)
    return s


cdef void slot_give_back(Core* core, Session* s) noexcept nogil:
    pthread_mutex_lock(&core.sessions_lock)
    arena_free(&core.sessions, s.slot)
    pthread_mutex_unlock(&core.sessions_lock)


cdef uint8_t* app_name_new(const uint8_t* name, uint8_t n) noexcept nogil:
    # NULL without a name or without memory: the name is informative only.
    cdef uint8_t* copy = <uint8_t*>malloc(<size_t>n + 1) if n else NULL
    if copy is not NULL:
        copy[0] = n
        memcpy(copy + 1, name, n)
    return copy


cdef Session* session_open(ThreadContext* t, int worker, int fd, const Peer* peer,
                           const uint8_t* app_name, uint8_t n_app_name,
                           uint8_t rate_class, bint own_rtt, bint behind_proxy,
                           const Records* keys) noexcept nogil:
    """Return a new session that no other thread can reach yet, or NULL without memory.

    It gets copies of the app name and the keys.
    """
    cdef Core* core = t.core
    cdef Session* s = slot_take(core, keys is not NULL)
    if s is NULL:
        return NULL
    pthread_mutex_lock(&s.output_lock)    # a late reference to the previous session may read here
    s.fd = fd
    s.worker = <uint16_t>worker
    s.peer = peer[0]
    s.opened_ns = t.now_ns
    s.keep_alive_ns = keep_alive_period(core, behind_proxy)
    s.next_keep_alive_ns = t.now_ns + s.keep_alive_ns
    s.heard_ns = t.now_ns
    s.route = NULL
    s.records = NULL
    if keys is not NULL:
        s.records = <Records*>arena_at(&core.keys, s.slot)
        s.records[0] = keys[0]
    memset(&s.frame, 0, sizeof(Stash))
    memset(&s.record, 0, sizeof(Stash))
    s.skip_bytes = 0
    memset(&s.bucket, 0, sizeof(Bucket))
    s.resume_ns = s.held_ns = 0
    s.rate_class = rate_class
    s.has_begun = False
    s.rx_packets = s.rx_bytes = s.tx_packets = s.tx_bytes = s.dropped = 0
    s.not_here_ns = t.now_ns
    s.not_here_tokens = NOT_HERE_BURST
    s.preferred = s.is_ending = False
    s.is_drained = True
    s.is_contending = s.has_hung_up = s.is_cut = s.has_records = s.is_deferred = False
    s.is_postponed = False
    s.charged_bytes = 0
    s.is_fresh = True
    atomic_store_u8(&s.state, SESSION_OPEN)
    s.close_reason = CLOSE_EOF
    s.close_detail = 0
    s.leaving = NOT_LEAVING
    s.backlog = s.spare = NULL
    atomic_store_u8(&s.contended, 0)
    s.write_deadline_ns = 0
    s.is_held = False
    s.problems = 0
    s.rtt_excused = own_rtt
    s.app_name = app_name_new(app_name, n_app_name)
    s.senders = NULL
    s.wants_out = False
    memset(&s.timer, 0, sizeof(Timer))
    s.timer.handle = <uint64_t>s.generation << 32 | s.slot
    atomic_store_u64(&s.handle, s.timer.handle)
    pthread_mutex_unlock(&s.output_lock)
    return s


cdef void slot_clear_locked(ThreadContext* t, Session* s) noexcept nogil:
    """Hide the session from every other thread, and free what the output lock guards."""
    atomic_store_u8(&s.state, SESSION_FREE)
    atomic_store_u64(&s.handle, 0)
    backlog_discard_locked(t, s)
    free(s.app_name)
    s.app_name = NULL
    free(s.senders)
    s.senders = NULL
    if s.records is not NULL:
        record_wipe(s.records, &t.keyring)
        s.records = NULL


cdef void session_discard(ThreadContext* t, Session* s) noexcept nogil:
    """Undo session_open. The caller keeps the socket."""
    pthread_mutex_lock(&s.output_lock)
    slot_clear_locked(t, s)
    pthread_mutex_unlock(&s.output_lock)
    stashes_free(t.core, s)
    slot_give_back(t.core, s)


cdef bint session_publish(ThreadContext* t, Session* s, const uint8_t* first,
                          size_t n_first) noexcept nogil:
    """Add the session to the routing table, write `first`, give it to its worker.

    In this order, other peers can reach it as soon as its peer has ServerInfo. Until
    then the backlog keeps senders from the socket, and the output lock keeps the worker from ending
    an incomplete session. False without memory.
    """
    cdef epoll_event event
    cdef HandleSet watchers
    cdef uint64_t handle = s.handle
    cdef uint32_t n_members = 0
    cdef bint not_ideal = s.peer.not_ideal
    cdef bint sealed = s.records is not NULL and s.peer.role != ROLE_LINK
    cdef uint8_t role = s.peer.role
    cdef Route* route = NULL
    cdef bint has_unread
    cdef bint added
    if not backlog_gate(t.core, s):
        return False
    if role != ROLE_LINK:        # packets reach the relay at the other end through forwarders only
        route = routes_register(&t.core.routes, s.peer.key, handle, &n_members)
        if route is NULL:
            return False
    has_unread = s.frame.n != 0 or s.record.n != 0
    event.events = EPOLLIN | EPOLLRDHUP | EPOLLET
    event.data.u64 = handle
    pthread_mutex_lock(&s.output_lock)
    s.route = route
    added = epoll_ctl(t.core.epolls[s.worker], EPOLL_CTL_ADD, s.fd, &event) == 0
    if added:
        output_first_locked(t, s, first, n_first)
        wheel_arm(&t.core.wheels[s.worker], &s.timer, s.next_keep_alive_ns)
        # EPOLLOUT fires at once; then the worker reads the bytes that followed the login.
        poll_set_locked(t, s, s.backlog is not NULL or has_unread, False)
    pthread_mutex_unlock(&s.output_lock)
    if added:
        # From here on the worker owns the session, which may be gone already.
        counter_add(&t.counters.opened, role != ROLE_LINK)
        counter_add(&t.counters.total_dup_client_conns, n_members > 1)
        counter_add(&t.counters.current_notideal_connections, not_ideal)
        counter_add(&t.counters.sealed_connections, sealed)
        return True
    if route is not NULL and routes_unregister(&t.core.routes, route, handle, &watchers):
        peer_gone_hand_over(&t.core.peer_gone[s.worker], &t.core.routes, s.peer.key, &watchers)
    return False


# ---- PeerGone notices (§6.7)

cdef bint has_returned(ThreadContext* t, const uint8_t* key, uint64_t receiver) noexcept nogil:
    # True when the key is back in the region before its PeerGone was sent. That frame would be
    # wrong and could follow packets that the key has sent since; the receiver becomes a gone
    # watcher of the new route instead.
    cdef Route* route = routes_find(&t.core.routes, key)
    return route is not NULL and routes_add_gone_watcher(&t.core.routes, route, receiver)


cdef uint32_t peer_gone_send(ThreadContext* t, PeerGone* gone, uint32_t n_slots) noexcept nogil:
    """Process up to n_slots slots of one notice; return how many were processed."""
    cdef uint8_t frame[PEER_GONE_SIZE]
    cdef uint32_t first = gone.n_seen
    cdef uint64_t receiver
    frame_put_header(frame, FRAME_PEER_GONE, KEY_SIZE + 1)
    memcpy(frame + FRAME_HEADER, gone.key, KEY_SIZE)
    frame[FRAME_HEADER + KEY_SIZE] = GONE_DISCONNECTED
    while gone.n_seen < gone.watchers.capacity and gone.n_seen - first < n_slots:
        receiver = gone.watchers.slots[gone.n_seen]
        gone.n_seen += 1
        if (receiver != 0 and session_is_alive(t.core, receiver)
                and not has_returned(t, gone.key, receiver)
                and session_output_frame(t, receiver, frame, PEER_GONE_SIZE)):
            counter_add(&t.counters.peer_gone_disconnected_frames, 1)
    return gone.n_seen - first


cdef void peer_gone_run(ThreadContext* t, PeerGoneQueue* queue) noexcept nogil:
    """Send PeerGone for keys that left the region, up to PEER_GONE_SLOTS slots per turn."""
    cdef PeerGone* gone = peer_gone_first(queue)
    cdef uint32_t left = PEER_GONE_SLOTS
    while gone is not NULL:
        left -= peer_gone_send(t, gone, left)
        if gone.n_seen < gone.watchers.capacity:
            return
        peer_gone_pop(queue, &t.core.routes)
        gone = peer_gone_first(queue)


# ---- totals and the end

cdef void session_note_sender(Core* core, uint64_t handle, uint64_t sender_hash) noexcept nogil:
    """Count a sender of the session with this handle, if it still exists.

    Without memory the estimate stays 0.
    """
    cdef Session* s = session_at(core, handle)
    pthread_mutex_lock(&s.output_lock)
    if atomic_load_u64(&s.handle) == handle:
        if s.senders is NULL:
            s.senders = <SenderSketch*>calloc(1, sizeof(SenderSketch))
        if s.senders is not NULL:
            sketch_add(s.senders, sender_hash)
    pthread_mutex_unlock(&s.output_lock)


cdef void session_totals(Session* s, Totals* totals) noexcept nogil:
    """Copy the totals of a session. The caller holds its output lock or owns it alone."""
    totals.rx_packets = atomic_peek_u64(&s.rx_packets)
    totals.rx_bytes = atomic_peek_u64(&s.rx_bytes)
    totals.tx_packets = s.tx_packets
    totals.tx_bytes = s.tx_bytes
    totals.dropped = s.dropped


cdef Event* closed_event_new(ThreadContext* t, Session* s) noexcept nogil:
    if s.app_name is not NULL:
        return event_new(
            &t.core.events, EVENT_CLOSED, s.handle, s.app_name + 1, s.app_name[0])
    return event_new(&t.core.events, EVENT_CLOSED, s.handle, NULL, 0)


cdef void closed_report(ThreadContext* t, Session* s, Event* event) noexcept nogil:
    event.reason = s.close_reason
    event.detail = s.close_detail
    memcpy(event.key, s.peer.key, KEY_SIZE)
    memcpy(event.addr, s.peer.addr, sizeof(s.peer.addr))
    event.port = s.peer.port
    event.lived_ns = t.now_ns - s.opened_ns
    session_totals(s, &event.totals)
    events_push(&t.core.events, event)


cdef bint session_end(ThreadContext* t, Session* s) noexcept nogil:
    """End a session: stop output, leave the routing table, report, free everything.

    Only its worker calls this, or the control thread when the workers have stopped. Without memory
    for the report it stays closing, because the control plane would keep it forever, and the result
    is False. Only at the end of the plane it ends without a report.
    """
    cdef uint64_t handle = s.handle
    cdef HandleSet watchers
    cdef Event* event = closed_event_new(t, s)
    pthread_mutex_lock(&s.output_lock)
    if event is NULL and s.close_reason != CLOSE_SHUTDOWN:
        fail_locked(t, s, <CloseReason>s.close_reason, s.close_detail)
        pthread_mutex_unlock(&s.output_lock)
        return False
    if s.state == SESSION_OPEN:
        close_notify_locked(t, s)
    if s.records is not NULL:
        counter_add(&t.counters.sealed_connections, <uint64_t>-1 if s.peer.role != ROLE_LINK else 0)
    slot_clear_locked(t, s)
    pthread_mutex_unlock(&s.output_lock)

    wheel_disarm(&t.core.wheels[s.worker], &s.timer)
    epoll_ctl(t.core.epolls[s.worker], EPOLL_CTL_DEL, s.fd, NULL)
    close(s.fd)
    stashes_free(t.core, s)

    counter_add(&t.counters.closed, s.peer.role != ROLE_LINK)
    if s.preferred:
        counter_add(&t.counters.current_home_connections, <uint64_t>-1)
    if s.peer.not_ideal:
        counter_add(&t.counters.current_notideal_connections, <uint64_t>-1)
    if s.held_ns:
        counter_add(&t.counters.clients_held_back, <uint64_t>-1)
    if s.route is not NULL and routes_unregister(&t.core.routes, s.route, handle, &watchers):
        peer_gone_add(&t.core.peer_gone[s.worker], &t.core.routes, s.peer.key, &watchers)
    if event is not NULL:
        closed_report(t, s, event)
    slot_give_back(t.core, s)
    return True
