# Included by output.pyx: Health frames (PROTOCOL §2). A frame replaces the previous one, so each
# frame names every problem of its session; an empty frame means that there is none.

cdef enum:
    HEALTH_MAX = 512             # holds all texts, their separators and the frame header

cdef const char* DUPLICATE_TEXT = (
    b"another connection uses the same node key, and packets go to the one that sent last; "
    b"was a machine's state copied?")
cdef const char* RATE_TEXT = (
    b"this relay limits the rate of this client, and delays packets above the limit")


cdef size_t health_append(uint8_t* frame, size_t n, const char* text) noexcept nogil:
    if n > FRAME_HEADER:
        memcpy(frame + n, b"; ", 2)
        n += 2
    memcpy(frame + n, text, strlen(text))
    return n + strlen(text)


cdef size_t health_write(uint8_t* frame, uint8_t problems) noexcept nogil:
    """Write the frame for these problems, up to HEALTH_MAX bytes; return its size."""
    cdef size_t n = FRAME_HEADER
    if problems & PROBLEM_DUPLICATE:
        n = health_append(frame, n, DUPLICATE_TEXT)
    if problems & PROBLEM_RATE:
        n = health_append(frame, n, RATE_TEXT)
    frame_put_header(frame, FRAME_HEALTH, <uint32_t>(n - FRAME_HEADER))
    return n


cdef bint session_set_problem(ThreadContext* t, uint64_t handle, Problem problem,
                              bint is_on) noexcept nogil:
    """Note the beginning or the end of a session's problem, and send its client a change.

    False when nothing changes or the session is gone or leaving. The frame is sent under the lock,
    so that no frame of another thread overtakes it.
    """
    cdef uint8_t frame[HEALTH_MAX]
    cdef Session* s = session_at(t.core, handle)
    cdef Batch batch
    cdef iovec iov
    cdef bint changes
    pthread_mutex_lock(&s.output_lock)
    changes = (atomic_load_u64(&s.handle) == handle and s.state == SESSION_OPEN
               and not s.leaving and ((s.problems & problem) != 0) != is_on)
    if changes:
        s.problems ^= problem
        batch_of_frame(&batch, &iov, frame, health_write(frame, s.problems))
        output_locked(t, s, &batch)
    pthread_mutex_unlock(&s.output_lock)
    return changes
