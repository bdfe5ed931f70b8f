# The reception rules of PROTOCOL §5. A frame is judged by its header as soon as that is there, so a wrong size
# closes the connection before its payload is read, and a frame to be discarded is never kept.

from fastderp.dataplane.frame cimport *


cdef FrameStatus frame_next(const uint8_t* p, size_t n, bint mesh, size_t* total) noexcept nogil:
    """Judge the frame that starts at p, of which n bytes are there; *total is its whole size (n >= 5)."""
    cdef uint32_t size
    cdef bint good
    if n < FRAME_HEADER:
        total[0] = FRAME_HEADER
        return FRAME_PARTIAL
    size = frame_payload_size(p)
    total[0] = FRAME_HEADER + <size_t>size

    if p[0] == FRAME_SEND_PACKET:
        good = KEY_SIZE <= size <= KEY_SIZE + PACKET_MAX
    elif p[0] == FRAME_FORWARD_PACKET:
        if not mesh:
            return FRAME_NOT_PERMITTED
        good = 2 * KEY_SIZE <= size <= 2 * KEY_SIZE + PACKET_MAX
    elif p[0] == FRAME_PING:
        good = PING_DATA <= size <= PING_MAX
    elif p[0] == FRAME_NOTE_PREFERRED:
        good = size == 1
    elif p[0] == FRAME_WATCH_CONNS:
        if size != 0:
            return FRAME_BAD_SIZE
        if not mesh:
            return FRAME_NOT_PERMITTED
        good = True
    elif p[0] == FRAME_CLOSE_PEER:
        if size != KEY_SIZE:
            return FRAME_BAD_SIZE
        if not mesh:
            return FRAME_NOT_PERMITTED
        good = True
    else:
        return FRAME_SKIP

    if not good:
        return FRAME_BAD_SIZE
    return FRAME_READY if n >= total[0] else FRAME_PARTIAL

