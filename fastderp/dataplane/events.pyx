# The queue of events for the control plane; see events.pxd for the threads and the lock.

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fastderp.dataplane.sys cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, atomic_add_u64, atomic_peek_u64, atomic_poke_u64, close, counter_add,
    eventfd, eventfd_drain, eventfd_wake, pthread_mutex_destroy, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_unlock,
)


cdef bint events_init(EventQueue* q) noexcept nogil:
    """Prepare a queue. False when the process is out of descriptors."""
    memset(q, 0, sizeof(EventQueue))
    q.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if q.fd < 0:
        return False
    pthread_mutex_init(&q.lock, NULL)
    return True


cdef void events_destroy(EventQueue* q) noexcept nogil:
    cdef Event* event = q.head
    cdef Event* following
    while event is not NULL:
        following = event.next
        free(event)
        event = following
    q.head = NULL
    events_close(q)
    pthread_mutex_destroy(&q.lock)


cdef void events_close(EventQueue* q) noexcept nogil:
    """Close the descriptor, unless events are left or it is closed already."""
    if q.fd >= 0 and q.head is NULL:
        close(q.fd)
        q.fd = -1


cdef Event* event_new(EventQueue* q, EventKind kind, uint64_t handle, const uint8_t* frame,
                      uint32_t n_frame) noexcept nogil:
    """Return an event to fill in and push, or NULL when memory is out or the queue is full.

    A NULL is counted in `lost`, except for EVENT_CLOSED: session_end tries again.
    """
    cdef Event* event = NULL
    if kind == EVENT_CLOSED or atomic_peek_u64(&q.n) < EVENTS_MAX:
        event = <Event*>malloc(sizeof(Event) + n_frame)
    if event is NULL:
        if kind != EVENT_CLOSED:
            atomic_add_u64(&q.lost, 1)
        return NULL
    memset(event, 0, sizeof(Event))
    event.kind = kind
    event.handle = handle
    event.n_frame = n_frame
    if n_frame:
        memcpy(event.frame, frame, n_frame)
    return event


cdef void events_push(EventQueue* q, Event* event) noexcept nogil:
    cdef bint was_empty
    pthread_mutex_lock(&q.lock)
    was_empty = q.head is NULL
    if was_empty:
        q.head = event
    else:
        q.tail.next = event
    q.tail = event
    counter_add(&q.n, 1)
    pthread_mutex_unlock(&q.lock)
    if was_empty:
        eventfd_wake(q.fd)


cdef Event* events_take(EventQueue* q, uint64_t n_most) noexcept nogil:
    """Return a chain of up to n_most events (0 = all), oldest first; the caller frees each.

    The descriptor stays readable while events are left.
    """
    cdef Event* head
    cdef Event* last
    cdef uint64_t _n = 0
    eventfd_drain(q.fd)
    pthread_mutex_lock(&q.lock)
    head = last = q.head
    if n_most == 0 or n_most >= q.n:
        q.head = q.tail = NULL
        atomic_poke_u64(&q.n, 0)
    else:
        for _n in range(1, n_most):
            last = last.next
        q.head = last.next
        last.next = NULL
        atomic_poke_u64(&q.n, q.n - n_most)
        eventfd_wake(q.fd)
    pthread_mutex_unlock(&q.lock)
    return head
