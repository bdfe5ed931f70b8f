"""A timer wheel with a few timers as a Python class. The handle of timer i is i + 1."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from fastderp.dataplane.sys cimport (
    CLOCK_MONOTONIC, TFD_CLOEXEC, TFD_NONBLOCK, close, timerfd_create,
)
from fastderp.dataplane.timer_wheel cimport (
    Timer, Wheel, wheel_arm, wheel_destroy, wheel_disarm, wheel_expired, wheel_init, wheel_pop,
)


cdef class TimerWheel:
    cdef Wheel* wheel
    cdef Timer* timers
    cdef size_t n
    cdef readonly int timer_fd

    def __cinit__(self, size_t n, uint64_t now_ns=0):
        cdef size_t i
        self.n = n
        self.wheel = <Wheel*>calloc(1, sizeof(Wheel))
        self.timers = <Timer*>calloc(n, sizeof(Timer))
        if self.wheel is NULL or self.timers is NULL:
            raise MemoryError
        self.timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
        wheel_init(self.wheel, self.timer_fd, now_ns)
        for i in range(n):
            self.timers[i].handle = i + 1

    cdef Timer* timer(self, size_t i) except NULL:
        if i >= self.n:
            raise IndexError(i)
        return &self.timers[i]

    def arm(self, size_t i, uint64_t due_ns):
        wheel_arm(self.wheel, self.timer(i), due_ns)

    def disarm(self, size_t i):
        wheel_disarm(self.wheel, self.timer(i))

    def expired(self):
        wheel_expired(self.wheel)

    def pop(self, uint64_t now_ns):
        """Return the indices of all timers that are due."""
        due = []
        while True:
            handle = wheel_pop(self.wheel, now_ns)
            if handle == 0:
                return due
            due.append(handle - 1)

    @property
    def wake_ns(self):
        return self.wheel.wake_ns

    def __dealloc__(self):
        if self.wheel is not NULL:
            wheel_destroy(self.wheel)
            close(self.timer_fd)
        free(self.wheel)
        free(self.timers)
