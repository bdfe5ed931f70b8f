"""A timer wheel with a few timers as a Python class. The handle of timer i is i + 1."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from fastderp.dataplane.timer_wheel cimport (
    Timer, Wheel, wheel_arm, wheel_awake, wheel_destroy,
    wheel_disarm, wheel_init, wheel_pop, wheel_sleep,
)


cdef class TimerWheel:
    cdef Wheel* wheel
    cdef Timer* timers
    cdef size_t n

    def __cinit__(self, size_t n, int wake_fd=-1, uint64_t now_ns=0):
        cdef size_t i
        self.n = n
        self.wheel = <Wheel*>calloc(1, sizeof(Wheel))
        self.timers = <Timer*>calloc(n, sizeof(Timer))
        if self.wheel is NULL or self.timers is NULL:
            raise MemoryError
        wheel_init(self.wheel, wake_fd, now_ns)
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

    def pop(self, uint64_t now_ns):
        """Return the indices of all timers that are due."""
        due = []
        while True:
            handle = wheel_pop(self.wheel, now_ns)
            if handle == 0:
                return due
            due.append(handle - 1)

    def sleep_ms(self, uint64_t now_ns):
        return wheel_sleep(self.wheel, now_ns)

    def awake(self):
        wheel_awake(self.wheel)

    def __dealloc__(self):
        if self.wheel is not NULL:
            wheel_destroy(self.wheel)
        free(self.wheel)
        free(self.timers)
