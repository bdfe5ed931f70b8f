# Keys that left the region and the watchers that still need a PeerGone (PROTOCOL §6.7). Each worker
# has a queue and sends a bounded number in each turn: a popular key has thousands of watchers, and
# all other sessions of the worker wait meanwhile.

from libc.stdint cimport uint8_t, uint32_t

from fastderp.dataplane.routes cimport HandleSet, RouteTable
from fastderp.dataplane.sys cimport pthread_mutex_t

cdef struct PeerGone:            # owned by its queue; only the worker changes it there
    PeerGone* next
    uint8_t key[32]
    HandleSet watchers           # owned by this struct
    uint32_t n_seen              # slots of `watchers` already processed

cdef struct PeerGoneQueue:
    pthread_mutex_t lock         # the last in the lock order
    PeerGone* first              # atomic, written under the lock; only the worker removes it
    PeerGone* last               # guarded by the lock
    int wake_fd                  # the worker's eventfd; fixed until worker_close

cdef void peer_gone_init(PeerGoneQueue* q, int wake_fd) noexcept nogil
cdef void peer_gone_destroy(PeerGoneQueue* q, RouteTable* routes) noexcept nogil

# For any thread.
cdef void peer_gone_add(PeerGoneQueue* q, RouteTable* routes, const uint8_t* key,
                        HandleSet* watchers) noexcept nogil
cdef void peer_gone_hand_over(PeerGoneQueue* q, RouteTable* routes, const uint8_t* key,
                              HandleSet* watchers) noexcept nogil

# For the worker only.
cdef PeerGone* peer_gone_first(PeerGoneQueue* q) noexcept nogil
cdef void peer_gone_pop(PeerGoneQueue* q, RouteTable* routes) noexcept nogil
