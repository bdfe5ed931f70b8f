# The path of a packet: session_read → frames_walk → packet_relay → target_append → targets_flush.
# A turn of the worker's thread reads every ready session into one gather buffer, rewrites frames in
# place and notes where the frames for each destination lie; then it writes each destination once.
# Sessions end last, so that their packets go out before their PeerGone.

from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memmove

from fastderp.dataplane.counters cimport (
    DROP_DUP_CLIENT, DROP_UNKNOWN_DEST, DROP_UNKNOWN_DEST_ON_FWD, KIND_DISCO, KIND_OTHER,
)
from fastderp.dataplane.peer_gone cimport peer_gone_first, peer_gone_init
from fastderp.dataplane.events cimport EVENT_FRAME, Event, event_new, events_push
from fastderp.dataplane.frame cimport (
    FORWARD_OVERHEAD, FRAME_BAD_SIZE, FRAME_FORWARD_PACKET, FRAME_HEADER, FRAME_NOTE_PREFERRED,
    FRAME_PARTIAL, FRAME_PEER_GONE, FRAME_PING, FRAME_PONG, FRAME_READY, FRAME_RECV_PACKET,
    FRAME_SEND_PACKET, FRAME_SKIP, FrameStatus, GONE_NOT_HERE, PACKET_MAX, PACKET_OVERHEAD,
    PEER_GONE_SIZE, PING_DATA, ROLE_CLIENT, frame_carries_disco, frame_is_known, frame_next,
    frame_put_header,
)
from fastderp.dataplane.output cimport (
    context_free, context_init, context_trim, count_delay, lost_reason, packet_drop,
    poll_set_locked, queue_time_fold, session_fail, session_output, session_set_problem,
    session_writable,
)
from fastderp.tls.record cimport RECORD_CLOSE_NOTIFY, RECORD_OK, RecordStatus, record_open_some
from fastderp.dataplane.routes cimport (
    Route, RouteTable, routes_find, routes_hash, routes_note_sender, routes_note_unrouted,
    routes_add_gone_watcher, routes_reader_enter, routes_reader_leave, routes_unrouted_stamp,
)
from fastderp.dataplane.core cimport (
    CLOSE_BAD_SIZE, CLOSE_CONTROL_OVERFLOW, CLOSE_EOF, CLOSE_INCOMPLETE_FRAME,
    CLOSE_NOT_PERMITTED, CLOSE_NO_MEMORY, CLOSE_RESET, CLOSE_TLS, LEAVING_READS,
    LIST_DEFERRED, NOT_HERE_BURST, PROBLEM_RATE, SESSION_CLOSING, SESSION_OPEN, Batch, Bucket,
    CloseReason, Partials, RateLimit, StashBudget, session_at,
)
from fastderp.dataplane.session cimport (
    peer_gone_run, session_due, session_end, session_note_sender,
)
from fastderp.dataplane.session_list cimport list_append, list_remove
from fastderp.dataplane.stash cimport (
    STASH_KEEP, partials_over_cap, stash_put, stashes_charge, stashes_matter, stashes_refund,
)
from fastderp.dataplane.sys cimport (
    CLOCK_MONOTONIC, EAGAIN, EFD_CLOEXEC, EFD_NONBLOCK, EINTR, EPOLLERR, EPOLLET, EPOLLHUP,
    EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLL_CLOEXEC, EPOLL_CTL_ADD, MSG_DONTWAIT, SOL_SOCKET,
    SO_ERROR, TFD_CLOEXEC, TFD_NONBLOCK, atomic_load_u64, atomic_load_u8, atomic_peek_u64,
    atomic_store_u64, atomic_store_u8, clock_ns, close, counter_add, epoll_create1, epoll_ctl,
    epoll_wait, errno, eventfd, eventfd_drain, eventfd_wake, getsockopt, pages_release,
    pthread_attr_destroy, pthread_attr_init, pthread_attr_setstacksize, pthread_attr_t,
    pthread_create, pthread_join, pthread_mutex_lock, pthread_mutex_unlock, prctl, PR_SET_NAME,
    recv, thread_ask_short_slice, timerfd_create,
)
from fastderp.dataplane.timer_wheel cimport wheel_arm, wheel_expired, wheel_init, wheel_pop

cdef enum:
    NO_TARGET = -1
    FIGHTING = -2                # the sessions of the key fight over it, and none gets packets
    STACK_BYTES = 262144
    SLICE_NS = 100000            # the shortest that the kernel grants; most turns take far less
    WORKER_KEYS = 256            # expanded keys per worker
    TIMED_PACKETS = 16           # packets in one flush from which on their waiting time counts

# epoll's data for wake_fd and timer_fd; sessions have larger handles
cdef uint64_t WAKE = 0
cdef uint64_t TIMER = 1
cdef uint64_t SECOND_NS = 1000000000
# A few ticks of the wheel, so that a recheck is never due in the turn that arms it.
cdef uint64_t RECHECK_NS = 20000000


include "receive.pxi"
include "relay.pxi"
include "batch.pxi"


# ---- deferred sessions

cdef void session_defer(Worker* w, Session* s) noexcept nogil:
    if not s.is_deferred:
        s.is_deferred = True
        w.deferred.n += 1
        list_append(&w.deferred.sessions, LIST_DEFERRED, s)


cdef void session_undefer(Worker* w, Session* s) noexcept nogil:
    if s.is_deferred:
        s.is_deferred = False
        w.deferred.n -= 1
        list_remove(&w.deferred.sessions, LIST_DEFERRED, s)


cdef void deferred_rotate(Worker* w) noexcept nogil:
    # The session read first in a turn finds room at a crowded receiver, so the first one changes.
    cdef Session* first = w.deferred.sessions.first
    if w.deferred.n > 1:
        session_undefer(w, first)
        session_defer(w, first)


# ---- the thread

cdef void session_event(Worker* w, Session* s, uint32_t events) noexcept nogil:
    # EPOLLET reports each change once, so the kernel need not check every socket after its read.
    if s.is_ending:
        return                   # it ended earlier in this turn and is not read again
    if atomic_load_u8(&s.state) == SESSION_CLOSING:
        read_ended(w, s, CLOSE_EOF, 0)
        return
    if events & EPOLLOUT:
        session_writable(&w.context, s)
    if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        s.has_hung_up = True
    if s.is_fresh:
        session_first_read(w, s)
    elif s.resume_ns == 0:
        if events & (EPOLLIN | EPOLLHUP | EPOLLERR):
            s.is_drained = False
            if not s.is_deferred:
                session_read(w, s, True)
    elif events & (EPOLLHUP | EPOLLERR):
        socket_failed(w, s, socket_error(s))


cdef void session_continue(Worker* w, Session* s) noexcept nogil:
    session_undefer(w, s)
    if atomic_load_u8(&s.state) == SESSION_CLOSING:
        read_ended(w, s, CLOSE_EOF, 0)
    elif s.resume_ns == 0:
        session_read(w, s, not s.is_cut)


cdef void timers_run(Worker* w) noexcept nogil:
    cdef uint64_t handle
    cdef Session* s
    while True:
        handle = wheel_pop(&w.context.core.wheels[w.index], w.context.now_ns)
        if handle == 0:
            return
        s = session_at(w.context.core, handle)
        if s.is_ending:
            continue
        if atomic_load_u8(&s.state) == SESSION_CLOSING:
            read_ended(w, s, CLOSE_EOF, 0)
            continue
        if s.resume_ns != 0 and (s.resume_ns <= w.context.now_ns
                                 or s.bucket.version
                                 != atomic_load_u64(&w.context.core.limit_version)):
            session_resume(w, s)
        session_due(&w.context, s)


cdef void ending_finish(Worker* w, Session* s) noexcept nogil:
    # Without memory for it, the end is tried again by timers_run.
    if not session_end(&w.context, s):
        s.is_ending = False
        wheel_arm(&w.context.core.wheels[w.index], &s.timer, w.context.now_ns + RECHECK_NS)


cdef void worker_turn(Worker* w, int n_events) noexcept nogil:
    cdef int i
    cdef int _i
    cdef int n_deferred = min(w.deferred.n, <int>MAX_EVENTS)
    cdef uint64_t handle
    w.context.now_ns = clock_ns()
    w.gather_ns = w.context.now_ns
    limit_refresh(w)
    deferred_rotate(w)
    for _i in range(n_deferred):
        session_continue(w, w.deferred.sessions.first)
    for i in range(n_events):
        handle = w.events[i].data.u64
        if handle == WAKE:
            eventfd_drain(w.wake_fd)
            atomic_store_u64(&w.answered, atomic_load_u64(&w.asked))
        elif handle == TIMER:
            wheel_expired(&w.context.core.wheels[w.index])   # timers_run follows
        else:
            session_event(w, session_at(w.context.core, handle), w.events[i].events)
    timers_run(w)
    targets_flush(w)
    w.n_gathered = w.n_forwarded = 0
    partials_shed(w)
    for i in range(w.n_ending):
        ending_finish(w, w.ending[i])
    w.n_ending = 0
    peer_gone_run(&w.context, &w.context.core.peer_gone[w.index])
    queue_time_fold(&w.context)


cdef void scratch_release(Worker* w) noexcept nogil:
    context_trim(&w.context)
    pages_release(w.gather, GATHER_MAX)
    pages_release(w.forward, 2 * GATHER_MAX)
    pages_release(w.cipher, UNREAD_MAX + READ_MAX)


cdef int events_wait(Worker* w) noexcept nogil:
    """Wait until the worker has work; return the number of events, possibly 0, or -1 (error)."""
    if w.deferred.n or peer_gone_first(&w.context.core.peer_gone[w.index]) is not NULL:
        return epoll_wait(w.epoll, w.events, MAX_EVENTS, 0)
    return epoll_wait(w.epoll, w.events, MAX_EVENTS, -1)


cdef void* worker_run(void* arg) noexcept nogil:
    cdef Worker* w = <Worker*>arg
    cdef Core* core = w.context.core
    cdef int n_events
    prctl(PR_SET_NAME, <const char*>b"fastderp-worker")
    thread_ask_short_slice(SLICE_NS)
    while not atomic_load_u8(&w.stop):
        n_events = events_wait(w)
        routes_reader_enter(&core.routes, w.index)
        worker_turn(w, max(n_events, 0))
        routes_reader_leave(&core.routes, w.index)
        if atomic_load_u8(&w.wants_trim):
            atomic_store_u8(&w.wants_trim, 0)
            scratch_release(w)
    return NULL


cdef bint worker_init(Worker* w, Core* core, int index) noexcept nogil:
    """Prepare a zeroed worker. False when descriptors or memory are out.

    worker_free frees a worker after either result.
    """
    cdef epoll_event event
    w.index = index
    w.epoll = epoll_create1(EPOLL_CLOEXEC)
    w.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    w.timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
    w.gather = <uint8_t*>malloc(GATHER_MAX)
    w.cipher = <uint8_t*>malloc(UNREAD_MAX + READ_MAX)
    w.forward = <uint8_t*>malloc(2 * GATHER_MAX)
    if not context_init(&w.context, core, &w.counters, WORKER_KEYS):
        return False
    if w.gather is NULL or w.cipher is NULL or w.forward is NULL:
        return False
    if w.epoll < 0 or w.wake_fd < 0 or w.timer_fd < 0:
        return False
    w.context.now_ns = clock_ns()
    core.epolls[index] = w.epoll
    wheel_init(&core.wheels[index], w.timer_fd, w.context.now_ns)
    peer_gone_init(&core.peer_gone[index], w.wake_fd)
    event.events = EPOLLIN
    event.data.u64 = WAKE
    if epoll_ctl(w.epoll, EPOLL_CTL_ADD, w.wake_fd, &event) != 0:
        return False
    event.events = EPOLLIN | EPOLLET     # reported once for each expiration, without a read
    event.data.u64 = TIMER
    return epoll_ctl(w.epoll, EPOLL_CTL_ADD, w.timer_fd, &event) == 0


cdef bint worker_start(Worker* w) noexcept nogil:
    cdef pthread_attr_t attributes
    cdef bint started
    pthread_attr_init(&attributes)
    pthread_attr_setstacksize(&attributes, STACK_BYTES)
    started = pthread_create(&w.thread, &attributes, worker_run, w) == 0
    pthread_attr_destroy(&attributes)
    return started


cdef void worker_trim(Worker* w) noexcept nogil:
    """Have the thread release its scratch memory and expanded keys between two turns."""
    atomic_store_u8(&w.wants_trim, 1)
    eventfd_wake(w.wake_fd)


cdef bint worker_ask(Worker* w) noexcept nogil:
    """Wake the thread for a turn. False when it has not made the turn asked for before."""
    cdef uint64_t asked = atomic_peek_u64(&w.asked)
    cdef bint has_answered = atomic_load_u64(&w.answered) == asked
    atomic_store_u64(&w.asked, asked + 1)
    eventfd_wake(w.wake_fd)
    return has_answered


cdef void worker_stop(Worker* w) noexcept nogil:
    """Have the thread leave its loop, and wait until it has ended."""
    atomic_store_u8(&w.stop, 1)
    eventfd_wake(w.wake_fd)
    pthread_join(w.thread, NULL)


cdef void worker_close(Core* core, Worker* w) noexcept nogil:
    """Close the descriptors and free the scratch memory of a thread that has ended."""
    close(w.epoll)
    close(w.wake_fd)
    close(w.timer_fd)
    # A late wake-up finds no descriptor, instead of one that was opened since.
    w.epoll = w.wake_fd = w.timer_fd = -1
    core.epolls[w.index] = core.wheels[w.index].timer_fd = -1
    core.peer_gone[w.index].wake_fd = -1
    free(w.gather)
    free(w.cipher)
    free(w.forward)
    w.gather = w.cipher = w.forward = NULL


cdef void worker_free(Core* core, Worker* w) noexcept nogil:
    worker_close(core, w)
    context_free(&w.context)
