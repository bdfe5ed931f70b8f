# Included by output.pyx: counts packets that are written, wait or are dropped, in the counters of
# the calling thread. Functions that take a session run under its output lock.

cdef void packet_drop(ThreadContext* t, DropReason reason, const uint8_t* frame, size_t n,
                      const uint8_t* src, const uint8_t* dst) noexcept nogil:
    """Count a packet that will not be delivered, and report it when its destination is watched."""
    cdef int kind = KIND_DISCO if frame_carries_disco(frame, n) else KIND_OTHER
    counter_add(&t.counters.packets_dropped[<int>reason][kind], 1)
    counter_add(&t.counters.bytes_dropped[<int>reason][kind], frame_data_size(frame, n))
    if t.core.n_watched and dst is not NULL:
        drop_report(t, reason, kind, src, dst)


cdef void drop_report(ThreadContext* t, DropReason reason, int kind, const uint8_t* src,
                      const uint8_t* dst) noexcept nogil:
    # REPORTS_PER_SECOND keeps a flood of drops from becoming a flood of events. src is NULL for a
    # packet without a sender's key.
    cdef Event* event = NULL
    cdef int i
    for i in range(t.core.n_watched):
        if memcmp(t.core.watched + i * KEY_SIZE, dst, KEY_SIZE) == 0:
            break
    else:
        return
    if t.now_ns - t.reported_since_ns >= REPORT_WINDOW_NS:
        t.reported_since_ns = t.now_ns
        t.n_reported = 0
    t.n_reported += 1
    if t.n_reported <= REPORTS_PER_SECOND:
        event = event_new(&t.core.events, EVENT_DROP, 0, src, KEY_SIZE if src is not NULL else 0)
    if event is not NULL:
        event.reason = <uint8_t>reason
        event.detail = <uint8_t>kind
        memcpy(event.key, dst, KEY_SIZE)
        events_push(&t.core.events, event)


cdef void packet_lose(ThreadContext* t, DropReason reason, const uint8_t* frame, size_t n,
                      const uint8_t* dst) noexcept nogil:
    """Count an outgoing packet as lost.

    A packet for another relay was counted as forwarded before the write (§6.4), so it has a
    separate counter: forwarded minus lost is the number that reached that relay.
    """
    if frame[0] == FRAME_FORWARD_PACKET:
        counter_add(&t.counters.packets_forwarded_lost, 1)
    else:
        packet_drop(t, reason, frame, n, frame + FRAME_HEADER if n >= PACKET_OVERHEAD else NULL,
                    dst)


cdef inline void answer_uncount(ThreadContext* t, const uint8_t* frame) noexcept nogil:
    """Take back the count of an answer that is discarded: it counted as sent when it was made."""
    if frame[0] == FRAME_PONG:
        counter_add(&t.counters.sent_pong, <uint64_t>-1)
    elif frame[0] == FRAME_PEER_GONE and frame[FRAME_HEADER + KEY_SIZE] == GONE_NOT_HERE:
        counter_add(&t.counters.peer_gone_not_here_frames, <uint64_t>-1)


cdef inline DropReason reason_behind(DropReason reason) noexcept nogil:
    """Return the reason for later packets; only the one being written has a write error (§6.6)."""
    return DROP_GONE_DISCONNECTED if reason == DROP_WRITE_ERROR else reason


cdef void batch_lose(ThreadContext* t, DropReason reason, const Batch* batch, size_t taken,
                     const uint8_t* dst) noexcept nogil:
    """Count the packets of a batch as dropped, except those within its first `taken` bytes."""
    cdef int i
    cdef const uint8_t* p
    cdef const uint8_t* end
    cdef size_t size
    for i in range(batch.n_iov):
        p = <const uint8_t*>batch.iov[i].iov_base
        end = p + batch.iov[i].iov_len
        while p < end:
            size = frame_size(p)
            if taken >= size:
                taken -= size
            else:
                taken = 0
                if frame_is_packet(p):
                    packet_lose(t, reason, p, size, dst)
                    reason = reason_behind(reason)
                else:
                    answer_uncount(t, p)
            p += size


cdef struct Dropper:             # for drop_displaced and drop_gone; on the caller's stack
    ThreadContext* context
    Session* session
    DropReason reason            # for the next packet in drop_gone


cdef inline uint64_t node_waited_ns(const ThreadContext* t, const Node* node) noexcept nogil:
    # A thread whose turn began later may have queued the node.
    return t.now_ns - node.queued_ns if t.now_ns > node.queued_ns else 0


cdef void drop_displaced(void* context, const Node* node) noexcept nogil:
    cdef Dropper* d = <Dropper*>context
    d.session.dropped += 1
    d.context.n_timed += 1
    d.context.waited_ns += node_waited_ns(d.context, node)
    packet_lose(d.context, DROP_QUEUE_HEAD, node.data, node.n, d.session.peer.key)


cdef void drop_gone(void* context, const Node* node) noexcept nogil:
    cdef Dropper* d = <Dropper*>context
    if node.lane >= LANE_DISCO:
        d.session.dropped += 1
        packet_lose(d.context, d.reason, node.data, node.n, d.session.peer.key)
        d.reason = reason_behind(d.reason)
    elif node.lane == LANE_CONTROL:
        answer_uncount(d.context, node.data)


cdef void queue_time_fold(ThreadContext* t) noexcept nogil:
    """Update the moving average of waiting times (§6.6) with the packets since the last call."""
    cdef double mean
    cdef double average = <double>atomic_peek_u64(&t.core.queue_ns)
    # Without waiting packets, no shared memory is written.
    if t.n_timed and (t.waited_ns or average > 0):
        mean = <double>t.waited_ns / <double>t.n_timed
        average = mean + (average - mean) * pow(QUEUE_TIME_KEPT, <double>t.n_timed)
        atomic_poke_u64(&t.core.queue_ns, <uint64_t>average)
    t.n_timed = t.waited_ns = 0


cdef inline void count_flush(ThreadContext* t, size_t n_frames) noexcept nogil:
    # n_frames were written together.
    counter_add(&t.counters.buffered_write_frames[buffered_write_frames_bucket(n_frames)], 1)
    counter_add(&t.counters.buffered_write_frames_sum, n_frames)


cdef void count_delay(ThreadContext* t, uint64_t n_packets, uint64_t waited_ns) noexcept nogil:
    """Count packets by the time from their read to their write."""
    counter_add(&t.counters.queue_delay_seconds[queue_delay_seconds_bucket(waited_ns)], n_packets)
    counter_add(&t.counters.queue_delay_seconds_sum, n_packets * waited_ns)


cdef inline void count_written(ThreadContext* t, Session* s, uint32_t n_packets,
                               size_t n_data) noexcept nogil:
    t.n_timed += n_packets
    s.tx_packets += n_packets
    s.tx_bytes += n_data
    if s.peer.role != ROLE_LINK:     # forwarded packets counted when they were tried (§6.4)
        counter_add(&t.counters.packets_sent, n_packets)
        counter_add(&t.counters.bytes_sent, n_data)
