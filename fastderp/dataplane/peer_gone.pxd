# Keys that left the region, and who is still to be told of it (PROTOCOL §6.7). Each worker has a line of them, of which
# it tells some in each turn: a popular key has thousands of receivers, and everybody else waits for the worker.

from libc.stdint cimport uint8_t, uint32_t

from fastderp.dataplane.routes cimport HandleSet, RouteTable
from fastderp.dataplane.sys cimport pthread_mutex_t

cdef struct Departure:           # owned by the line it is in
    Departure* next
    uint8_t key[32]
    HandleSet told               # its own
    uint32_t n_seen              # slots of the set that have been dealt with

cdef struct Departures:
    pthread_mutex_t lock         # the last in the lock order
    Departure* first             # atomic, written under the lock; only the worker takes it out
    Departure* last              # guarded by the lock
    int wake_fd                  # the worker's

cdef void departures_init(Departures* d, int wake_fd) noexcept nogil
cdef void departures_destroy(Departures* d, RouteTable* routes) noexcept nogil

# By anybody.
cdef void departures_add(Departures* d, RouteTable* routes, const uint8_t* key, HandleSet* told) noexcept nogil
cdef void departures_hand_over(Departures* d, RouteTable* routes, const uint8_t* key, HandleSet* told) noexcept nogil

# By the worker only.
cdef Departure* departures_first(Departures* d) noexcept nogil
cdef void departures_pop(Departures* d, RouteTable* routes) noexcept nogil
