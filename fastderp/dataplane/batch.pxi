# Included by worker.pyx: the frames of a turn, grouped by the session that gets them. Only the
# worker's thread runs this.

# ---- targets

cdef int target_get(Worker* w, uint64_t handle) noexcept nogil:
    """Return the index of the session's target; add a target when it has none."""
    cdef uint32_t bucket = <uint32_t>handle & (TARGET_BUCKETS - 1)
    cdef Target* target
    while w.buckets[bucket] != 0:
        if w.targets[w.buckets[bucket] - 1].handle == handle:
            return w.buckets[bucket] - 1
        bucket = (bucket + 1) & (TARGET_BUCKETS - 1)
    if w.n_targets == MAX_TARGETS:
        targets_flush(w)
        bucket = <uint32_t>handle & (TARGET_BUCKETS - 1)
    target = &w.targets[w.n_targets]
    w.n_targets += 1
    target.handle = handle
    target.session = session_at(w.context.core, handle)
    target.is_contended = atomic_load_u8(&target.session.contended) != 0
    target.has_pong = False
    target.first_run = target.last_run = -1
    target.n_runs = 0
    target.n_packets = 0
    target.n_data = 0
    target.bucket = bucket
    w.n_touched += 1
    w.buckets[bucket] = <uint16_t>w.n_targets
    return w.n_targets - 1


cdef void target_append(Worker* w, int* index, uint8_t* frame, size_t n, uint32_t n_packets,
                        size_t n_data) noexcept nogil:
    """Append a whole frame to a target. *index changes when a flush had to make room."""
    cdef Target* target = &w.targets[index[0]]
    cdef uint64_t handle
    cdef Run* run
    if target.last_run >= 0:
        run = &w.runs[target.last_run]
        if run.data + run.n == frame and run.n < RUN_MAX:
            run.n += <uint32_t>n
            target.n_packets += n_packets
            target.n_data += n_data
            return
    if w.n_runs == MAX_RUNS:
        handle = target.handle
        targets_flush(w)
        index[0] = target_get(w, handle)
        target = &w.targets[index[0]]
    run = &w.runs[w.n_runs]
    run.data = frame
    run.n = <uint32_t>n
    run.next = -1
    if target.last_run >= 0:
        w.runs[target.last_run].next = w.n_runs
    else:
        target.first_run = w.n_runs
    target.last_run = w.n_runs
    target.n_runs += 1
    target.n_packets += n_packets
    target.n_data += n_data
    w.n_runs += 1


cdef void target_send(Worker* w, Target* target) noexcept nogil:
    cdef Batch batch
    cdef int run = target.first_run
    batch.iov = w.iov
    batch.n_iov = 0
    batch.n_bytes = 0
    batch.n_packets = target.n_packets
    batch.n_data = target.n_data
    while run >= 0:
        w.iov[batch.n_iov].iov_base = w.runs[run].data
        w.iov[batch.n_iov].iov_len = w.runs[run].n
        batch.n_bytes += w.runs[run].n
        batch.n_iov += 1
        run = w.runs[run].next
    session_output(&w.context, target.session, target.handle, &batch)


cdef void targets_flush(Worker* w) noexcept nogil:
    """Write every target once. The gathered bytes may be overwritten afterwards."""
    cdef int i
    cdef uint64_t n_before = w.context.n_direct
    for i in range(w.n_targets):
        if w.targets[i].n_runs:
            target_send(w, &w.targets[i])
        w.buckets[w.targets[i].bucket] = 0
    w.n_targets = 0
    w.n_runs = 0
    w.has_last = False
    gather_time_note(w, w.context.n_direct - n_before)


cdef inline void gather_time_note(Worker* w, uint64_t n_direct) noexcept nogil:
    # Packets written straight to their sockets waited here, on average for half of the time that
    # reading and writing all of them took. A handful takes microseconds, less than is worth a clock
    # read.
    cdef uint64_t now_ns
    cdef uint64_t waited_ns = 0
    if n_direct >= TIMED_PACKETS:
        now_ns = clock_ns()
        waited_ns = (now_ns - w.gather_ns) // 2
        w.context.waited_ns += n_direct * waited_ns
        w.gather_ns = now_ns
    if n_direct:
        count_delay(&w.context, n_direct, waited_ns)
