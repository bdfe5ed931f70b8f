# One logged-in connection: its slot, its output side, its end. (Its input side is the worker's.)
#
# A session is born in the control thread (`session_open`), served by one worker, and ended by that
# worker alone (`session_end`). Everybody names it by handle: slot and generation, so a late
# reference is harmless.
#
#   FREE ──open──► OPEN ──session_fail, by any thread──► CLOSING ──session_end, by its worker──► FREE
#
# Locks, in this order: route table, then one session's output lock (never two), then a wheel or the
# events queue.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastderp.tls.aead cimport Keyring
from fastderp.dataplane.arena cimport Arena, arena_at
from fastderp.dataplane.cardinality cimport SenderSketch
from fastderp.dataplane.counters cimport Counters
from fastderp.dataplane.peer_gone cimport PeerGoneQueue
from fastderp.dataplane.events cimport EventQueue, Totals
from fastderp.dataplane.backlog cimport Backlog, BacklogBudget
from fastderp.tls.record cimport Records
from fastderp.dataplane.routes cimport Route, RouteTable
from fastderp.dataplane.sys cimport iovec, pthread_mutex_t
from fastderp.dataplane.timer_wheel cimport Timer, Wheel

cdef enum:
    # plaintext sealed between two writes: what a full socket leaves over stays small
    SEAL_CHUNK = 65536
    OUTPUT_IOVS = 1024           # UIO_MAXIOV: what one sendmsg takes
    NOT_HERE_BURST = 3           # answers at once to disco packets for unknown keys (§6.4)
    # of sets of receivers in one turn: 192 of them at most, each a write others wait for
    PEER_GONE_SLOTS = 256

cdef enum:
    APP_NAME_MAX = 32            # bytes (PROTOCOL §22)

cdef enum SessionState:
    SESSION_FREE = 0
    SESSION_OPEN
    SESSION_CLOSING

cdef enum CloseReason:
    CLOSE_EOF                    # the peer closed
    CLOSE_RESET                  # reading failed
    CLOSE_BAD_SIZE               # a frame of a size its type may not have
    CLOSE_NOT_PERMITTED          # a mesh frame from an ordinary client
    CLOSE_TLS                    # a record that RFC 8446 forbids
    CLOSE_WRITE_TIMEOUT
    CLOSE_WRITE_ERROR
    CLOSE_CONTROL_OVERFLOW       # control frames piled up
    CLOSE_NO_MEMORY
    CLOSE_SERVER                 # the control plane asked for it
    CLOSE_CLOSE_PEER             # a mesh peer asked for it
    CLOSE_SHUTDOWN
    CLOSE_SILENT                 # a link that was not heard for two keep-alive periods
    N_CLOSE_REASONS

# bytes of an incomplete frame or record; allocated while there are any
cdef struct Stash:
    uint8_t* data
    uint32_t n
    uint32_t capacity

cdef struct Peer:                # what the login told
    uint8_t key[32]
    uint8_t addr[16]             # IPv6 or IPv4-in-IPv6
    uint16_t port
    uint8_t role                 # Role
    uint8_t prober
    uint8_t not_ideal

cdef struct Bucket:              # tokens are payload bytes; as of filled_ns
    double tokens
    uint64_t filled_ns
    uint64_t version             # of core.limit when it was filled; another one means: start full

cdef struct Session:             # of six cache lines; flags are bytes, to keep it so
    uint32_t next_free           # the arena's
    uint32_t slot
    uint64_t handle              # atomic; 0 while FREE
    uint32_t generation          # of the last life; guarded by core.sessions_lock
    # Fixed while the session lives.
    int fd
    uint16_t worker
    Peer peer
    uint64_t opened_ns
    uint64_t keep_alive_ns       # its own period
    Route* route
    # in core.keys, NULL on a plain socket; rx side: worker, tx side: output lock
    Records* records
    # Its worker only.
    Stash frame                  # plaintext of an incomplete frame
    Stash record                 # ciphertext of an incomplete record
    uint64_t skip_bytes          # of a frame that is being discarded
    uint64_t rx_packets          # atomic, this worker the only writer; as rx_bytes
    uint64_t rx_bytes
    uint64_t next_keep_alive_ns  # for a link: when to look whether it is still heard
    uint64_t heard_ns            # when it last sent anything
    Bucket bucket                # receive rate limit (§6.8)
    # when a session that is over its rate is read again; 0 = it is not held back
    uint64_t resume_ns
    uint64_t not_here_ns         # when the answer limiter last gained a token
    uint8_t not_here_tokens
    uint8_t preferred            # atomic, this worker the only writer
    # the frame at the start of the stash has been charged and noted (§5)
    uint8_t has_begun
    # the worker has not looked at it yet: there may be unread bytes in the stashes
    uint8_t is_fresh
    uint8_t is_ending
    uint8_t is_contending        # its last packet was for a contended session
    uint8_t is_drained           # its last read emptied the socket: epoll tells when there is more
    # nothing more will come but the end, of which epoll will not tell again
    uint8_t has_hung_up
    # the stash holds whole frames: there were too many destinations for one turn
    uint8_t is_cut
    # as is_cut, of the stash of ciphertext: there were too many records for one turn
    uint8_t has_records
    uint8_t is_deferred        # in the worker's line of sessions to go on with in the next turn …
    Session* next_deferred     # … and its neighbours there
    Session* previous_deferred
    # The output side: guarded by output_lock.
    pthread_mutex_t output_lock
    uint8_t state                # atomic, written under the lock
    uint8_t close_reason
    uint8_t close_detail
    # atomic, written under the lock: not 0 while senders compete for it
    uint8_t contended
    uint8_t wants_out            # EPOLLOUT is armed
    uint8_t is_held              # EPOLLIN is not: over the rate limit
    uint8_t rtt_excused          # without a round-trip time, and not to be counted as such (again)
    Backlog* backlog             # NULL while empty
    # an empty one that knows who floods the session, while it is contended; or NULL
    Backlog* spare
    uint8_t* app_name            # its length, then its bytes; NULL without one
    # NULL until the first sender, and while core.counts_senders is False
    SenderSketch* senders
    uint64_t write_deadline_ns   # meaningful while there is a backlog
    uint64_t tx_packets
    uint64_t tx_bytes
    uint64_t dropped
    Timer timer                  # guarded by its worker's wheel

cdef struct RateLimit:           # for every client's receive side; guarded by the core's limit_lock
    double bytes_per_s           # 0 = none
    double burst_bytes

cdef struct Core:                # what all threads of one plane share
    Arena sessions               # alloc and free under sessions_lock, as keys
    Arena keys                   # Records by their session's slot; memory only where there is TLS
    pthread_mutex_t sessions_lock
    RouteTable routes
    BacklogBudget budget
    EventQueue events
    uint64_t keep_alive_ns
    uint64_t write_timeout_ns    # atomic; 0 = none, as of mesh_write_timeout_ns
    uint64_t mesh_write_timeout_ns
    uint64_t home_settled_ns     # after the login; only later changes of home count as moves (§6.6)
    # how long a packet may wait for a session, other than under lane_packets; 0 = any time
    uint64_t packet_age_ns
    pthread_mutex_t limit_lock
    RateLimit limit
    uint64_t limit_version       # atomic; 0 = there never was a limit
    int n_workers
    int* epolls                  # by worker
    Wheel* wheels
    PeerGoneQueue* peer_gone
    # exactly so many packets wait for a client in each lane; 0 = the rule of LANE_BYTES
    uint32_t lane_packets
    bint counts_senders          # fixed: each session estimates how many peers have sent to it
    int n_watched
    uint8_t* watched             # keys; packets for them that are dropped are told of
    uint64_t pad[8]
    uint64_t queue_ns            # atomic; moving average of the time packets waited

cdef struct ThreadContext:                # what one thread needs to act on sessions; never shared
    Core* core
    Counters* counters
    uint64_t now_ns
    uint64_t n_timed             # packets written or displaced since the last queue_time_fold …
    uint64_t waited_ns           # … and how long they waited, together
    uint64_t n_direct            # packets that went straight to their sockets; only ever grows
    uint64_t reported_since_ns       # drops told of in the second that began then
    int n_reported
    Keyring keyring
    uint8_t* sealed              # scratch for one chunk of records
    size_t sealed_capacity

# whole frames for one session, with what is counted when they are written
cdef struct Batch:
    iovec* iov
    int n_iov
    size_t n_bytes
    uint32_t n_packets
    size_t n_data                # payload bytes of the packets

# Birth, in the control thread: open, publish; discard after a failure.
cdef Session* session_open(ThreadContext* t, int worker, int fd, const Peer* peer,
                           const uint8_t* app_name, uint8_t n_app_name,
                           bint own_rtt, bint behind_proxy, const Records* keys) noexcept nogil
cdef bint session_publish(ThreadContext* t, Session* s, const uint8_t* first,
                          size_t n_first) noexcept nogil
cdef void session_discard(ThreadContext* t, Session* s) noexcept nogil

# Life and death, by the session's own worker.
cdef void session_due(ThreadContext* t, Session* s) noexcept nogil
cdef void session_end(ThreadContext* t, Session* s) noexcept nogil
cdef void peer_gone_run(ThreadContext* t, PeerGoneQueue* queue) noexcept nogil

cdef void session_note_sender(Core* core, uint64_t handle, uint64_t sender_hash) noexcept nogil
cdef void session_totals(Session* s, Totals* totals) noexcept nogil
cdef bint session_is_alive(void* core, uint64_t handle) noexcept nogil
cdef uint32_t sessions_touched(Core* core) noexcept nogil
cdef bint stash_put(Stash* stash, const uint8_t* data, size_t n) noexcept nogil


cdef inline Session* session_at(Core* core, uint64_t handle) noexcept nogil:
    # Of a handle that was valid once; whether it still is, its `handle` says.
    return <Session*>arena_at(&core.sessions, <uint32_t>handle)
