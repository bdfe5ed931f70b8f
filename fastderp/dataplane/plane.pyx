# The data plane's Python interface: starts the workers, takes connections over, returns events and
# counters. The control plane calls it; control_lock serializes its own writes to sessions. No
# packet passes through here.

import os
from collections import Counter

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.unistd cimport getpid, pid_t

from fastderp.dataplane.arena cimport arena_at, arena_destroy, arena_init
from fastderp.dataplane.counters cimport Counters
from fastderp.dataplane.peer_gone cimport PeerGoneQueue, peer_gone_destroy, peer_gone_hand_over
from fastderp.dataplane.events cimport (
    Event, events_close, events_destroy, events_init, events_take,
)
from fastderp.dataplane.frame cimport (
    FRAME_HEADER, KEY_SIZE, PACKET_MAX, ROLE_CLIENT, ROLE_LINK, ROLE_MESH, frame_size,
)
from fastderp.dataplane.reports cimport (
    SessionSnapshot, counters_dict, counters_moved, counters_sum, event_object, session_excuse,
    session_snapshot, session_info, tcp_info,
)
from fastderp.dataplane.output cimport (
    session_fail, session_leave, session_output_frame, session_set_problem, context_free,
    context_init, context_trim,
)
from fastderp.tls.record cimport RecordLayer, Records, record_wipe
from fastderp.dataplane.routes cimport (
    GONE_WATCHERS_CAP_BYTES, HandleSet, Route, RouteTable, routes_add_forwarder, routes_destroy,
    routes_init, routes_members, routes_remove_forwarder,
)
from fastderp.dataplane.core cimport (
    APP_NAME_MAX, CLOSE_CLOSE_PEER, CLOSE_SERVER, CLOSE_SHUTDOWN, PROBLEM_DUPLICATE, RATE_CLASSES,
    SEAL_CHUNK, SESSION_OPEN, CloseReason, Core, Partials, Peer, RateLimit, Session,
    ThreadContext, session_at,
)
from fastderp.dataplane.session cimport (
    session_discard, session_end, session_is_alive, session_open, session_publish,
    sessions_touched,
)
from fastderp.dataplane.stash cimport stash_put
from fastderp.dataplane.sys cimport (
    IPPROTO_TCP, SOL_SOCKET, SO_RCVBUF, TCP_INFO, atomic_load_u64, atomic_peek_u64,
    atomic_store_u64, atomic_store_u8, clock_ns, getsockopt, heap_trim, pages_map, pages_unmap,
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_unlock, setsockopt, tcp_counts,
)
from fastderp.dataplane.timer_wheel cimport Wheel, wheel_arm, wheel_destroy
from fastderp.dataplane.worker cimport (
    UNREAD_MAX, Worker, worker_ask, worker_close, worker_free, worker_init, worker_start,
    worker_stop, worker_trim,
)

from fastderp.dataplane import reports
from fastderp.errors import EX_OSERR, DerpError
from fastderp.util.machine import memory_bytes, n_cores

# Re-exported: callers of Plane need these and import them from here.
CLOSE_REASONS = reports.CLOSE_REASONS
ClosedEvent = reports.ClosedEvent
DropEvent = reports.DropEvent
FrameEvent = reports.FrameEvent
SessionInfo = reports.SessionInfo
TcpInfo = reports.TcpInfo
Totals = reports.Totals

DEFAULT_BACKLOG_CAP_BYTES = min(256 << 20, memory_bytes() // 4)
# 64 MiB: a thousand clients that each stop within the largest frame.
DEFAULT_STASH_CAP_BYTES = min(64 << 20, memory_bytes() // 16)
DEFAULT_GONE_WATCHERS_CAP_BYTES = min(GONE_WATCHERS_CAP_BYTES, memory_bytes() // 16)
# Packets older than this are dropped instead of delivered late. Nearly all are WireGuard's: TCP
# inside has retransmitted by then (RFC 6298 starts with 1 s), and real-time data is obsolete.
# derper's queue of 32 packets needs no age limit; a backlog counted in bytes holds more packets.
DEFAULT_BACKLOG_AGE_S = 1.0
MAX_UNREAD_BYTES = UNREAD_MAX    # the limit of promote() for bytes that followed the login

include "plane_checks.pxi"
include "plane_limits.pxi"
include "plane_surveys.pxi"


class PlaneError(DerpError):
    """The data plane is out of memory or descriptors, or closed."""

    exit_code = EX_OSERR


cdef class Plane:
    """Relay frames between logged-in connections, in worker threads that never need the GIL.

    workers: number of threads; 0 means one per core that affinity and CPU quota leave, up to 256.
    write_timeout_s: seconds without progress after which a peer that does not read is closed
        (PROTOCOL §6.6); 0 means never.
    mesh_write_timeout_s: the same for mesh peers and links to other relays.
    home_settled_s: seconds after the login from which on a change of a client's home counts as a
        move (§6.6).
    keep_alive_s: seconds between two keep-alive frames to one client; the plane adds up to a
        twelfth.
    rate_calm_s: seconds without being held back by the rate limit after which a client gets the
        notice of the end (§6.8).
    disable_fighters: send nothing to sessions that fight over a key, instead of sending to the
        session that sent last (§6.3).
    backlog_cap_bytes: limit for all backlogs together. Each session may exceed it by the rest of a
        frame, 4 KiB of packets of each kind, and 256 KiB of control frames, a mesh peer by 16 MiB
        of them. When half of it is used, each kind of packets in a backlog is limited to 256 KiB.
    stash_cap_bytes: limit for the incomplete frames of all clients, above 4 KiB each: beyond it
        those are closed whose latest whole frame is the oldest. The same for whole frames that wait
        for a later turn or the rate limit: beyond it clients are read in small pieces.
    gone_watchers_cap_bytes: limit for the memory that records which session got packets from which
        key; above it some receivers get no PeerGone when a sender leaves (§6.7).
    backlog_age_s: seconds after which a packet that still waits for its receiver's socket is
        dropped; 0 means never.
    queue_packets: number of packets of each kind, disco and other, that wait for a client that does
        not read, without an age limit; 0 means as many as fit into 256 KiB, and at least 32.
        Backlogs of other relays ignore it.
    sender_cardinality: estimate how many distinct peers have sent to each session
        (SessionInfo.senders, §22).
    watch_drops: keys; a DropEvent reports each dropped packet for them, up to 16 per thread and
        second.

    After a fork, closing or freeing the plane in the child, which shares its sockets, does nothing.

    Raises PlaneError when memory or descriptors are out, ValueError for arguments out of range.
    """

    cdef Core* core                       # in pages of its own
    cdef Worker** workers
    cdef ThreadContext control            # guarded by control_lock
    cdef Counters control_counters        # written under control_lock, read by any thread
    cdef pthread_mutex_t control_lock
    cdef int n_running
    cdef int next_worker           # guarded by control_lock
    cdef int next_notifier         # the worker that sends the next PeerGone
    cdef bint closed
    cdef pid_t owner                      # the process that made the plane

    def __cinit__(self, *, int workers=0, double write_timeout_s=2.0,
                  double mesh_write_timeout_s=30.0, double home_settled_s=5.0,
                  double keep_alive_s=60.0, double rate_calm_s=5.0,
                  bint disable_fighters=False,
                  uint64_t backlog_cap_bytes=DEFAULT_BACKLOG_CAP_BYTES,
                  uint64_t stash_cap_bytes=DEFAULT_STASH_CAP_BYTES,
                  uint64_t gone_watchers_cap_bytes=DEFAULT_GONE_WATCHERS_CAP_BYTES,
                  double backlog_age_s=DEFAULT_BACKLOG_AGE_S, uint32_t queue_packets=0,
                  watch_drops=(), bint sender_cardinality=False):
        cdef int i, n
        self.owner = getpid()
        self.core = <Core*>pages_map(sizeof(Core))
        if self.core is NULL:
            raise MemoryError
        self.core.events.fd = -1
        n = checked_workers(workers)
        _check_seconds(
            mesh_write_timeout_s=mesh_write_timeout_s, home_settled_s=home_settled_s,
            rate_calm_s=rate_calm_s, backlog_age_s=backlog_age_s)
        if keep_alive_s <= 0:
            raise ValueError(f"keep_alive_s must be positive, but is {keep_alive_s}")
        arena_init(&self.core.sessions, sizeof(Session))
        arena_init(&self.core.keys, sizeof(Records))
        pthread_mutex_init(&self.core.sessions_lock, NULL)
        pthread_mutex_init(&self.control_lock, NULL)
        pthread_mutex_init(&self.core.limit_lock, NULL)
        self.core.budget.cap_bytes = backlog_cap_bytes
        self.core.stashes.cap_bytes = stash_cap_bytes
        self.core.keep_alive_ns = <uint64_t>(keep_alive_s * 1e9)
        self.core.rate_calm_ns = <uint64_t>(rate_calm_s * 1e9)
        self.write_timeout_s = write_timeout_s
        self.core.mesh_write_timeout_ns = <uint64_t>(mesh_write_timeout_s * 1e9)
        self.core.home_settled_ns = <uint64_t>(home_settled_s * 1e9)
        self.core.packet_age_ns = <uint64_t>(backlog_age_s * 1e9)
        self.core.lane_packets = queue_packets
        self.core.counts_senders = sender_cardinality
        self.watch_drops(watch_drops)
        self.core.n_workers = n
        self.core.epolls = <int*>calloc(n, sizeof(int))
        self.core.wheels = <Wheel*>pages_map(n * sizeof(Wheel))
        self.core.peer_gone = <PeerGoneQueue*>calloc(n, sizeof(PeerGoneQueue))
        self.core.partials = <Partials*>calloc(n, sizeof(Partials))
        self.workers = <Worker**>calloc(n, sizeof(Worker*))
        if (self.core.epolls is NULL or self.core.wheels is NULL or self.core.peer_gone is NULL
                or self.core.partials is NULL or self.workers is NULL):
            raise MemoryError
        if (not routes_init(
                &self.core.routes, n, disable_fighters, gone_watchers_cap_bytes, session_is_alive,
                self.core)
                or not context_init(
                    &self.control, self.core, &self.control_counters, CONTROL_KEYS)):
            raise MemoryError
        if not events_init(&self.core.events):
            raise PlaneError("no file descriptor left for the event queue")
        for i in range(n):
            self.workers[i] = <Worker*>pages_map(sizeof(Worker))
            if self.workers[i] is NULL:
                raise MemoryError
            if not worker_init(self.workers[i], self.core, i):
                raise PlaneError("no memory or file descriptors left for the worker threads")

    def __dealloc__(self):
        cdef int i
        if self.core is NULL or self.owner != getpid():
            return               # a thread of the owner may have held any lock during the fork
        self.close()
        for i in range(self.core.n_workers):
            if self.workers is not NULL and self.workers[i] is not NULL:
                worker_free(self.core, self.workers[i])
                wheel_destroy(&self.core.wheels[i])
                peer_gone_destroy(&self.core.peer_gone[i], &self.core.routes)
                pages_unmap(self.workers[i], sizeof(Worker))
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
        pages_unmap(self.core.wheels, self.core.n_workers * sizeof(Wheel))
        free(self.core.peer_gone)
        free(self.core.partials)
        free(self.core.epolls)
        pages_unmap(self.core, sizeof(Core))

    cdef watch_drops(self, keys):
        # This is called before the threads start, because they read the keys without a lock.
        cdef bytes joined = b"".join(keys)
        for key in keys:
            check_key(key)
        self.core.watched = <uint8_t*>malloc(max(len(joined), 1))
        if self.core.watched is NULL:
            raise MemoryError
        memcpy(self.core.watched, <const uint8_t*>joined, len(joined))
        self.core.n_watched = len(keys)

    def start(self):
        """Start the worker threads.

        Raises PlaneError when the system refuses a thread or the plane is closed.
        """
        if self.closed:
            raise PlaneError("the data plane is closed")
        while self.n_running < self.core.n_workers:
            if not worker_start(self.workers[self.n_running]):
                raise PlaneError(f"the system refuses to start worker thread {self.n_running}")
            self.n_running += 1

    def close(self):
        """End the workers, then every session. events() still returns the sessions' ends."""
        cdef uint32_t slot, worker
        cdef Session* s
        if self.closed:
            return
        self.closed = True
        if self.owner != getpid():
            return
        with nogil:
            while self.n_running:
                self.n_running -= 1
                worker_stop(self.workers[self.n_running])
        self.control.now_ns = clock_ns()
        for slot in range(sessions_touched(self.core)):
            s = <Session*>arena_at(&self.core.sessions, slot)
            if s.handle != 0:
                s.close_reason = CLOSE_SHUTDOWN
                session_end(&self.control, s)
        # No session is left that waits for the workers' descriptors.
        for worker in range(self.core.n_workers if self.workers is not NULL else 0):
            if self.workers[worker] is not NULL:
                worker_close(self.core, self.workers[worker])

    def fileno(self):
        """Return a descriptor that is readable while events() has events to return.

        It is -1 once the plane is closed and events() has returned all.
        """
        return self.core.events.fd

    @property
    def n_workers(self):
        """Number of worker threads."""
        return self.core.n_workers

    @property
    def write_timeout_s(self):
        """Seconds without progress after which a client that does not read is closed; 0 = never.

        It may be set at any time and applies to later writes: a client that does not read keeps its
        current deadline. Setting it below 0 raises ValueError.
        """
        return atomic_peek_u64(&self.core.write_timeout_ns) / 1e9

    @write_timeout_s.setter
    def write_timeout_s(self, double seconds):
        _check_seconds(write_timeout_s=seconds)
        atomic_store_u64(&self.core.write_timeout_ns, <uint64_t>(seconds * 1e9 + 0.5))

    # ---- sessions

    def promote(self, int fd, bytes key not None, *, bytes first=b"", bytes unread=b"",
                bytes opened=b"", RecordLayer records=None, bint mesh=False, bint link=False,
                bint prober=False, bint not_ideal=False, bytes addr=bytes(16), int port=0,
                bytes app_name=b"", uint8_t rate_class=0, bint own_rtt=False,
                bint behind_proxy=False):
        """Take a logged-in connection over and return its handle.

        fd: a connected stream socket; the plane owns it from now on, also after an error.
        key: the peer's public key, 32 bytes.
        first: plaintext to write before anything else (ServerInfo), up to 65,536 bytes.
        unread: bytes that followed the login; ciphertext when records is given. With opened, up to
            MAX_UNREAD_BYTES.
        opened: plaintext after the login that records has opened; it precedes unread.
        records: the connection's TLS 1.3 keys, which move out of the object.
        mesh: the client has the mesh key.
        link: this relay dialed the connection, to the relay with this key; the plane forwards
            packets there for the keys of add_forwarder.
        addr, port: the peer's address as in PeerPresent: IPv6 or IPv4-in-IPv6, 16 bytes.
        app_name: the name of the client's program, up to 32 bytes, for SessionInfo and ClosedEvent
            (§22).
        rate_class: which limit of set_rate_limits applies.
        own_rtt: the caller measures the session's round-trip time; round_trips omits the session.
        behind_proxy: send keep-alives after five sixths of the period, because proxies close
            connections that are silent for 60 s.

        Raises PlaneError when memory is out or the plane is closed, ValueError for values of a
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
                    "promote: key, addr, first, unread, port or app_name has a wrong size")
            socket_tune(fd)
            if self.closed or self.owner != getpid():
                raise PlaneError("the data plane is closed, or belongs to a parent process")
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
                rate_class, own_rtt, behind_proxy, &keys if records is not None else NULL,
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
        """Send any number of whole frames of the relay itself.

        Returns False when the session is gone, is closing, or broke during the write; then some or
        all frames are lost. Raises ValueError when the last frame is not whole.
        """
        cdef const uint8_t* p = frames
        cdef size_t left = len(frames)
        cdef size_t piece
        if not frames_are_whole(p, left):
            raise ValueError("send: the last frame is not whole")
        cdef bint sent = self.is_known(handle) and session_is_alive(self.core, handle)
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
        """Close a session; its ClosedEvent follows. Return False when it is gone already."""
        return self.is_known(handle) and self.fail(handle, CLOSE_SERVER)

    def leave(self, uint64_t handle):
        """Close a session when its backlog is written, at the latest at its write deadline.

        It gets no further frames; its own are relayed until its peer closes, for 2 seconds at most.
        Return False when it is gone, closing or leaving already.
        """
        cdef bint leaves = False
        if self.is_known(handle):
            pthread_mutex_lock(&self.control_lock)
            self.control.now_ns = clock_ns()
            leaves = session_leave(&self.control, session_at(self.core, handle), handle)
            pthread_mutex_unlock(&self.control_lock)
        return leaves

    def close_key(self, bytes key not None):
        """Close every session of a key for a mesh peer (PROTOCOL §5, ClosePeer).

        Returns the number of sessions.
        """
        return sum([self.fail(handle, CLOSE_CLOSE_PEER) for handle in self.handles(key)])

    def handles(self, bytes key not None, uint32_t n_most=0):
        """Return the handles of the sessions that share a key, up to n_most; 0 = all."""
        check_key(key)
        return handles_list(&self.core.routes, key, n_most)

    def is_connected(self, bytes key not None):
        """Return whether a session with this key is connected here."""
        return bool(self.handles(key, 1))

    cdef bint is_known(self, uint64_t handle):
        # True when the handle names a slot that was ever in use; session_at relies on it.
        return 0 < handle and <uint32_t>handle < sessions_touched(self.core)

    cdef bint fail(self, uint64_t handle, CloseReason reason):
        cdef bint failed
        pthread_mutex_lock(&self.control_lock)
        failed = session_fail(&self.control, session_at(self.core, handle), handle, reason, 0)
        pthread_mutex_unlock(&self.control_lock)
        return failed

    def add_forwarder(self, bytes key not None, uint64_t link):
        """Forward packets for a key that is not local over a mesh link (PROTOCOL §7.5).

        The plane uses the oldest link that announced the key. Raises PlaneError when memory is out,
        ValueError for a handle that never existed.
        """
        check_key(key)
        if not self.is_known(link):
            raise ValueError(f"no session ever had the handle {link}")
        if not routes_add_forwarder(&self.core.routes, key, link):
            raise PlaneError("no memory left for another key")

    def remove_forwarder(self, bytes key not None, uint64_t link):
        """Stop forwarding packets for a key over the link.

        When that was the key's last link, receivers of its packets get a PeerGone (PROTOCOL §6.7).
        """
        cdef HandleSet watchers
        check_key(key)
        if routes_remove_forwarder(&self.core.routes, key, link, &watchers):
            # A worker sends the notices without the GIL. Each key goes to the next worker, because
            # many keys may leave with one link.
            peer_gone_hand_over(&self.core.peer_gone[self.next_notifier], &self.core.routes, key,
                                &watchers)
            self.next_notifier = (self.next_notifier + 1) % self.core.n_workers

    def set_rate_limits(self, limits not None):
        """Limit the rate of each client by reading it more slowly (PROTOCOL §6.8).

        limits: by class, up to 256 pairs of bytes per second, 0 = no limit, and the burst in bytes,
            raised to 65568. A class without a pair has no limit.

        The limits apply at once to every client, each with a full bucket. Mesh peers are exempt.
        Raises ValueError for more than 256 pairs.
        """
        rate_limits_set(self.core, limits)
        rate_limits_recheck(self.core)

    def set_rate_class(self, uint64_t handle, uint8_t rate_class):
        """Choose the limit of a client; call set_rate_limits after that."""
        if self.is_known(handle):
            session_set_rate_class(session_at(self.core, handle), handle, rate_class)

    def set_duplicate(self, uint64_t handle, bint is_duplicate):
        """Tell a client in a Health frame that another connection has its key, or no longer (§6.3).

        Return False when that is not new to it or the session is gone or leaving.
        """
        cdef bint told
        pthread_mutex_lock(&self.control_lock)
        self.control.now_ns = clock_ns()
        told = self.is_known(handle) and session_set_problem(
            &self.control, handle, PROBLEM_DUPLICATE, is_duplicate)
        pthread_mutex_unlock(&self.control_lock)
        return told

    def trim(self):
        """Have every thread release its scratch memory and expanded keys soon.

        It may be called at any time: memory in use is allocated again in microseconds.
        """
        cdef int i
        pthread_mutex_lock(&self.control_lock)
        context_trim(&self.control)
        pthread_mutex_unlock(&self.control_lock)
        for i in range(self.n_running):
            worker_trim(self.workers[i])

    def stuck_workers(self):
        """Ask each thread to wake up; return those that did not since the last call."""
        return [i for i in range(self.n_running) if not worker_ask(self.workers[i])]

    def trim_memory(self):
        """Return unused heap memory to the system."""
        with nogil:
            heap_trim()

    # ---- events and reports

    def events(self, uint32_t n_most=0):
        """Return the events since the previous call, oldest first.

        They are FrameEvent, ClosedEvent and DropEvent objects.
        n_most: number of events to take, 0 = all; fileno() stays readable while events are left.
        """
        cdef Event* event = events_take(&self.core.events, n_most)
        cdef Event* following
        taken = []
        while event is not NULL:
            following = event.next
            taken.append(event_object(event))
            free(event)
            event = following
        if self.closed and self.owner == getpid():
            events_close(&self.core.events)
        return taken

    def sessions(self):
        """Return a SessionInfo for every connected session."""
        return session_infos(self.core)

    def tcp_infos(self):
        """Return a TcpInfo for every session on a TCP socket, from the kernel's own counters."""
        return session_tcp_infos(self.core)

    def tcp_info(self, uint64_t handle):
        """Return the TcpInfo of a session; None when it has ended or is not on a TCP socket."""
        found = tcp_info(session_at(self.core, handle)) if self.is_known(handle) else None
        return found if found is not None and found.handle == handle else None

    def round_trips(self, bounds_us not None):
        """Count the sessions by the kernel's smoothed round-trip time.

        bounds_us: up to 16 ascending upper bounds in microseconds.

        Returns the counts, one more than bounds; the number of sessions without TCP and the number
        for which the kernel gave no time, both without the sessions that a previous call counted.
        Raises ValueError for more than 16 bounds.
        """
        return round_trips_count(self.core, bounds_us)

    def unique_senders(self):
        """Return how many keys of the region have sent to a session, by its handle."""
        return unique_senders_count(&self.core.routes)

    def n_moved(self):
        """Return a number that grows with every login, end of a session, read and write.

        Keep-alive frames count as writes.
        """
        cdef uint64_t n = counters_moved(&self.control_counters)
        cdef int i
        for i in range(self.core.n_workers):
            n += counters_moved(&self.workers[i].counters)
        return n

    def counters(self):
        """Return the counters, summed over the threads, by PROTOCOL §14 names without `derp_`.

        `packets_received_kind` is a dict by kind; `packets_dropped` and `bytes_dropped` are dicts
        by (reason, kind). `buffered_write_frames` and `queue_delay_seconds` are the counts by
        bucket and the sum of a histogram.
        """
        cdef Counters total
        cdef int i
        memset(&total, 0, sizeof(total))
        counters_sum(&total, &self.control_counters)
        for i in range(self.core.n_workers):
            counters_sum(&total, &self.workers[i].counters)
        return counters_dict(&total) | routes_dict(&self.core.routes) | core_dict(self.core)
