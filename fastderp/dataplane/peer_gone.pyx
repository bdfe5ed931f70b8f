from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastderp.dataplane.routes cimport handle_set_free
from fastderp.dataplane.sys cimport (
    atomic_load_ptr, atomic_store_ptr, eventfd_wake, pthread_mutex_destroy, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_unlock,
)


cdef void peer_gone_init(PeerGoneQueue* d, int wake_fd) noexcept nogil:
    """Prepare a zeroed line."""
    pthread_mutex_init(&d.lock, NULL)
    d.wake_fd = wake_fd


cdef void peer_gone_destroy(PeerGoneQueue* d, RouteTable* routes) noexcept nogil:
    """Free the queue and what waits in it."""
    while d.first is not NULL:
        peer_gone_pop(d, routes)
    pthread_mutex_destroy(&d.lock)


cdef void peer_gone_add(PeerGoneQueue* d, RouteTable* routes, const uint8_t* key,
                        HandleSet* watchers) noexcept nogil:
    """Have the worker tell of a departure; the set is the line's from here on. Without memory
    nobody is told.
    """
    cdef PeerGone* gone = <PeerGone*>malloc(sizeof(PeerGone)) if watchers.n else NULL
    if gone is NULL:
        handle_set_free(routes, watchers)
        return
    gone.next = NULL
    memcpy(gone.key, key, sizeof(gone.key))
    gone.watchers = watchers[0]
    gone.n_seen = 0
    pthread_mutex_lock(&d.lock)
    if d.last is not NULL:
        d.last.next = gone
    else:
        atomic_store_ptr(<void**>&d.first, gone)
    d.last = gone
    pthread_mutex_unlock(&d.lock)


cdef void peer_gone_hand_over(PeerGoneQueue* d, RouteTable* routes, const uint8_t* key,
                              HandleSet* watchers) noexcept nogil:
    """peer_gone_add by another thread than the worker, which may be asleep."""
    peer_gone_add(d, routes, key, watchers)
    eventfd_wake(d.wake_fd)


cdef PeerGone* peer_gone_first(PeerGoneQueue* d) noexcept nogil:
    """Return the departure to tell of next, or NULL."""
    return <PeerGone*>atomic_load_ptr(<void**>&d.first)


cdef void peer_gone_pop(PeerGoneQueue* d, RouteTable* routes) noexcept nogil:
    """Free the first of a line that is not empty."""
    cdef PeerGone* gone
    pthread_mutex_lock(&d.lock)
    gone = d.first
    atomic_store_ptr(<void**>&d.first, gone.next)
    if gone.next is NULL:
        d.last = NULL
    pthread_mutex_unlock(&d.lock)
    handle_set_free(routes, &gone.watchers)
    free(gone)
