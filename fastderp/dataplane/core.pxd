# The shared state of a plane's threads: sessions, their parts, and the state around them, with the
# guard of each field. Types only; the functions are in session, output and worker. All threads name
# a session by handle (slot and generation), so a late reference is harmless. Lock order: route
# table, then one session's output lock (never two), then a wheel or the events queue.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastderp.tls.aead cimport Keyring
from fastderp.dataplane.arena cimport Arena, arena_at
from fastderp.dataplane.cardinality cimport SenderSketch
from fastderp.dataplane.counters cimport Counters
from fastderp.dataplane.peer_gone cimport PeerGoneQueue
from fastderp.dataplane.events cimport EventQueue
from fastderp.dataplane.backlog cimport Backlog, BacklogBudget
from fastderp.tls.record cimport Records
from fastderp.dataplane.routes cimport Route, RouteTable
from fastderp.dataplane.sys cimport iovec, pthread_mutex_t
from fastderp.dataplane.timer_wheel cimport Timer, Wheel

cdef enum:
    # bytes of plaintext sealed between two writes: bounds what a full socket leaves unwritten
    SEAL_CHUNK = 65536
    OUTPUT_IOVS = 1024           # UIO_MAXIOV: the limit of sendmsg
    NOT_HERE_BURST = 3           # immediate answers to disco packets for unknown keys (§6.4)
    # slots of gone watchers per turn: up to 192 watchers, each a write that delays other sessions
    PEER_GONE_SLOTS = 256

cdef enum:
    APP_NAME_MAX = 32            # bytes (PROTOCOL §22)
    RATE_CLASSES = 256           # the limit of all clients and those of the classes (§6.8)

# The problems that a Health frame reports; the bits of session.problems.
cdef enum Problem:
    PROBLEM_DUPLICATE = 1        # another session has its key (§6.3)
    PROBLEM_RATE = 2             # it is held back by its rate limit (§6.8)

# FREE ──session_open──► OPEN ──session_fail, any thread──► CLOSING ──session_end, worker──► FREE
cdef enum SessionState:
    SESSION_FREE = 0
    SESSION_OPEN
    SESSION_CLOSING

cdef enum CloseReason:
    CLOSE_EOF                    # the peer closed
    CLOSE_RESET                  # reading failed, for no other reason of this list
    CLOSE_TCP_TIMEOUT            # the peer no longer acknowledges; the kernel has given up
    CLOSE_UNREACHABLE            # the network reports that the peer cannot be reached
    CLOSE_BAD_SIZE               # the size of a frame is not legal for its type
    CLOSE_NOT_PERMITTED          # a mesh frame from an ordinary client
    CLOSE_TLS                    # a record that RFC 8446 forbids
    CLOSE_WRITE_TIMEOUT
    CLOSE_WRITE_ERROR
    CLOSE_CONTROL_OVERFLOW       # too many control frames wait
    CLOSE_NO_MEMORY
    CLOSE_SERVER                 # requested by the control plane
    CLOSE_CLOSE_PEER             # requested by a mesh peer
    CLOSE_SHUTDOWN
    CLOSE_SILENT                 # a link sent nothing for two keep-alive periods
    CLOSE_DRAIN                  # the control plane asked it to leave
    CLOSE_INCOMPLETE_FRAME       # the stash budget is used, and its frame is the oldest
    N_CLOSE_REASONS

# How far session_leave has come; a leaving session gets no further frames.
cdef enum Leaving:
    NOT_LEAVING = 0
    LEAVING_WRITES               # the backlog is being written
    LEAVING_READS                # output has ended; the peer's frames are relayed until it closes

# The bytes of an incomplete frame or record; allocated while it has any. Worker only.
cdef struct Stash:
    uint8_t* data
    uint32_t n
    uint32_t capacity

# Shared by all sessions of a plane: the stashes of clients that hold more than STASH_KEEP bytes.
cdef struct StashBudget:
    uint64_t cap_bytes           # fixed; for each of the two sums
    uint64_t partial_bytes       # atomic; the rest of these frames has not been read yet
    # atomic; whole frames or records for a later turn, or over the rate limit
    uint64_t postponed_bytes

# See session_list.pxd.
cdef enum ListKind:
    LIST_DEFERRED                # the sessions to continue in the worker's next turn
    LIST_PARTIAL                 # those in partial_bytes, in the order of their latest whole frame
    N_LISTS

cdef struct Neighbors:
    Session* previous
    Session* next

cdef struct SessionList:
    Session* first
    Session* last

# A worker's part of partial_bytes.
cdef struct Partials:
    SessionList sessions         # worker only
    uint64_t n_bytes             # atomic; only this worker writes it

cdef struct Peer:                # values from the login; fixed for the life of the session
    uint8_t key[32]
    uint8_t addr[16]             # IPv6 or IPv4-in-IPv6
    uint16_t port
    uint8_t role                 # Role
    uint8_t prober
    uint8_t not_ideal

cdef struct Bucket:              # worker only; tokens are payload bytes as of filled_ns
    double tokens
    uint64_t filled_ns
    uint64_t version             # of core.limits at filled_ns; a new version starts a full bucket

cdef struct Session:             # seven cache lines; flags are bytes to keep that size
    uint32_t next_free           # used by the arena while the slot is free
    uint32_t slot                # fixed
    uint64_t handle              # atomic; 0 while FREE
    uint32_t generation          # of the latest session here; guarded by core.sessions_lock
    # Fixed for the life of the session.
    int fd
    uint16_t worker
    Peer peer
    uint64_t opened_ns
    uint64_t keep_alive_ns       # the period of this session
    Route* route                 # NULL for a link
    # in core.keys, NULL on a plain socket; rx side: worker, tx side: output lock
    Records* records
    # Worker only.
    Stash frame                  # plaintext of an incomplete frame
    Stash record                 # ciphertext of an incomplete record
    uint64_t skip_bytes          # left of a frame that is being discarded
    uint64_t rx_packets          # atomic; only this worker writes it
    uint64_t rx_bytes            # atomic; only this worker writes it
    uint64_t next_keep_alive_ns  # for a link: the next check for silence
    uint64_t heard_ns            # the latest arrival of bytes
    Bucket bucket                # receive rate limit (§6.8)
    # when reading resumes for a session over its rate; 0 = not held back
    uint64_t resume_ns
    # when it was last held back; 0 = its client has no notice of it, or got the notice of its end
    uint64_t held_ns
    uint64_t not_here_ns         # when the answer limiter last gained a token
    uint8_t not_here_tokens
    uint8_t preferred            # atomic; only this worker writes it
    uint8_t rate_class           # atomic; only the control thread writes it
    # the frame at the start of the stash has been charged and noted (§5)
    uint8_t has_begun
    # the worker has not read it yet: the stashes may hold bytes that followed the login
    uint8_t is_fresh
    uint8_t is_ending            # in the worker's list `ending`
    uint8_t is_contending        # its latest packet was for a contended session
    uint8_t is_drained           # the latest read emptied the socket; epoll reports more bytes
    # only the end of the stream is left to read, which epoll does not report again
    uint8_t has_hung_up
    # the stash holds whole frames: the session brought too many destinations for one turn
    uint8_t is_cut
    # the stash holds whole records: the session brought too many for one turn
    uint8_t has_records
    uint8_t is_deferred          # in LIST_DEFERRED
    uint8_t is_postponed         # its stashes count in postponed_bytes, not in partial_bytes
    # what its stashes count there; 0 = nothing; in LIST_PARTIAL while nonzero and not is_postponed
    uint32_t charged_bytes
    Neighbors neighbors[N_LISTS]     # valid while in the list
    # Guarded by output_lock.
    pthread_mutex_t output_lock
    uint8_t state                # atomic, written under the lock
    uint8_t close_reason
    uint8_t close_detail
    uint8_t leaving              # Leaving
    # atomic, written under the lock: nonzero while senders compete for the session
    uint8_t contended
    uint8_t wants_out            # EPOLLOUT is armed
    uint8_t is_held              # EPOLLIN is disarmed: over the rate limit
    uint8_t problems             # bits of Problem in the latest Health frame
    uint8_t rtt_excused          # has no round-trip time and is not counted for that (again)
    Backlog* backlog             # NULL while empty
    # an empty backlog that keeps the flows of flooding senders while the session is contended; or
    # NULL
    Backlog* spare
    uint8_t* app_name            # length, then bytes; NULL without a name
    # NULL until the first sender, and while core.counts_senders is False
    SenderSketch* senders
    # valid while there is a backlog, and in LEAVING_READS; 0 = none
    uint64_t write_deadline_ns
    uint64_t tx_packets
    uint64_t tx_bytes
    uint64_t dropped
    Timer timer                  # guarded by the worker's wheel

# For the receive side of the clients of a class; guarded by core.limit_lock, a worker's copy by its
# thread.
cdef struct RateLimit:
    double bytes_per_s           # 0 = none
    double burst_bytes

cdef struct Core:                # shared by all threads of a plane; fixed unless a field says more
    Arena sessions               # alloc and free under sessions_lock
    # Records by their session's slot, allocated under sessions_lock; memory only with TLS
    Arena keys
    pthread_mutex_t sessions_lock
    RouteTable routes            # has its own lock
    BacklogBudget budget         # atomic
    EventQueue events            # has its own lock
    uint64_t keep_alive_ns
    uint64_t write_timeout_ns    # atomic; 0 = none
    uint64_t mesh_write_timeout_ns   # 0 = none
    # after this time without being held back a client gets the notice of the end
    uint64_t rate_calm_ns
    uint64_t home_settled_ns     # after the login; only later changes of home are moves (§6.6)
    # how long a packet may wait for a session, except under lane_packets; 0 = no limit
    uint64_t packet_age_ns
    StashBudget stashes          # atomic
    pthread_mutex_t limit_lock
    RateLimit limits[RATE_CLASSES]   # by session.rate_class; guarded by limit_lock
    uint64_t limit_version       # atomic, written under limit_lock; 0 = a limit was never set
    uint16_t jitter              # of the latest session; guarded by the plane's control_lock
    int n_workers
    int* epolls                  # by worker
    Wheel* wheels                # by worker; each has its own lock
    PeerGoneQueue* peer_gone     # by worker; each has its own lock
    Partials* partials           # by worker
    # packets that wait for a client in each lane; 0 = the rule of LANE_BYTES
    uint32_t lane_packets
    bint counts_senders          # each session estimates how many peers have sent to it
    int n_watched
    uint8_t* watched             # keys whose dropped packets are reported
    uint64_t pad[8]
    uint64_t queue_ns            # atomic; moving average of the time that packets waited

cdef struct ThreadContext:       # the state one thread needs to act on sessions; never shared
    Core* core
    Counters* counters
    uint64_t now_ns
    uint64_t n_timed             # packets written or displaced since the last queue_time_fold
    uint64_t waited_ns           # the sum of their waiting times
    uint64_t n_direct            # packets written straight to their sockets; only grows
    uint64_t reported_since_ns   # start of the second in which n_reported drops were reported
    int n_reported
    Keyring keyring
    uint8_t* sealed              # scratch for one chunk of records
    size_t sealed_capacity

# Whole frames for one session, with the numbers to count when they are written. Caller's thread.
cdef struct Batch:
    iovec* iov
    int n_iov
    size_t n_bytes
    uint32_t n_packets
    size_t n_data                # payload bytes of the packets

cdef inline Session* session_at(Core* core, uint64_t handle) noexcept nogil:
    # The handle must have been valid once; compare session.handle to see whether it still is.
    return <Session*>arena_at(&core.sessions, <uint32_t>handle)
