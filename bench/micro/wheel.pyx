"""The timer wheel of a worker."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from fastderp.dataplane.timer_wheel cimport (
    Timer, Wheel, wheel_arm, wheel_destroy, wheel_disarm, wheel_init, wheel_pop)


cdef class TimerWheel:
    """A wheel with n timers."""

    cdef Wheel* wheel
    cdef Timer* timers
    cdef size_t n

    def __cinit__(self, size_t n):
        cdef size_t i
        self.n = n
        self.wheel = <Wheel*>calloc(1, sizeof(Wheel))
        self.timers = <Timer*>calloc(n, sizeof(Timer))
        if self.wheel is NULL or self.timers is NULL:
            raise MemoryError()
        wheel_init(self.wheel, -1, 0)
        for i in range(n):
            self.timers[i].handle = i + 1

    def turn(self, uint64_t now_ns, uint64_t apart_ns):
        """Arm all timers, move every second one, disarm every fourth; return how many are due."""
        cdef size_t i, n_due = 0
        with nogil:
            for i in range(self.n):
                wheel_arm(self.wheel, &self.timers[i], now_ns + i * apart_ns)
            for i in range(0, self.n, 2):
                wheel_arm(self.wheel, &self.timers[i], now_ns + (i + 1) * apart_ns)
            for i in range(0, self.n, 4):
                wheel_disarm(self.wheel, &self.timers[i])
            while wheel_pop(self.wheel, now_ns + (self.n + 2) * apart_ns + 100000000):
                n_due += 1
        return n_due

    def __dealloc__(self):
        if self.wheel is not NULL:
            wheel_destroy(self.wheel)
        free(self.wheel)
        free(self.timers)
