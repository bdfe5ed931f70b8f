# The reception rules of PROTOCOL §5. They judge a frame as soon as its header has arrived, so a
# wrong size closes the connection before the payload is read, and a frame to discard is never
# buffered. Any thread may call them.

from fastderp.dataplane.frame cimport *

cdef enum:
    REPORT_MIN = 32              # bytes: a key, or nonce and box
    REPORT_MAX = 1024
    LINK_FRAME_MAX = 1048576     # bytes that a client accepts from a server


cdef FrameStatus client_frame_judge(uint8_t type, uint32_t size, bint mesh) noexcept nogil:
    # PROTOCOL §5. READY means that the size is right and this relay acts on the frame.
    if type == FRAME_SEND_PACKET:
        return FRAME_READY if KEY_SIZE <= size <= KEY_SIZE + PACKET_MAX else FRAME_BAD_SIZE
    if type == FRAME_PING:
        return FRAME_READY if PING_DATA <= size <= PING_MAX else FRAME_BAD_SIZE
    if type == FRAME_NOTE_PREFERRED:
        return FRAME_READY if size == 1 else FRAME_BAD_SIZE
    if type == FRAME_FORWARD_PACKET:
        if not mesh:
            return FRAME_NOT_PERMITTED
        return FRAME_READY if 2 * KEY_SIZE <= size <= 2 * KEY_SIZE + PACKET_MAX else FRAME_BAD_SIZE
    if type == FRAME_WATCH_CONNS:
        if size != 0:
            return FRAME_BAD_SIZE
        return FRAME_READY if mesh else FRAME_NOT_PERMITTED
    if type == FRAME_CLOSE_PEER:
        if size != KEY_SIZE:
            return FRAME_BAD_SIZE
        return FRAME_READY if mesh else FRAME_NOT_PERMITTED
    return FRAME_SKIP if size <= SKIPPED_MAX else FRAME_BAD_SIZE


cdef FrameStatus link_frame_judge(uint8_t type, uint32_t size) noexcept nogil:
    # PROTOCOL §4: short frames and frames without mesh content are skipped.
    if size > LINK_FRAME_MAX:
        return FRAME_BAD_SIZE
    if type == FRAME_RESTARTING and size == 8:
        return FRAME_READY
    if (type == FRAME_PEER_PRESENT or type == FRAME_PEER_GONE or type == FRAME_SERVER_INFO
            or type == FRAME_RESTARTING):
        return FRAME_READY if REPORT_MIN <= size <= REPORT_MAX else FRAME_SKIP
    if type == FRAME_PING:
        return FRAME_READY if PING_DATA <= size <= PING_MAX else FRAME_SKIP
    return FRAME_SKIP


cdef FrameStatus frame_next(const uint8_t* p, size_t n, uint8_t role, size_t* total) noexcept nogil:
    """Judge the frame that starts at p, of which n bytes have arrived.

    *total becomes the size of the whole frame, or of its header while n is less than that.
    """
    cdef uint32_t size
    cdef FrameStatus status
    if n < FRAME_HEADER:
        total[0] = FRAME_HEADER
        return FRAME_PARTIAL
    size = frame_payload_size(p)
    total[0] = FRAME_HEADER + <size_t>size
    if role == ROLE_LINK:
        status = link_frame_judge(p[0], size)
    else:
        status = client_frame_judge(p[0], size, role == ROLE_MESH)
    if status == FRAME_READY and n < total[0]:
        return FRAME_PARTIAL
    return status
