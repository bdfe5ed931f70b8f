from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastderp.dataplane.routes cimport handle_set_free
from fastderp.dataplane.sys cimport (
    atomic_load_ptr, atomic_store_ptr, eventfd_wake, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_unlock,
)


cdef void departures_init(Departures* d, int wake_fd) noexcept nogil:
    """Prepare a zeroed line."""
    pthread_mutex_init(&d.lock, NULL)
    d.wake_fd = wake_fd


cdef void departures_destroy(Departures* d, RouteTable* routes) noexcept nogil:
    """Free the line. Who was not told yet never will be."""
    while d.first is not NULL:
        departures_pop(d, routes)
    pthread_mutex_destroy(&d.lock)


cdef void departures_add(Departures* d, RouteTable* routes, const uint8_t* key, HandleSet* told) noexcept nogil:
    """Have the worker tell of a departure; the set is the line's from here on. Without memory nobody is told."""
    cdef Departure* departure = <Departure*>malloc(sizeof(Departure)) if told.n else NULL
    if departure is NULL:
        handle_set_free(routes, told)
        return
    departure.next = NULL
    memcpy(departure.key, key, sizeof(departure.key))
    departure.told = told[0]
    departure.n_seen = 0
    pthread_mutex_lock(&d.lock)
    if d.last is not NULL:
        d.last.next = departure
    else:
        atomic_store_ptr(<void**>&d.first, departure)
    d.last = departure
    pthread_mutex_unlock(&d.lock)


cdef void departures_hand_over(Departures* d, RouteTable* routes, const uint8_t* key, HandleSet* told) noexcept nogil:
    """departures_add by another thread than the worker, which may be asleep."""
    departures_add(d, routes, key, told)
    eventfd_wake(d.wake_fd)


cdef Departure* departures_first(Departures* d) noexcept nogil:
    """Return the departure to tell of next, or NULL."""
    return <Departure*>atomic_load_ptr(<void**>&d.first)


cdef void departures_pop(Departures* d, RouteTable* routes) noexcept nogil:
    """Free the first of a line that is not empty."""
    cdef Departure* departure
    pthread_mutex_lock(&d.lock)
    departure = d.first
    atomic_store_ptr(<void**>&d.first, departure.next)
    if departure.next is NULL:
        d.last = NULL
    pthread_mutex_unlock(&d.lock)
    handle_set_free(routes, &departure.told)
    free(departure)
