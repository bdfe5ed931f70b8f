# Arming and popping; see timer_wheel.pxd for the threads and the lock.

from fastderp.dataplane.sys cimport (
    atomic_load_u64, atomic_store_u64, count_trailing_zeros, pthread_mutex_destroy,
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock, timerfd_wake_at,
)


cdef void wheel_init(Wheel* w, int timer_fd, uint64_t now_ns) noexcept nogil:
    """Prepare a zeroed wheel."""
    pthread_mutex_init(&w.lock, NULL)
    w.tick = now_ns >> WHEEL_TICK_BITS
    w.timer_fd = timer_fd
    wake_at_tick(w, w.tick + WHEEL_BUCKETS)


cdef void wheel_destroy(Wheel* w) noexcept nogil:
    pthread_mutex_destroy(&w.lock)


cdef inline void wake_at_tick(Wheel* w, uint64_t tick) noexcept nogil:
    atomic_store_u64(&w.wake_ns, tick << WHEEL_TICK_BITS)
    timerfd_wake_at(w.timer_fd, tick << WHEEL_TICK_BITS)


cdef inline uint64_t timer_tick(const Wheel* w, uint64_t due_ns) noexcept nogil:
    # Rounding up never makes a timer early; only a timer beyond the wheel's reach, in the last
    # bucket, is taken before it is due.
    cdef uint64_t tick = (due_ns + (<uint64_t>1 << WHEEL_TICK_BITS) - 1) >> WHEEL_TICK_BITS
    return min(max(tick, w.tick), w.tick + WHEEL_BUCKETS - 1)


cdef void timer_link(Wheel* w, Timer* timer, uint64_t due_ns) noexcept nogil:
    cdef uint64_t tick = timer_tick(w, due_ns)
    cdef uint64_t bucket = tick % WHEEL_BUCKETS
    cdef Timer* head = w.buckets[bucket]
    timer.due_ns = due_ns
    timer.bucket = <uint32_t>bucket
    timer.prev = NULL
    timer.next = head
    if head is not NULL:
        head.prev = timer
    w.buckets[bucket] = timer
    w.occupied[bucket // 64] |= <uint64_t>1 << (bucket % 64)
    if tick << WHEEL_TICK_BITS < w.wake_ns:
        wake_at_tick(w, tick)


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
    """Make the timer due no later than due_ns."""
    pthread_mutex_lock(&w.lock)
    if timer.due_ns == 0 or due_ns < timer.due_ns:
        if timer.due_ns != 0:
            timer_unlink(w, timer)
        timer_link(w, timer, due_ns)
    pthread_mutex_unlock(&w.lock)


cdef void wheel_disarm(Wheel* w, Timer* timer) noexcept nogil:
    pthread_mutex_lock(&w.lock)
    if timer.due_ns != 0:
        timer_unlink(w, timer)
    pthread_mutex_unlock(&w.lock)


cdef inline uint64_t next_occupied(const Wheel* w) noexcept nogil:
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


cdef uint64_t pop_locked(Wheel* w, uint64_t until) noexcept nogil:
    """Remove one timer of the ticks up to `until`; return its handle, or 0 when there is none."""
    cdef uint64_t bucket
    cdef Timer* timer
    while w.tick <= until:
        bucket = w.tick % WHEEL_BUCKETS
        if w.occupied[bucket // 64] == 0:        # all 64 buckets of this word are empty
            w.tick = min(until + 1, (w.tick | 63) + 1)
            continue
        timer = w.buckets[bucket]
        if timer is not NULL:
            timer_unlink(w, timer)
            return timer.handle
        w.occupied[bucket // 64] &= ~(<uint64_t>1 << (bucket % 64))
        w.tick += 1
    return 0


cdef void wheel_expired(Wheel* w) noexcept nogil:
    """Note that timer_fd has expired and is not set any more.

    It counts whatever the time is: the kernel's clock may be ahead of the caller's by a little.
    """
    pthread_mutex_lock(&w.lock)
    atomic_store_u64(&w.wake_ns, 0)
    pthread_mutex_unlock(&w.lock)


cdef uint64_t wheel_pop(Wheel* w, uint64_t now_ns) noexcept nogil:
    """Remove one due timer and return its handle, or 0 when none is due.

    After 0 timer_fd is set and expires no later than the next timer is due.
    """
    cdef uint64_t handle
    if now_ns < atomic_load_u64(&w.wake_ns):
        return 0
    pthread_mutex_lock(&w.lock)
    handle = pop_locked(w, now_ns >> WHEEL_TICK_BITS)
    if handle == 0:
        wake_at_tick(w, w.tick + next_occupied(w))
    pthread_mutex_unlock(&w.lock)
    return handle
