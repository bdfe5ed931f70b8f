# Arming, popping and sleeping; see timer_wheel.pxd for the threads and the lock.

from libc.string cimport memset

from fastderp.dataplane.sys cimport (
    eventfd_wake, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_unlock,
)

cdef extern from *:
    int count_trailing_zeros "__builtin_ctzll"(uint64_t x) noexcept nogil


cdef void wheel_init(Wheel* w, int wake_fd, uint64_t now_ns) noexcept nogil:
    memset(w, 0, sizeof(Wheel))
    pthread_mutex_init(&w.lock, NULL)
    w.tick = now_ns >> WHEEL_TICK_BITS
    w.wake_fd = wake_fd


cdef void wheel_destroy(Wheel* w) noexcept nogil:
    pthread_mutex_destroy(&w.lock)


cdef inline uint64_t timer_bucket(const Wheel* w, uint64_t due_ns) noexcept nogil:
    # Rounding up never makes a timer early; only a timer beyond the wheel's reach, in the last
    # bucket, is taken before it is due.
    cdef uint64_t tick = (due_ns + (<uint64_t>1 << WHEEL_TICK_BITS) - 1) >> WHEEL_TICK_BITS
    if tick < w.tick:
        tick = w.tick
    elif tick >= w.tick + WHEEL_BUCKETS:
        tick = w.tick + WHEEL_BUCKETS - 1
    return tick % WHEEL_BUCKETS


cdef void timer_link(Wheel* w, Timer* timer, uint64_t due_ns) noexcept nogil:
    cdef uint64_t bucket = timer_bucket(w, due_ns)
    cdef Timer* head = w.buckets[bucket]
    timer.due_ns = due_ns
    timer.bucket = <uint32_t>bucket
    timer.prev = NULL
    timer.next = head
    if head is not NULL:
        head.prev = timer
    w.buckets[bucket] = timer
    w.occupied[bucket // 64] |= <uint64_t>1 << (bucket % 64)


cdef void timer_unlink(Wheel* w, Timer* timer) noexcept nogil:
    # An empty bucket may stay marked as occupied until its tick comes.
    if timer.next is not NULL:
        timer.next.prev = timer.prev
    if timer.prev is not NULL:
        timer.prev.next = timer.next
    else:
        w.buckets[timer.bucket] = timer.next
    timer.due_ns = 0


cdef void wheel_arm(Wheel* w, Timer* timer, uint64_t due_ns) noexcept nogil:
    """Make the timer due no later than due_ns; wake a worker that would sleep past that."""
    cdef bint wake = False
    pthread_mutex_lock(&w.lock)
    if timer.due_ns == 0 or due_ns < timer.due_ns:
        if timer.due_ns != 0:
            timer_unlink(w, timer)
        timer_link(w, timer, due_ns)
        wake = due_ns < w.asleep_until_ns
    pthread_mutex_unlock(&w.lock)
    if wake:
        eventfd_wake(w.wake_fd)


cdef void wheel_disarm(Wheel* w, Timer* timer) noexcept nogil:
    pthread_mutex_lock(&w.lock)
    if timer.due_ns != 0:
        timer_unlink(w, timer)
    pthread_mutex_unlock(&w.lock)


cdef uint64_t wheel_pop(Wheel* w, uint64_t now_ns) noexcept nogil:
    """Remove one due timer and return its handle, or 0 when none is due."""
    cdef uint64_t until = now_ns >> WHEEL_TICK_BITS
    cdef uint64_t bucket
    cdef uint64_t handle = 0
    cdef Timer* timer
    pthread_mutex_lock(&w.lock)
    while w.tick <= until:
        bucket = w.tick % WHEEL_BUCKETS
        if w.occupied[bucket // 64] == 0:        # all 64 buckets of this word are empty
            w.tick = min(until + 1, (w.tick | 63) + 1)
            continue
        timer = w.buckets[bucket]
        if timer is not NULL:
            timer_unlink(w, timer)
            handle = timer.handle
            break
        w.occupied[bucket // 64] &= ~(<uint64_t>1 << (bucket % 64))
        w.tick += 1
    pthread_mutex_unlock(&w.lock)
    return handle


cdef uint64_t next_occupied(const Wheel* w) noexcept nogil:
    """Return the ticks from w.tick to the next occupied bucket; WHEEL_BUCKETS if all are empty."""
    cdef uint64_t ahead = 0
    cdef uint64_t bucket
    cdef uint64_t word
    while ahead < WHEEL_BUCKETS:
        bucket = (w.tick + ahead) % WHEEL_BUCKETS
        word = w.occupied[bucket // 64] >> (bucket % 64)
        if word != 0:
            return ahead + count_trailing_zeros(word)
        ahead += 64 - bucket % 64
    return WHEEL_BUCKETS


cdef int wheel_sleep(Wheel* w, uint64_t now_ns) noexcept nogil:
    """Return how many milliseconds the worker may sleep, and note that it is asleep."""
    cdef uint64_t due_ns
    pthread_mutex_lock(&w.lock)
    due_ns = (w.tick + next_occupied(w)) << WHEEL_TICK_BITS
    w.asleep_until_ns = due_ns
    pthread_mutex_unlock(&w.lock)
    if due_ns <= now_ns:
        return 0
    return <int>((due_ns - now_ns + 999999) // 1000000)


cdef void wheel_awake(Wheel* w) noexcept nogil:
    pthread_mutex_lock(&w.lock)
    w.asleep_until_ns = 0
    pthread_mutex_unlock(&w.lock)
