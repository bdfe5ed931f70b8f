# The queue of PeerGone notices; see peer_gone.pxd for the threads and the lock.

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastderp.dataplane.routes cimport handle_set_free
from fastderp.dataplane.sys cimport (
    atomic_load_ptr, atomic_store_ptr, eventfd_wake, pthread_mutex_destroy, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_unlock,
)


cdef void peer_gone_init(PeerGoneQueue* q, int wake_fd) noexcept nogil:
    """Prepare a zeroed queue."""
    pthread_mutex_init(&q.lock, NULL)
    q.wake_fd = wake_fd


cdef void peer_gone_destroy(PeerGoneQueue* q, RouteTable* routes) noexcept nogil:
    """Free the queue and every notice in it."""
    while q.first is not NULL:
        peer_gone_pop(q, routes)
    pthread_mutex_destroy(&q.lock)


cdef void peer_gone_add(PeerGoneQueue* q, RouteTable* routes, const uint8_t* key,
                        HandleSet* watchers) noexcept nogil:
    """Have the worker send PeerGone for the key to every watcher; take over the set.

    The notices are lost when memory is out.
    """
    cdef PeerGone* gone = <PeerGone*>malloc(sizeof(PeerGone)) if watchers.n else NULL
    if gone is NULL:
        handle_set_free(routes, watchers)
        return
    gone.next = NULL
    memcpy(gone.key, key, sizeof(gone.key))
    gone.watchers = watchers[0]
    gone.n_seen = 0
    pthread_mutex_lock(&q.lock)
    if q.last is not NULL:
        q.last.next = gone
    else:
        atomic_store_ptr(<void**>&q.first, gone)
    q.last = gone
    pthread_mutex_unlock(&q.lock)


cdef void peer_gone_hand_over(PeerGoneQueue* q, RouteTable* routes, const uint8_t* key,
                              HandleSet* watchers) noexcept nogil:
    """Do peer_gone_add in another thread than the worker, and wake the worker."""
    peer_gone_add(q, routes, key, watchers)
    eventfd_wake(q.wake_fd)


cdef PeerGone* peer_gone_first(PeerGoneQueue* q) noexcept nogil:
    """Return the next notice to send, or NULL."""
    return <PeerGone*>atomic_load_ptr(<void**>&q.first)


cdef void peer_gone_pop(PeerGoneQueue* q, RouteTable* routes) noexcept nogil:
    """Free the first notice of a queue that is not empty."""
    cdef PeerGone* gone
    pthread_mutex_lock(&q.lock)
    gone = q.first
    atomic_store_ptr(<void**>&q.first, gone.next)
    if gone.next is NULL:
        q.last = NULL
    pthread_mutex_unlock(&q.lock)
    handle_set_free(routes, &gone.watchers)
    free(gone)
