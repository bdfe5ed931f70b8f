# A worker's timers: a wheel of 8 ms ticks that reaches 68 s ahead. Later timers wait in the last
# bucket and are armed again from there. Any thread may arm a timer; only the worker takes due
# timers. A timerfd in the worker's epoll set ends its sleep: a sleep with a time limit would cost
# the kernel a timer per turn. `lock` is the last in the lock order.

from libc.stdint cimport uint32_t, uint64_t

from fastderp.dataplane.sys cimport pthread_mutex_t

cdef enum:
    WHEEL_TICK_BITS = 23         # 8.4 ms
    WHEEL_BUCKETS = 8192
    WHEEL_WORDS = 128            # WHEEL_BUCKETS / 64

cdef struct Timer:               # embedded in a session; guarded by the wheel's lock
    Timer* next
    Timer* prev
    uint64_t due_ns              # 0 = not armed
    uint64_t handle              # of the session that contains it
    uint32_t bucket

cdef struct Wheel:               # guarded by `lock`; timer_fd is fixed until worker_close
    pthread_mutex_t lock
    Timer* buckets[WHEEL_BUCKETS]
    uint64_t occupied[WHEEL_WORDS]
    uint64_t tick                # the next tick to check
    # atomic; timer_fd's time, and no timer is due earlier; 0 from its end to the next wheel_pop
    uint64_t wake_ns
    int timer_fd

cdef void wheel_init(Wheel* w, int timer_fd, uint64_t now_ns) noexcept nogil
cdef void wheel_destroy(Wheel* w) noexcept nogil
cdef void wheel_arm(Wheel* w, Timer* timer, uint64_t due_ns) noexcept nogil
cdef void wheel_disarm(Wheel* w, Timer* timer) noexcept nogil
cdef void wheel_expired(Wheel* w) noexcept nogil
cdef uint64_t wheel_pop(Wheel* w, uint64_t now_ns) noexcept nogil
