# A worker: one thread, one epoll set, the input side of its sessions. The life of a packet is in
# worker.pyx. Everything here belongs to the worker's thread, except `stop` and `wants_trim`, and
# `counters`, which anybody may read.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastderp.dataplane.counters cimport Counters
from fastderp.dataplane.frame cimport KEY_SIZE
from fastderp.dataplane.session cimport Core, RateLimit, Session, ThreadContext
from fastderp.dataplane.sys cimport epoll_event, iovec, pthread_t

cdef enum:
    # bytes a session may bring in one turn: the others wait no longer than that takes
    READ_MAX = 262144
    READ_CONTENDING_MAX = 16384  # the same when several want more of a receiver than it takes
    # the same under a rate limit: what is held back stays small, and is one frame at least
    READ_LIMITED_MAX = 66560
    # TLS records of one session in one turn: to open one of a byte takes 0.3 µs
    READ_RECORDS = 1024
    # destinations of one session in one turn: each costs a write, for which others wait
    TOUCH_MAX = 256
    # bytes a promoted connection may bring along; more than an incomplete frame or record
    UNREAD_MAX = 294912
    # plaintext of one turn before it is sent on; holds a fresh session's first read
    GATHER_MAX = 1048576
    # a run ends when it has grown beyond this (SEAL_CHUNK counts on it)
    RUN_MAX = 65536
    MAX_RUNS = 4096
    MAX_TARGETS = 1024
    TARGET_BUCKETS = 4096        # power of two, larger than MAX_TARGETS
    MAX_EVENTS = 512
    # sessions that end in one turn; the rest is found ended in the next one
    MAX_ENDING = 1024
    SEEN_PAIRS = 4096            # power of two

# whole frames for one target that lie behind each other in the gather buffer
cdef struct Run:
    uint8_t* data
    uint32_t n
    int next                     # of the same target; -1 = last

cdef struct Target:              # a session that this turn's frames go to
    uint64_t handle
    Session* session
    int first_run
    int last_run
    int n_runs
    uint32_t n_packets
    size_t n_data
    uint32_t bucket
    bint is_contended            # as the session says
    bint has_pong                # one of these frames is a pong

# sessions with more to do than one turn allows, in the order of their turns
cdef struct ReadyList:
    Session* first
    Session* last
    int n

cdef struct SeenPair:            # a (sender, receiver) pair that the routing table knows already
    uint64_t stamp
    uint64_t receiver

cdef struct Worker:
    ThreadContext context
    int index
    int epoll
    int wake_fd
    pthread_t thread
    uint8_t stop                 # atomic, as wants_trim
    uint8_t wants_trim
    uint8_t* gather              # GATHER_MAX bytes
    size_t n_gathered
    uint64_t gather_ns           # when the first of what is gathered may have been read
    # 2 * GATHER_MAX bytes: packets of this turn for other relays, which are longer there
    uint8_t* forward
    size_t n_forwarded
    # UNREAD_MAX + READ_MAX bytes: what is left of the last read, and a new one
    uint8_t* cipher
    int n_runs
    int n_targets
    int n_ending
    int n_touched                # targets that the present session has brought
    ReadyList deferred
    # last_dst and last_target are of this read, and no flush has come in between
    bint has_last
    uint8_t last_dst[KEY_SIZE]   # destination of the previous packet …
    int last_target              # … its target, negative when it has none …
    bint last_is_link            # … and whether that is another relay
    Run runs[MAX_RUNS]
    Target targets[MAX_TARGETS]
    uint16_t buckets[TARGET_BUCKETS]     # target + 1
    SeenPair seen[SEEN_PAIRS]
    Session* ending[MAX_ENDING]
    epoll_event events[MAX_EVENTS]
    iovec iov[MAX_RUNS]
    RateLimit limit              # copy of core.limit as of limit_version
    uint64_t limit_version
    Counters counters

cdef bint worker_init(Worker* w, Core* core, int index) noexcept nogil
cdef bint worker_start(Worker* w) noexcept nogil
cdef void worker_trim(Worker* w) noexcept nogil
cdef void worker_stop(Worker* w) noexcept nogil
cdef void worker_free(Worker* w) noexcept nogil
