# Events for the control plane: frames that the data plane does not serve, sessions that closed,
# and watched drops. Any thread pushes; Python's event loop drains the queue when the eventfd is
# readable. The lock is held for one list operation.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastderp.dataplane.sys cimport pthread_mutex_t

cdef enum EventKind:
    EVENT_FRAME
    EVENT_CLOSED
    EVENT_DROP

cdef struct Totals:              # of one session, from its login to its end; owned by its holder
    uint64_t rx_packets
    uint64_t rx_bytes
    uint64_t tx_packets
    uint64_t tx_bytes
    uint64_t dropped             # packets for this session that were discarded

cdef struct Event:               # owned by its creator, then the queue, then the caller of take
    Event* next
    uint64_t handle
    uint8_t kind
    uint8_t reason               # CloseReason of EVENT_CLOSED, DropReason of EVENT_DROP
    uint8_t detail               # RecordStatus or error number of a close, kind of EVENT_DROP
    uint8_t key[32]              # the session's; of EVENT_DROP the destination's
    uint8_t addr[16]
    uint16_t port
    uint64_t lived_ns
    Totals totals
    # the frame of EVENT_FRAME, the sender's key of EVENT_DROP, the app name of EVENT_CLOSED
    uint32_t n_frame
    uint8_t frame[1]

cdef enum:
    # above this the queue takes only EVENT_CLOSED: a sender outruns the control plane
    EVENTS_MAX = 262144

cdef struct EventQueue:          # guarded by `lock` unless a field says otherwise
    pthread_mutex_t lock
    Event* head
    Event* tail
    uint64_t n                   # atomic, written under the lock
    # An eventfd, readable while the queue is not empty; fixed until events_close.
    int fd
    uint64_t lost                # atomic; events lost to EVENTS_MAX or for lack of memory

cdef bint events_init(EventQueue* q) noexcept nogil
cdef void events_destroy(EventQueue* q) noexcept nogil
cdef void events_close(EventQueue* q) noexcept nogil
cdef Event* event_new(EventQueue* q, EventKind kind, uint64_t handle, const uint8_t* frame,
                      uint32_t n_frame) noexcept nogil
cdef void events_push(EventQueue* q, Event* event) noexcept nogil
cdef Event* events_take(EventQueue* q, uint64_t n_most) noexcept nogil
