# The data plane as Python sees it: start the workers, hand connections over, hear what became of
# them. Called by the control plane; one lock makes its own acts on sessions one at a time. Never on
# the packet path.

import os
from collections import Counter

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from fastderp.dataplane.arena cimport arena_at, arena_destroy, arena_init
from fastderp.dataplane.counters cimport Counters
from fastderp.dataplane.peer_gone cimport PeerGoneQueue, peer_gone_destroy, peer_gone_hand_over
from fastderp.dataplane.events cimport Event, events_destroy, events_init, events_take
from fastderp.dataplane.frame cimport (
    FRAME_HEADER, KEY_SIZE, PACKET_MAX, ROLE_CLIENT, ROLE_LINK, ROLE_MESH, frame_size,
)
from fastderp.dataplane.reports cimport (
    SessionSnapshot, counters_dict, counters_moved, counters_sum, event_object, session_excuse,
    session_snapshot, session_info, tcp_info,
)
from fastderp.dataplane.output cimport (
    session_fail, session_output_frame, context_free, context_init, context_trim,
)
from fastderp.tls.record cimport RecordLayer, Records, record_wipe
from fastderp.dataplane.routes cimport (
    GONE_WATCHERS_CAP_BYTES, HandleSet, Route, RouteTable, routes_add_forwarder, routes_destroy,
    routes_init, routes_members, routes_remove_forwarder,
)
from fastderp.dataplane.session cimport (
    APP_NAME_MAX, CLOSE_CLOSE_PEER, CLOSE_SERVER, CLOSE_SHUTDOWN, SEAL_CHUNK, SESSION_OPEN,
    CloseReason, Core, Peer, Session, ThreadContext, session_at, session_discard, session_end,
    session_is_alive, session_open, session_publish, sessions_touched, stash_put,
)
from fastderp.dataplane.sys cimport (
    IPPROTO_TCP, SOL_SOCKET, SO_RCVBUF, TCP_INFO, TCP_NODELAY, TCP_NOTSENT_LOWAT, atomic_peek_u64,
    atomic_store_u64, clock_ns, getsockopt, heap_trim, pthread_mutex_destroy, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock, setsockopt, tcp_counts,
)
from fastderp.dataplane.timer_wheel cimport Wheel, wheel_arm, wheel_destroy
from fastderp.dataplane.worker cimport (
    UNREAD_MAX, Worker, worker_free, worker_init, worker_trim, worker_start, worker_stop,
)

# Part of this module's interface.
from fastderp.dataplane.reports import (
    CLOSE_REASONS, DROP_REASONS, FLUSH_BOUNDS,
    PACKET_KINDS, ClosedEvent, DropEvent, FrameEvent, SessionInfo, TcpInfo, Totals,
)
from fastderp.errors import EX_OSERR, DerpError

DEFAULT_BACKLOG_CAP_BYTES = 256 << 20
# Packets older than this are dropped instead of delivered late. Nearly all are WireGuard's: TCP
# inside has retransmitted by then (RFC 6298 starts with 1 s) and a call has gone on. derper's 32
# packets have no age, but a backlog counted in bytes holds more of them.
DEFAULT_BACKLOG_AGE_S = 1.0
MAX_UNREAD_BYTES = UNREAD_MAX    # what promote() takes along of bytes read behind the login

include "plane_checks.pxi"


class PlaneError(DerpError):
    """The data plane could not do what was asked: no memory, no descriptors, or closed."""

    exit_code = EX_OSERR


cdef class Plane:
    """Relay frames between logged-in connections, in worker threads that never need the GIL.

    workers: number of threads; 0 means one per core this process may run on.
    write_timeout_s: seconds without progress after which a peer that does not read is closed
        (PROTOCOL §6.6); 0 means never.
    mesh_write_timeout_s: the same for mesh peers and links to other relays.
    home_settled_s: seconds after its login from which on a client that changes its home is counted
        as moving (§6.6).
    keep_alive_s: seconds between two keep-alive frames to one client, to which up to a twelfth is
        added.
    disable_fighters: send nothing to sessions that fight over a key, instead of to the last one
        that spoke (§6.3).
    backlog_cap_bytes: what all backlogs together may hold, give or take the rest of a frame and 4
        KiB of packets of each kind per session, which are granted to everybody. From half of it on
        256 KiB are the most for a kind.
    gone_watchers_cap_bytes: what may be remembered of who got packets from whom; above that some
        receivers are not told when a sender leaves (§6.7).
    backlog_age_s: seconds after which a packet that still waits for its receiver's socket is
        dropped; 0 means never.
    queue_packets: how many packets of each kind, disco and other, wait for a client that does not
        read; 0 for as many as fit into 256 KiB and at least 32. Then they wait without an age.
        Other relays are not meant.
    sender_cardinality: estimate how many distinct peers have sent to each session
        (SessionInfo.senders, §22).
    watch_drops: keys; a DropEvent tells of packets for them that are dropped, of a flood only the
        beginning.

    Raises PlaneError when memory or descriptors are out.
    """

    cdef Core core
    cdef Worker** workers
    cdef ThreadContext control            # guarded by control_lock, as control_counters
    cdef Counters control_counters
    cdef pthread_mutex_t control_lock
    cdef int n_running
    cdef int next_worker
    cdef int next_notifier         # the worker that tells of the next departure
    cdef bint closed

    def __cinit__(self, *, int workers=0, double write_timeout_s=2.0,
                  double mesh_write_timeout_s=30.0,
                  double home_settled_s=5.0, double keep_alive_s=60.0, bint disable_fighters=False,
                  uint64_t backlog_cap_bytes=DEFAULT_BACKLOG_CAP_BYTES,
                  uint64_t gone_watchers_cap_bytes=GONE_WATCHERS_CAP_BYTES,
                  double backlog_age_s=DEFAULT_BACKLOG_AGE_S, uint32_t queue_packets=0,
                  watch_drops=(),
                  bint sender_cardinality=False):
        cdef int i
        cdef int n = workers or len(os.sched_getaffinity(0))
        self.core.events.fd = -1
        if not 1 <= n <= 256:
            raise ValueError(f"workers must be between 1 and 256, not {n}")
        for name, seconds in (("mesh_write_timeout_s", mesh_write_timeout_s),
                              ("home_settled_s", home_settled_s),
                              ("backlog_age_s", backlog_age_s)):
            if not seconds >= 0:
                raise ValueError(f"{name} must not be negative, and is {seconds}")
        if keep_alive_s <= 0:
            raise ValueError(f"keep_alive_s must be positive, and is {keep_alive_s}")
        arena_init(&self.core.sessions, sizeof(Session))
        arena_init(&self.core.keys, sizeof(Records))
        pthread_mutex_init(&self.core.sessions_lock, NULL)
        pthread_mutex_init(&self.control_lock, NULL)
        pthread_mutex_init(&self.core.limit_lock, NULL)
        self.core.budget.cap_bytes = backlog_cap_bytes
        self.core.keep_alive_ns = <uint64_t>(keep_alive_s * 1e9)
        self.write_timeout_s = write_timeout_s
        self.core.mesh_write_timeout_ns = <uint64_t>(mesh_write_timeout_s * 1e9)
        self.core.home_settled_ns = <uint64_t>(home_settled_s * 1e9)
        self.core.packet_age_ns = <uint64_t>(backlog_age_s * 1e9)
        self.core.lane_packets = queue_packets
        self.core.counts_senders = sender_cardinality
        self.watch_drops(watch_drops)
        self.core.n_workers = n
        self.core.epolls = <int*>calloc(n, sizeof(int))
        self.core.wheels = <Wheel*>calloc(n, sizeof(Wheel))
        self.core.peer_gone = <PeerGoneQueue*>calloc(n, sizeof(PeerGoneQueue))
        self.workers = <Worker**>calloc(n, sizeof(Worker*))
        if (self.core.epolls is NULL or self.core.wheels is NULL or self.core.peer_gone is NULL
                or self.workers is NULL):
            raise MemoryError
        if (not routes_init(
                &self.core.routes, n, disable_fighters, gone_watchers_cap_bytes, session_is_alive,
                &self.core)
                or not context_init(
                    &self.control, &self.core, &self.control_counters, CONTROL_KEYS)):
            raise MemoryError
        if not events_init(&self.core.events):
            raise PlaneError("no descriptor left for the event queue")
        for i in range(n):
            self.workers[i] = <Worker*>calloc(1, sizeof(Worker))
            if self.workers[i] is NULL:
                raise MemoryError
            if not worker_init(self.workers[i], &self.core, i):
                raise PlaneError("no memory or descriptors left for the worker threads")

    def __dealloc__(self):
        cdef int i
        self.close()
        for i in range(self.core.n_workers):
            if self.workers is not NULL and self.workers[i] is not NULL:
                worker_free(self.workers[i])
                wheel_destroy(&self.core.wheels[i])
                peer_gone_destroy(&self.core.peer_gone[i], &self.core.routes)
                free(self.workers[i])
        if self.core.routes.buckets is not NULL:
            routes_destroy(&self.core.routes)
        if self.core.events.fd >= 0:
            events_destroy(&self.core.events)
        context_free(&self.control)
        arena_destroy(&self.core.sessions)
        arena_destroy(&self.core.keys)
        pthread_mutex_destroy(&self.core.sessions_lock)
        pthread_mutex_destroy(&self.control_lock)
        pthread_mutex_destroy(&self.core.limit_lock)
        free(self.workers)
        free(self.core.watched)
        free(self.core.wheels)
        free(self.core.peer_gone)
        free(self.core.epolls)

    cdef watch_drops(self, keys):
        # Before the threads start: they read it without a lock.
        cdef bytes joined = b"".join(keys)
        for key in keys:
            check_key(key)
        self.core.watched = <uint8_t*>malloc(max(len(joined), 1))
        if self.core.watched is NULL:
            raise MemoryError
        memcpy(self.core.watched, <const uint8_t*>joined, len(joined))
        self.core.n_watched = len(keys)

    def start(self):
        """Start the worker threads. Raises PlaneError when the system refuses one, or the plane is
        closed.
        """
        if self.closed:
            raise PlaneError("the data plane is closed")
        while self.n_running < self.core.n_workers:
            if not worker_start(self.workers[self.n_running]):
                raise PlaneError(f"could not start worker thread {self.n_running}")
            self.n_running += 1

    def close(self):
        """End the workers, then every session. Their events can still be read."""
        cdef uint32_t slot
        cdef Session* s
        if self.closed:
            return
        self.closed = True
        with nogil:
            while self.n_running:
                self.n_running -= 1
                worker_stop(self.workers[self.n_running])
        self.control.now_ns = clock_ns()
        for slot in range(sessions_touched(&self.core)):
            s = <Session*>arena_at(&self.core.sessions, slot)
            if s.handle != 0:
                s.close_reason = CLOSE_SHUTDOWN
                session_end(&self.control, s)

    def fileno(self):
        """Return a descriptor that is readable while events() has something to say."""
        return self.core.events.fd

    @property
    def n_workers(self):
        """Number of worker threads."""
        return self.core.n_workers

    @property
    def write_timeout_s(self):
        """Seconds without progress after which a client that does not read is closed; 0 means
        never.

        May be set at any time, for writes from then on: a client that is stuck already has the time
        it was given. Raises ValueError when it is set to less than 0.
        """
        return atomic_peek_u64(&self.core.write_timeout_ns) / 1e9

    @write_timeout_s.setter
    def write_timeout_s(self, double seconds):
        if not seconds >= 0:
            raise ValueError(f"write_timeout_s must not be negative, and is {seconds}")
        atomic_store_u64(&self.core.write_timeout_ns, <uint64_t>(seconds * 1e9 + 0.5))

    # ---- sessions

    def promote(self, int fd, bytes key not None, *, bytes first=b"", bytes unread=b"",
                bytes opened=b"",
                RecordLayer records=None, bint mesh=False, bint link=False, bint prober=False,
                bint not_ideal=False, bytes addr=bytes(16), int port=0,
                bytes app_name=b"", bint own_rtt=False, bint behind_proxy=False):
        """Take a logged-in connection over and return its handle.

        fd: a connected stream socket; the plane's from now on, also after an error.
        key: the peer's public key, 32 bytes.
        first: what is written before anything else, plaintext; ServerInfo.
        unread: bytes the peer sent behind its login; ciphertext when records is given. At most
            MAX_UNREAD_BYTES.
        opened: plain bytes that records have already opened behind the login; they come before
            unread.
        records: the connection's TLS 1.3 keys, moved out of the object.
        mesh: the client showed the mesh key.
        link: this relay dialled the connection, to the relay with this key; packets are forwarded
            there for the keys that add_forwarder names.
        addr, port: the peer's address as PeerPresent carries it: IPv6 or IPv4-in-IPv6, 16 bytes.
        app_name: name of the client's program, at most 32 bytes, for SessionInfo and ClosedEvent
            (§22).
        behind_proxy: keep-alives come in five sixths of the period: proxies close what is silent
            for 60 s.
        own_rtt: the caller looks at the session's round-trip time itself; round_trips leaves it
            out.

        Raises PlaneError when memory is out or the plane is closed, ValueError for values of the
        wrong size.
        """
        cdef Records keys
        cdef Session* s = NULL
        cdef Peer peer
        cdef uint64_t handle = 0
        cdef bint published = False
        try:
            if (len(key) != KEY_SIZE or len(addr) != 16 or len(first) > SEAL_CHUNK
                    or len(unread) + len(opened) > UNREAD_MAX or not 0 <= port <= 65535
                    or len(app_name) > APP_NAME_MAX):
                raise ValueError(
                    "promote: key, addr, first, unread, port or app_name of a wrong size")
            os.set_blocking(fd, False)
            socket_tune(fd)
            if self.closed:
                raise PlaneError("the data plane is closed")
            if records is not None:
                records.take(&keys)
            memcpy(peer.key, <const uint8_t*>key, KEY_SIZE)
            memcpy(peer.addr, <const uint8_t*>addr, 16)
            peer.port = <uint16_t>port
            peer.role = ROLE_LINK if link else ROLE_MESH if mesh else ROLE_CLIENT
            peer.prober = prober
            peer.not_ideal = not_ideal
            pthread_mutex_lock(&self.control_lock)
            self.control.now_ns = clock_ns()
            s = session_open(
                &self.control, self.worker_pick(), fd, &peer, app_name, <uint8_t>len(app_name),
                own_rtt, behind_proxy,
                &keys if records is not None else NULL,
            )
            if s is not NULL:
                handle = s.handle
                published = (
                    stash_put(&s.record if records is not None else &s.frame, unread, len(unread))
                    and (not opened or stash_put(&s.frame, opened, len(opened)))
                    and session_publish(&self.control, s, first, len(first))
                )
                if not published:
                    session_discard(&self.control, s)
            pthread_mutex_unlock(&self.control_lock)
            if not published:
                raise PlaneError("no memory left for another connection")
            return handle
        finally:
            record_wipe(&keys, NULL)
            if not published:
                os.close(fd)

    cdef int worker_pick(self) noexcept:
        cdef int worker = self.next_worker
        self.next_worker = (worker + 1) % self.core.n_workers
        return worker

    def send(self, uint64_t handle, bytes frames not None):
        """Send whole frames of the relay itself, any number.

        Returns False when the session is gone, is being closed, or broke over them: some or all
        frames are lost then. Raises ValueError when the last frame is not whole.
        """
        cdef const uint8_t* p = frames
        cdef size_t left = len(frames)
        cdef size_t piece
        if not frames_are_whole(p, left):
            raise ValueError("send: the last frame is not whole")
        cdef bint sent = self.is_known(handle) and session_is_alive(&self.core, handle)
        pthread_mutex_lock(&self.control_lock)
        self.control.now_ns = clock_ns()
        while sent and left:
            piece = frames_piece(p, left)
            sent = session_output_frame(&self.control, handle, <uint8_t*>p, piece)
            p += piece
            left -= piece
        pthread_mutex_unlock(&self.control_lock)
        return sent

    def close_session(self, uint64_t handle):
        """Have a session closed; its ClosedEvent follows. False when it is gone already."""
        return self.is_known(handle) and self.fail(handle, CLOSE_SERVER)

    def close_key(self, bytes key not None):
        """Close every session of a key for a mesh peer (PROTOCOL §5, ClosePeer). Return how many
        there were.
        """
        return sum([self.fail(handle, CLOSE_CLOSE_PEER) for handle in self.handles(key)])

    def handles(self, bytes key not None):
        """Return the handles of the sessions that share a key."""
        cdef uint64_t few[8]
        cdef uint64_t* many
        cdef uint32_t n
        check_key(key)
        n = routes_members(&self.core.routes, key, few, 8)
        if n <= 8:
            return [few[i] for i in range(n)]
        many = <uint64_t*>calloc(n, sizeof(uint64_t))
        if many is NULL:
            raise MemoryError
        try:
            n = min(n, routes_members(&self.core.routes, key, many, n))
            return [many[i] for i in range(n)]
        finally:
            free(many)

    def is_connected(self, bytes key not None):
        """Return whether a session with this key is connected here."""
        return bool(self.handles(key))

    cdef bint is_known(self, uint64_t handle):
        # Whether the handle names a slot that ever was; session_at relies on it.
        return 0 < handle and <uint32_t>handle < sessions_touched(&self.core)

    cdef bint fail(self, uint64_t handle, CloseReason reason):
        cdef bint failed
        pthread_mutex_lock(&self.control_lock)
        failed = session_fail(&self.control, session_at(&self.core, handle), handle, reason, 0)
        pthread_mutex_unlock(&self.control_lock)
        return failed

    def add_forwarder(self, bytes key not None, uint64_t link):
        """Forward packets for a key that is not local over the link with this handle (PROTOCOL
        §7.5).

        The oldest link that announced the key is the one used. Raises PlaneError when memory is
        out, ValueError for a handle that never was.
        """
        check_key(key)
        if not self.is_known(link):
            raise ValueError(f"no session ever had the handle {link}")
        if not routes_add_forwarder(&self.core.routes, key, link):
            raise PlaneError("no memory left for another key")

    def remove_forwarder(self, bytes key not None, uint64_t link):
        """Forget that the link reaches the key; receivers of its packets learn soon if that was the
        last way to it.
        """
        cdef HandleSet watchers
        check_key(key)
        if routes_remove_forwarder(&self.core.routes, key, link, &watchers):
            # A worker does it, which does not need the GIL. The threads take turns: many keys may
            # go with one link.
            peer_gone_hand_over(&self.core.peer_gone[self.next_notifier], &self.core.routes, key,
                                &watchers)
            self.next_notifier = (self.next_notifier + 1) % self.core.n_workers

    def set_rate_limit(self, uint64_t bytes_per_s, uint64_t burst_bytes=0):
        """Limit what each client may send, by reading it more slowly (PROTOCOL §6.8). 0 means no
        limit.

        Takes effect at once for everybody, each with a full bucket of burst_bytes (raised to
        65568). Mesh peers are exempt.
        """
        cdef uint32_t slot
        cdef Session* s
        pthread_mutex_lock(&self.core.limit_lock)
        self.core.limit.bytes_per_s = <double>bytes_per_s
        self.core.limit.burst_bytes = 0
        if bytes_per_s:
            burst_bytes = max(burst_bytes, <uint64_t>(KEY_SIZE + PACKET_MAX))
            self.core.limit.burst_bytes = <double>burst_bytes
        atomic_store_u64(&self.core.limit_version, self.core.limit_version + 1)
        pthread_mutex_unlock(&self.core.limit_lock)
        for slot in range(sessions_touched(&self.core)):
            s = <Session*>arena_at(&self.core.sessions, slot)
            pthread_mutex_lock(&s.output_lock)
            if s.state == SESSION_OPEN and s.is_held:
                wheel_arm(&self.core.wheels[s.worker], &s.timer, clock_ns())
            pthread_mutex_unlock(&s.output_lock)

    def trim(self):
        """Have every thread give back its scratch memory and forget the keys it holds expanded,
        soon.

        At no time does that hurt: what is still needed costs microseconds to have again.
        """
        cdef int i
        pthread_mutex_lock(&self.control_lock)
        context_trim(&self.control)
        pthread_mutex_unlock(&self.control_lock)
        for i in range(self.n_running):
            worker_trim(self.workers[i])

    def trim_memory(self):
        """Give the heap memory that is not used any more back to the system."""
        with nogil:
            heap_trim()

    # ---- news and numbers

    def events(self, uint32_t n_most=0):
        """Return what happened since the last call, oldest first: FrameEvent, ClosedEvent and
        DropEvent objects.

        n_most: how many events to take, 0 for all; fileno() stays readable while there are more.
        """
        cdef Event* event = events_take(&self.core.events, n_most)
        cdef Event* following
        news = []
        while event is not NULL:
            following = event.next
            news.append(event_object(event))
            free(event)
            event = following
        return news

    def sessions(self):
        """Return a SessionInfo for every connected session."""
        cdef uint32_t slot
        infos = [
            session_info(<Session*>arena_at(&self.core.sessions,
                         slot)) for slot in range(sessions_touched(&self.core))
        ]
        return [info for info in infos if info is not None]

    def tcp_infos(self):
        """Return a TcpInfo for every session on a TCP socket, from the kernel's own counters."""
        cdef uint32_t slot
        infos = [
            tcp_info(<Session*>arena_at(&self.core.sessions,
                     slot)) for slot in range(sessions_touched(&self.core))
        ]
        return [info for info in infos if info is not None]

    def round_trips(self, bounds_us not None):
        """Count the sessions by the kernel's smoothed round-trip time.

        bounds_us: ascending upper bounds in microseconds, at most 16. Returns the counts, one more
            than there are bounds; how many sessions without such a time there are that no earlier
            call counted, because they are not over TCP; and how many because the kernel would not
            tell.
        """
        cdef unsigned int bounds[16]
        cdef uint64_t counts[17]
        cdef uint64_t n_not_tcp = 0
        cdef uint64_t n_failed = 0
        cdef tcp_counts info
        cdef SessionSnapshot seen
        cdef uint32_t slot
        cdef int n_bounds = len(bounds_us)
        cdef int i
        cdef Session* s
        if n_bounds > 16:
            raise ValueError(f"at most 16 bounds, not {n_bounds}")
        for i in range(n_bounds):
            bounds[i] = bounds_us[i]
        memset(counts, 0, sizeof(counts))
        with nogil:
            for slot in range(sessions_touched(&self.core)):
                s = <Session*>arena_at(&self.core.sessions, slot)
                if not session_snapshot(s, &seen, &info):
                    continue
                if seen.has_tcp:
                    i = 0
                    while i < n_bounds and info.rtt_us > bounds[i]:
                        i += 1
                    counts[i] += 1
                elif session_excuse(s, seen.handle):
                    n_not_tcp += not seen.is_tcp
                    n_failed += seen.is_tcp
        return [counts[i] for i in range(n_bounds + 1)], n_not_tcp, n_failed

    def unique_senders(self):
        """Return for each receiving session's handle how many keys now in the region have sent it
        packets.
        """
        cdef RouteTable* routes = &self.core.routes
        cdef uint32_t first = 0
        cdef uint32_t index
        cdef uint32_t i
        cdef Route* route
        senders = Counter()
        while first < routes.routes.n_touched:
            # A piece at a time: logins wait for this lock.
            receivers = []
            pthread_mutex_lock(&routes.lock)
            try:
                for index in range(first, min(first + 256, routes.routes.n_touched)):
                    route = <Route*>arena_at(&routes.routes, index)
                    if route.members.n or route.forwarders.n:
                        receivers += [
                            route.gone_watchers.slots[i]
                            for i in range(route.gone_watchers.capacity)
                            if route.gone_watchers.slots[i]
                        ]
            finally:
                pthread_mutex_unlock(&routes.lock)
            senders.update(receivers)
            first += 256
        return dict(senders)

    def n_moved(self):
        """Return a number that grows with every login, end of a session, read and write; the
        keep-alives' too.
        """
        cdef uint64_t n = counters_moved(&self.control_counters)
        cdef int i
        for i in range(self.core.n_workers):
            n += counters_moved(&self.workers[i].counters)
        return n

    def counters(self):
        """Return all counters, summed over the threads, by the names of PROTOCOL §14 without
        `derp_`.

        `packets_received_kind` is a dict by kind; `packets_dropped` and `bytes_dropped` are dicts
        by (reason, kind); `buffered_write_frames` is how many writes had how many frames, by the
        bounds of FLUSH_BOUNDS, and all frames.
        """
        cdef Counters total
        cdef RouteTable* routes = &self.core.routes
        cdef int i
        pthread_mutex_lock(&routes.lock)
        table = {
            "clients_total": routes.buckets.n_live,
            "clients_local": routes.n_local_keys,
            "clients_remote": routes.buckets.n_live - routes.n_local_keys,
            "current_dup_client_keys": routes.n_duplicate_keys,
            "current_dup_client_conns": routes.n_duplicate_members,
            "multiforwarder_created": routes.n_multiforwarders_created,
            "multiforwarder_deleted": routes.n_multiforwarders_deleted,
            "packet_forwarder_delete_other_value": routes.n_other_forwarder_deletes,
        }
        pthread_mutex_unlock(&routes.lock)
        memset(&total, 0, sizeof(total))
        counters_sum(&total, &self.control_counters)
        for i in range(self.core.n_workers):
            counters_sum(&total, &self.workers[i].counters)
        return counters_dict(&total) | table | {
            "average_queue_duration_ms": atomic_peek_u64(&self.core.queue_ns) / 1e6,
            "backlog_bytes": atomic_peek_u64(&self.core.budget.bytes),
            "events_lost": atomic_peek_u64(&self.core.events.lost),
            "gone_watchers_bytes": atomic_peek_u64(&routes.gone_watchers_bytes),
        }
