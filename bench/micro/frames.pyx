"""Walking the frames of a receive buffer."""

from libc.stdint cimport uint8_t

from fastderp.dataplane.frame cimport FRAME_READY, ROLE_CLIENT, frame_next


def walk(const uint8_t[::1] buffer):
    """Return the number of complete frames at the beginning of the buffer."""
    cdef size_t at = 0, total = 0, n = <size_t>buffer.shape[0]
    cdef const uint8_t* data = &buffer[0]
    cdef size_t n_frames = 0
    with nogil:
        while at < n and frame_next(data + at, n - at, ROLE_CLIENT, &total) == FRAME_READY:
            at += total
            n_frames += 1
    return n_frames
