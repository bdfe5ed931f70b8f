# A worker: one thread, one epoll set, the input side of its sessions. worker.pyx follows a packet.
# The worker's thread owns everything here, except `stop`, `wants_trim` and `asked`; any thread may
# read `counters` and `answered`.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastderp.dataplane.counters cimport Counters
from fastderp.dataplane.frame cimport KEY_SIZE
from fastderp.dataplane.core cimport (
    RATE_CLASSES, Core, RateLimit, Session, SessionList, ThreadContext,
)
from fastderp.dataplane.sys cimport epoll_event, iovec, pthread_t

cdef enum:
    # bytes read from a session in one turn: bounds the wait of the others
    READ_MAX = 262144
    READ_CONTENDING_MAX = 16384  # the same for a sender to a contended session
    # the same under a rate limit: bounds the bytes held back, and holds the largest frame
    READ_LIMITED_MAX = 66560
    # TLS records of one session in one turn: opening a record of one byte takes 0.3 µs
    READ_RECORDS = 1024
    # destinations of one session in one turn: each costs a write that delays other sessions
    TOUCH_MAX = 256
    # unread bytes of a promoted connection; more than an incomplete frame or record
    UNREAD_MAX = 294912
    # bytes of plaintext per flush; holds a fresh session's first read
    GATHER_MAX = 1048576
    # bytes after which a run ends (SEAL_CHUNK relies on it)
    RUN_MAX = 65536
    MAX_RUNS = 4096
    MAX_TARGETS = 1024
    TARGET_BUCKETS = 4096        # power of two, larger than MAX_TARGETS
    MAX_EVENTS = 512
    MAX_ENDING = 1024            # sessions that end in one turn; the others end in the next
    SEEN_PAIRS = 4096            # power of two

# Adjacent whole frames in the gather buffer for one target. Worker only.
cdef struct Run:
    uint8_t* data
    uint32_t n
    int next                     # the next run of the same target; -1 = none

cdef struct Target:              # a session that gets frames in this turn; worker only
    uint64_t handle
    Session* session
    int first_run
    int last_run
    int n_runs
    uint32_t n_packets
    size_t n_data
    uint32_t bucket
    bint is_contended            # a copy of session.contended
    bint has_pong                # one of these frames is a pong

# Sessions with more work than one turn allows, in the order to continue them. Worker only.
cdef struct Deferred:
    SessionList sessions
    int n

# A (sender, receiver) pair that the routing table has already. Worker only.
cdef struct SeenPair:
    uint64_t stamp
    uint64_t receiver

cdef struct Worker:              # owned by its thread; the atomic members and `counters` are shared
    ThreadContext context
    int index
    int epoll
    int wake_fd
    int timer_fd                 # expires when a timer of the wheel may be due
    pthread_t thread
    uint8_t stop                 # atomic; set by the control thread
    uint8_t wants_trim           # atomic; set by the control thread
    uint64_t asked               # atomic; how often the control thread has asked for a turn
    uint64_t answered            # atomic; the value of `asked` that the latest wake-up saw
    uint8_t* gather              # GATHER_MAX bytes
    size_t n_gathered
    uint64_t gather_ns           # lower bound for the time the oldest gathered bytes were read
    # 2 * GATHER_MAX bytes: this turn's packets for other relays, in a longer frame
    uint8_t* forward
    size_t n_forwarded
    # UNREAD_MAX + READ_MAX bytes: the rest of the previous read, and a new read
    uint8_t* cipher
    int n_runs
    int n_targets
    int n_ending
    int n_touched                # targets that the current session has added
    Deferred deferred
    # last_dst and last_target are from this read, with no flush in between
    bint has_last
    uint8_t last_dst[KEY_SIZE]   # destination of the previous packet
    int last_target              # its target; negative when it has none
    bint last_is_link            # the target is another relay
    Run runs[MAX_RUNS]
    Target targets[MAX_TARGETS]
    uint16_t buckets[TARGET_BUCKETS]     # target + 1
    SeenPair seen[SEEN_PAIRS]
    Session* ending[MAX_ENDING]
    epoll_event events[MAX_EVENTS]
    iovec iov[MAX_RUNS]
    RateLimit limits[RATE_CLASSES]   # copy of core.limits as of limit_version
    uint64_t limit_version
    Counters counters            # written by the worker, read by any thread

cdef bint worker_init(Worker* w, Core* core, int index) noexcept nogil
cdef bint worker_start(Worker* w) noexcept nogil
cdef void worker_trim(Worker* w) noexcept nogil
cdef bint worker_ask(Worker* w) noexcept nogil
cdef void worker_stop(Worker* w) noexcept nogil
cdef void worker_close(Core* core, Worker* w) noexcept nogil
cdef void worker_free(Core* core, Worker* w) noexcept nogil
