# Keys that left the region, and who is still to be told of it (PROTOCOL §6.7). Each worker has a
# line of them, of which it tells some in each turn: a popular key has thousands of receivers, and
# everybody else waits for the worker.

from libc.stdint cimport uint8_t, uint32_t

from fastderp.dataplane.routes cimport HandleSet, RouteTable
from fastderp.dataplane.sys cimport pthread_mutex_t

cdef struct PeerGone:           # owned by the line it is in
    PeerGone* next
    uint8_t key[32]
    HandleSet watchers           # its own
    uint32_t n_seen              # slots of the set that have been dealt with

cdef struct PeerGoneQueue:
    pthread_mutex_t lock         # the last in the lock order
    PeerGone* first             # atomic, written under the lock; only the worker takes it out
    PeerGone* last              # guarded by the lock
    int wake_fd                  # the worker's

cdef void peer_gone_init(PeerGoneQueue* d, int wake_fd) noexcept nogil
cdef void peer_gone_destroy(PeerGoneQueue* d, RouteTable* routes) noexcept nogil

# By anybody.
cdef void peer_gone_add(PeerGoneQueue* d, RouteTable* routes, const uint8_t* key,
                        HandleSet* watchers) noexcept nogil
cdef void peer_gone_hand_over(PeerGoneQueue* d, RouteTable* routes, const uint8_t* key,
                              HandleSet* watchers) noexcept nogil

# By the worker only.
cdef PeerGone* peer_gone_first(PeerGoneQueue* d) noexcept nogil
cdef void peer_gone_pop(PeerGoneQueue* d, RouteTable* routes) noexcept nogil
