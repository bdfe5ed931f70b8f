# Included by plane.pyx: checks of arguments from Python, and the options of a promoted socket. The
# control plane runs them.

WORKERS_MAX = 256


cdef int check_key(bytes key) except -1:
    if len(key) != KEY_SIZE:
        raise ValueError(f"a key has {KEY_SIZE} bytes, not {len(key)}")
    return 0


def _check_seconds(**seconds):
    """Raise ValueError for a time below 0, by the name of its argument."""
    for name, value in seconds.items():
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, but is {value}")


cdef int checked_workers(int workers) except -1:
    """Return the number of worker threads: by default one per core, as far as they are allowed."""
    cdef int n = workers or min(n_cores(), WORKERS_MAX)
    if not 1 <= n <= WORKERS_MAX:
        raise ValueError(f"workers must be between 1 and {WORKERS_MAX}, not {n}")
    return n


# Limit for unread bytes of a near peer in the kernel. With the kernel's default, megabytes of late
# packets accumulate in an overloaded relay. A peer this near fills a gigabit link with less; a
# distant one needs the kernel's limit.
cdef int NEAR_RECEIVE_BYTES = 212992
cdef unsigned int NEAR_RTT_US = 2000
# Expanded keys of the control thread, which seldom writes to the same session twice.
cdef unsigned int CONTROL_KEYS = 16


cdef size_t frames_piece(const uint8_t* frames, size_t n) noexcept:
    """Return how many of n bytes of whole frames to send to a session at once."""
    cdef size_t piece = 0
    while piece < n and piece < SEAL_CHUNK:
        piece += frame_size(frames + piece)
    return piece


cdef bint frames_are_whole(const uint8_t* frames, size_t n) noexcept:
    cdef size_t size
    while n >= FRAME_HEADER:
        size = frame_size(frames)
        if size > n:
            return False
        frames += size
        n -= size
    return n == 0


cdef void socket_tune(int fd) noexcept:
    # Listeners and dials have set the other options. On a socketpair these fail, which is ignored.
    cdef tcp_counts info
    cdef unsigned int n = sizeof(info)
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n) == 0 and n == sizeof(info)
            and info.rtt_us <= NEAR_RTT_US):
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &NEAR_RECEIVE_BYTES, sizeof(NEAR_RECEIVE_BYTES))
