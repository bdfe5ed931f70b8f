# Included by worker.pyx: the action for each frame of a session, and the destination of its
# packets. Only the worker's thread runs this.

# ---- walking frames

cdef size_t frames_walk(Worker* w, Session* s, uint8_t* start, size_t n) noexcept nogil:
    """Act on every complete frame of start[:n]; return the number of bytes consumed."""
    cdef uint8_t* p = start
    cdef uint8_t* end = start + n
    cdef size_t total = 0
    cdef size_t skip
    cdef bint noted = s.route is NULL    # noted once per walk is enough
    cdef FrameStatus status
    w.has_last = False
    w.n_touched = 0
    s.is_cut = False
    while True:
        if w.n_touched >= TOUCH_MAX:
            s.is_cut = True
            break
        if s.skip_bytes:
            skip = min(s.skip_bytes, <uint64_t>(end - p))
            s.skip_bytes -= skip
            p += skip
        if end - p < FRAME_HEADER:
            break
        status = frame_next(p, <size_t>(end - p), s.peer.role, &total)
        if not s.has_begun:
            if rate_applies(w, s) and not rate_allows(w, s, total - FRAME_HEADER):
                break
            s.has_begun = True
            if not noted:
                noted = True
                routes_note_sender(&w.context.core.routes, s.route, s.handle)
        if status == FRAME_PARTIAL:
            break
        s.has_begun = False
        if status == FRAME_READY:
            frame_act(w, s, p, total)
            p += total
        elif status == FRAME_SKIP:
            counter_add(&w.counters.unknown_frames, not frame_is_known(p[0]))
            s.skip_bytes = total
        else:
            # A ping counts before its size is checked (§5).
            counter_add(&w.counters.got_ping, p[0] == FRAME_PING)
            read_ended(w, s, CLOSE_BAD_SIZE if status == FRAME_BAD_SIZE else CLOSE_NOT_PERMITTED,
                       p[0])
            return n
    return <size_t>(p - start)


cdef void frame_act(Worker* w, Session* s, uint8_t* p, size_t total) noexcept nogil:
    if p[0] == FRAME_SEND_PACKET:
        packet_relay(w, s, p, total)
    elif p[0] == FRAME_FORWARD_PACKET:
        forward_receive(w, s, p, total)
    elif p[0] == FRAME_PING:
        ping_answer(w, s, p)
    elif p[0] == FRAME_NOTE_PREFERRED:
        preferred_note(w, s, p[FRAME_HEADER] != 0)
    else:
        frame_report(w, s, p, total)


cdef void packet_relay(Worker* w, Session* s, uint8_t* p, size_t total) noexcept nogil:
    """Rewrite a SendPacket into a RecvPacket in place and append it to its target (§6.4)."""
    cdef size_t n_data = total - PACKET_OVERHEAD
    cdef int kind = KIND_DISCO if frame_carries_disco(p, total) else KIND_OTHER
    counter_add(&s.rx_packets, 1)
    counter_add(&s.rx_bytes, n_data)
    counter_add(&w.counters.packets_received_kind[kind], 1)
    counter_add(&w.counters.bytes_received, n_data)
    if not w.has_last or memcmp(p + FRAME_HEADER, w.last_dst, KEY_SIZE) != 0:
        memcpy(w.last_dst, p + FRAME_HEADER, KEY_SIZE)
        w.last_target = destination_find(w, s.route, s.peer.key, s.handle, w.last_dst, False)
        w.has_last = True
    if w.last_target < 0:
        packet_drop(&w.context,
                    DROP_UNKNOWN_DEST if w.last_target == NO_TARGET else DROP_DUP_CLIENT, p, total,
                    s.peer.key, w.last_dst)
        if kind == KIND_DISCO and w.last_target == NO_TARGET:
            not_here_answer(w, s, p)
    elif w.last_is_link:
        packet_forward(w, s, p, n_data)
    else:
        s.is_contending = w.targets[w.last_target].is_contended
        p[0] = FRAME_RECV_PACKET
        memcpy(p + FRAME_HEADER, s.peer.key, KEY_SIZE)
        target_append(w, &w.last_target, p, total, 1, n_data)


cdef void packet_forward(Worker* w, Session* s, const uint8_t* p, size_t n_data) noexcept nogil:
    # A ForwardPacket to another relay is 32 bytes longer, so it is written to a separate buffer
    # (§7.6).
    cdef uint8_t* q = w.forward + w.n_forwarded
    frame_put_header(q, FRAME_FORWARD_PACKET, <uint32_t>(2 * KEY_SIZE + n_data))
    memcpy(q + FRAME_HEADER, s.peer.key, KEY_SIZE)
    memcpy(q + FRAME_HEADER + KEY_SIZE, p + FRAME_HEADER, KEY_SIZE + n_data)
    counter_add(&w.counters.packets_forwarded_out, 1)
    target_append(w, &w.last_target, q, FORWARD_OVERHEAD + n_data, 1, n_data)
    w.n_forwarded = <size_t>(q - w.forward) + FORWARD_OVERHEAD + n_data


cdef void forward_receive(Worker* w, Session* s, uint8_t* p, size_t total) noexcept nogil:
    """Rewrite a mesh peer's ForwardPacket into a RecvPacket that starts 32 bytes later (§7.4).

    It reaches local destinations only.
    """
    cdef uint8_t* q = p + KEY_SIZE
    cdef size_t n_data = total - FORWARD_OVERHEAD
    cdef size_t n_payload = KEY_SIZE + n_data
    cdef Route* source = routes_find(&w.context.core.routes, p + FRAME_HEADER)
    cdef int target
    counter_add(&w.counters.packets_forwarded_in, 1)
    memcpy(w.last_dst, q + FRAME_HEADER, KEY_SIZE)
    target = destination_find(w, source, p + FRAME_HEADER, 0, w.last_dst, True)
    # Only local destinations were searched: the next SendPacket must search again.
    w.has_last = False
    if target < 0:
        packet_drop(&w.context,
                    DROP_UNKNOWN_DEST_ON_FWD if target == NO_TARGET else DROP_DUP_CLIENT, p, total,
                    p + FRAME_HEADER, w.last_dst)
        if target == NO_TARGET and frame_carries_disco(p, total):
            not_here_answer(w, s, q)
        return
    memmove(q + FRAME_HEADER, p + FRAME_HEADER, KEY_SIZE)
    if is_zero_key(p + FRAME_HEADER):
        q += KEY_SIZE            # RecvPacket without a key (§6.6)
        n_payload = n_data
    frame_put_header(q, FRAME_RECV_PACKET, <uint32_t>n_payload)
    target_append(w, &target, q, FRAME_HEADER + n_payload, 1, n_data)


cdef inline bint is_zero_key(const uint8_t* key) noexcept nogil:
    cdef uint64_t words[4]
    memcpy(words, key, KEY_SIZE)
    return (words[0] | words[1] | words[2] | words[3]) == 0


cdef int destination_find(Worker* w, Route* source, const uint8_t* source_key, uint64_t sender,
                          const uint8_t* dst, bint only_local) noexcept nogil:
    """Return the target for a key, NO_TARGET or FIGHTING (§6.4).

    A local session is preferred to a mesh link. A local receiver becomes a gone watcher of the
    source. w.last_is_link keeps the target's kind, because the slot may hold another session by
    now.
    """
    cdef Route* route = routes_find(&w.context.core.routes, dst)
    cdef uint64_t receiver
    if route is NULL:
        return NO_TARGET
    receiver = atomic_load_u64(&route.active)
    if receiver == 0 and atomic_load_u8(&route.is_fighting):
        return FIGHTING
    w.last_is_link = receiver == 0
    if receiver == 0:
        receiver = 0 if only_local else atomic_load_u64(&route.forwarder)
        return target_get(w, receiver) if receiver != 0 else NO_TARGET
    if receiver != sender:
        seen_pair_note(w, source, source_key, receiver)
    return target_get(w, receiver)


cdef void seen_pair_note(Worker* w, Route* source, const uint8_t* source_key,
                         uint64_t receiver) noexcept nogil:
    # Mesh peers also forward packets of keys without a route: such a key has a stamp made from its
    # hash, valid until the next key joins the region.
    cdef RouteTable* routes = &w.context.core.routes
    cdef uint64_t stamp = (source.stamp if source is not NULL
                           else routes_unrouted_stamp(routes, source_key))
    cdef SeenPair* pair = &w.seen[
        ((stamp * 0x9E3779B97F4A7C15u) ^ (receiver * 0xC2B2AE3D27D4EB4Fu)) >> 52]
    if pair.stamp == stamp and pair.receiver == receiver:
        return
    if source is not NULL:
        routes_add_gone_watcher(routes, source, receiver)
    else:
        routes_note_unrouted(routes, source_key, receiver)
    if w.context.core.counts_senders:
        session_note_sender(w.context.core, receiver, routes_hash(routes, source_key))
    pair.stamp = stamp
    pair.receiver = receiver


cdef void not_here_answer(Worker* w, Session* s, uint8_t* p) noexcept nogil:
    """Write PeerGone(NotHere) for w.last_dst over the packet it answers.

    A session gets up to 3 at once, then 1 per second.
    """
    cdef uint64_t gained = (w.context.now_ns - s.not_here_ns) // SECOND_NS
    cdef int target
    if gained:
        s.not_here_tokens = <uint8_t>min(<uint64_t>NOT_HERE_BURST, s.not_here_tokens + gained)
        s.not_here_ns += gained * SECOND_NS
    if s.not_here_tokens == 0:
        return
    if s.not_here_tokens == NOT_HERE_BURST:
        s.not_here_ns = w.context.now_ns    # a full bucket gains nothing
    s.not_here_tokens -= 1
    frame_put_header(p, FRAME_PEER_GONE, KEY_SIZE + 1)
    memcpy(p + FRAME_HEADER, w.last_dst, KEY_SIZE)
    p[FRAME_HEADER + KEY_SIZE] = GONE_NOT_HERE
    counter_add(&w.counters.peer_gone_not_here_frames, 1)
    target = target_get(w, s.handle)
    target_append(w, &target, p, PEER_GONE_SIZE, 0, 0)


cdef void ping_answer(Worker* w, Session* s, uint8_t* p) noexcept nogil:
    # The pong repeats the first 8 bytes of the ping. Later pings get no answer until it is written
    # (§5): here until the flush, then while it waits in the backlog.
    cdef int target = target_get(w, s.handle)
    counter_add(&w.counters.got_ping, 1)
    if w.targets[target].has_pong:
        return
    counter_add(&w.counters.sent_pong, 1)
    frame_put_header(p, FRAME_PONG, PING_DATA)
    target_append(w, &target, p, FRAME_HEADER + PING_DATA, 0, 0)
    w.targets[target].has_pong = True


cdef void preferred_note(Worker* w, Session* s, bint preferred) noexcept nogil:
    cdef bint settled = w.context.now_ns - s.opened_ns > w.context.core.home_settled_ns
    if s.preferred == preferred:
        return
    atomic_store_u8(&s.preferred, preferred)
    counter_add(&w.counters.current_home_connections, 1 if preferred else <uint64_t>-1)
    if settled:
        counter_add(&w.counters.home_moves_in if preferred else &w.counters.home_moves_out, 1)


cdef void frame_report(Worker* w, Session* s, const uint8_t* p, size_t total) noexcept nogil:
    # A peer that outruns the control plane is closed: a gap would corrupt our view of its
    # announcements.
    cdef Event* event = event_new(&w.context.core.events, EVENT_FRAME, s.handle, p, <uint32_t>total)
    if event is not NULL:
        events_push(&w.context.core.events, event)
    else:
        session_fail(&w.context, s, s.handle, CLOSE_CONTROL_OVERFLOW, 0)
