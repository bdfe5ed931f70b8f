"""The engine's epoll loop: sends the packets that flows may send and checks those that arrive.

A flow is an ordered pair of connections. Each packet carries its flow, number and time, so its
arrival in this process is the only acknowledgement. The calling thread runs it without the GIL.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memcmp, memcpy
from posix.uio cimport iovec

from fastderp.tls.record cimport RECORD_OK, RecordStatus, record_open, record_seal
from fastderp.loadgen.histogram cimport histogram_clear, histogram_record
from fastderp.loadgen.payload cimport Mark, payload_body_is, payload_read, payload_write
from fastderp.loadgen.sys cimport (
    EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, MSG_DONTWAIT, MSG_NOSIGNAL, TFD_TIMER_ABSTIME,
    clock_ns, epoll_ctl, epoll_event, epoll_wait, flag_is_set, itimerspec, read, recv, sched_yield,
    send, timerfd_settime,
)


cdef bint bytes_set(Bytes* b, const uint8_t* data, size_t n) noexcept nogil:
    """Replace the contents. False when memory is out."""
    cdef void* grown
    if n > b.capacity:
        grown = realloc(b.data, n)
        if grown == NULL:
            return False
        b.data = <uint8_t*>grown
        b.capacity = n
    if n:
        memcpy(b.data, data, n)
    b.n = n
    return True


# The order of sending.

cdef void dirty_push(Load* load, Connection* c) noexcept nogil:
    if c.is_dirty:
        return
    c.is_dirty = True
    c.next_dirty = NULL
    if load.first_dirty == NULL:
        load.first_dirty = c
    else:
        load.last_dirty.next_dirty = c
    load.last_dirty = c


cdef Connection* dirty_pop(Load* load) noexcept nogil:
    cdef Connection* c = load.first_dirty
    load.first_dirty = c.next_dirty
    c.is_dirty = False
    return c


cdef void ready_push(Connection* c, Flow* flow) noexcept nogil:
    if flow.is_ready:
        return
    flow.is_ready = True
    flow.next_ready = NULL
    if c.first_ready == NULL:
        c.first_ready = flow
    else:
        c.last_ready.next_ready = flow
    c.last_ready = flow


cdef Flow* ready_pop(Connection* c) noexcept nogil:
    cdef Flow* flow = c.first_ready
    c.first_ready = flow.next_ready
    flow.is_ready = False
    return flow


cdef void flow_grant(Load* load, Flow* flow, uint64_t n_packets) noexcept nogil:
    """Let `flow` send n_packets more."""
    cdef Connection* c = &load.connections[flow.source]
    flow.credit += n_packets
    if c.is_dead or load.connections[flow.target].is_dead:
        return
    ready_push(c, flow)
    dirty_push(load, c)


cdef void flow_settle(Load* load, Flow* flow, uint64_t up_to) noexcept nogil:
    """Note that every packet below `up_to` has arrived or is lost, and open the window by them."""
    cdef uint64_t n = up_to - flow.expected
    flow.expected = up_to
    load.n_in_flight -= n
    if load.pace == PACE_WINDOW:
        flow_grant(load, flow, n)


# Connections.

cdef void connection_watch(Load* load, Connection* c, uint32_t events) noexcept nogil:
    cdef epoll_event event
    event.events = events & ~EPOLLIN if c.is_slow else events
    event.data.u32 = <uint32_t>(c - load.connections)
    epoll_ctl(load.epoll, EPOLL_CTL_MOD, c.fd, &event)


cdef void connection_die(Load* load, Connection* c) noexcept nogil:
    """Remove a broken connection from the load; packets in flight to or from it are lost."""
    cdef epoll_event unused
    cdef uint32_t i, index = <uint32_t>(c - load.connections)
    cdef Flow* flow
    if c.is_dead:
        return
    c.is_dead = True
    load.n_dead += 1
    epoll_ctl(load.epoll, EPOLL_CTL_DEL, c.fd, &unused)
    for i in range(load.n_flows):
        flow = &load.flows[i]
        if flow.source == index or flow.target == index:
            load.n_in_flight -= flow.next_sequence - flow.expected
            flow.expected = flow.next_sequence


cdef void connection_write(Load* load, Connection* c, const uint8_t* data, size_t n) noexcept nogil:
    """Write to the socket; keep the bytes that it does not take."""
    cdef ssize_t taken = send(c.fd, data, n, MSG_DONTWAIT | MSG_NOSIGNAL)
    if taken < 0:
        if errno != EAGAIN and errno != EINTR:
            connection_die(load, c)
            return
        taken = 0
    if <size_t>taken == n:
        return
    if not bytes_set(&c.output, data + taken, n - <size_t>taken):
        connection_die(load, c)
        return
    c.n_output_written = 0
    connection_watch(load, c, EPOLLIN | EPOLLOUT)


cdef void connection_writable(Load* load, Connection* c) noexcept nogil:
    """Write the bytes that the socket did not take before."""
    cdef ssize_t taken = send(c.fd, c.output.data + c.n_output_written,
                              c.output.n - c.n_output_written, MSG_DONTWAIT | MSG_NOSIGNAL)
    if taken < 0:
        if errno != EAGAIN and errno != EINTR:
            connection_die(load, c)
        return
    c.n_output_written += <size_t>taken
    if c.n_output_written < c.output.n:
        return
    c.output.n = 0
    connection_watch(load, c, EPOLLIN)
    if c.first_ready != NULL:
        dirty_push(load, c)


# Sending.

cdef uint64_t due_ns(Load* load, Flow* flow, uint64_t now_ns) noexcept nogil:
    """Return when the flow's next packet is due: by the schedule if there is one, else now."""
    if load.pace != PACE_SCHEDULE:
        return now_ns
    cdef uint64_t run = flow.next_sequence // load.in_a_row
    cdef uint64_t place = run * load.n_flows + <uint64_t>(flow - load.flows)
    return load.schedule_start_ns + <uint64_t>(place * load.in_a_row * load.gap_ns)


cdef size_t packet_write(Load* load, Flow* flow, uint64_t now_ns, uint8_t* frame) noexcept nogil:
    """Write the flow's next SendPacket into `frame`; return its size."""
    cdef Mark mark
    cdef uint32_t index = <uint32_t>(flow - load.flows)
    mark.sequence = flow.next_sequence
    mark.sent_ns = due_ns(load, flow, now_ns)
    mark.flow = index
    mark.size = load.sizes[(flow.next_sequence + index * 31) % N_SIZES]
    cdef uint32_t length = KEY_SIZE + mark.size
    frame[0] = SEND_PACKET
    frame[1] = <uint8_t>(length >> 24)
    frame[2] = <uint8_t>(length >> 16)
    frame[3] = <uint8_t>(length >> 8)
    frame[4] = <uint8_t>length
    memcpy(frame + FRAME_HEAD, load.connections[flow.target].key, KEY_SIZE)
    payload_write(frame + FRAME_HEAD + KEY_SIZE, &mark, load.seed, load.pattern)
    flow.next_sequence += 1
    load.n_in_flight += 1
    if load.phase == MEASURE:
        load.n_sent += 1
        load.n_sent_bytes += mark.size
    return FRAME_HEAD + length


cdef bint seal(Load* load, Connection* c, uint8_t* frames, size_t n, size_t* n_wire) noexcept nogil:
    """Append `frames` to the wire output in as few records as possible."""
    cdef iovec part
    cdef size_t produced = 0
    part.iov_base = frames
    part.iov_len = n
    cdef RecordStatus status = record_seal(
        &c.records, &load.keyring, &part, 1, load.wire_output + n_wire[0],
        2 * OUTPUT_MAX - n_wire[0], &produced)
    n_wire[0] += produced
    return status == RECORD_OK


cdef void connection_send(Load* load, Connection* c) noexcept nogil:
    """Send what the connection's flows may send, flow by flow, up to one batch."""
    cdef size_t n = 0, n_wire = 0, size
    cdef uint32_t row = 0
    cdef uint64_t now_ns = clock_ns()
    cdef Flow* flow
    cdef bint good = True
    if c.is_dead or c.output.n:         # EPOLLOUT continues with `output`
        return
    while c.first_ready != NULL and n < BATCH:
        flow = c.first_ready
        if load.connections[flow.target].is_dead:
            ready_pop(c)
            continue
        size = packet_write(load, flow, now_ns, load.output + n)
        if c.is_tls and not load.joined_records:
            good = good and seal(load, c, load.output + n, size, &n_wire)
        n += size
        if load.pace != PACE_FLOOD:
            flow.credit -= 1
        row += 1
        if row >= load.in_a_row or not flow.credit:
            row = 0
            ready_pop(c)
            if flow.credit:
                ready_push(c, flow)
    if n == 0:
        return
    if c.is_tls and load.joined_records:
        good = seal(load, c, load.output, n, &n_wire)
    if not good:
        connection_die(load, c)
    elif c.is_tls:
        connection_write(load, c, load.wire_output, n_wire)
    else:
        connection_write(load, c, load.output, n)
    if c.first_ready != NULL and c.output.n == 0 and not c.is_dead:
        dirty_push(load, c)


cdef void send_turn(Load* load) noexcept nogil:
    """Let every connection with packets to send write one batch."""
    cdef Connection* last = load.last_dirty
    cdef Connection* c
    if load.phase == DRAIN:
        return
    while load.first_dirty != NULL:
        c = dirty_pop(load)
        connection_send(load, c)
        if c == last:
            return


# Receiving.

cdef void packet_arrived(Load* load, uint32_t target, const uint8_t* source_key,
                         const uint8_t* payload, size_t size, uint64_t now_ns) noexcept nogil:
    """Check one packet against its flow and count it."""
    cdef Mark mark
    cdef Flow* flow
    if not payload_read(payload, size, &mark, load.seed) or mark.flow >= load.n_flows:
        load.n_corrupt += 1
        return
    flow = &load.flows[mark.flow]
    if (flow.target != target
            or memcmp(load.connections[flow.source].key, source_key, KEY_SIZE) != 0
            or (load.verify and not payload_body_is(payload, &mark, load.pattern))):
        load.n_corrupt += 1
        return
    if mark.sequence < flow.expected:
        load.n_unexpected += 1
        return
    if load.phase == MEASURE:
        load.n_delivered += 1
        load.n_delivered_bytes += size
        flow.n_delivered += 1
    if load.phase != WARM_UP and mark.sequence >= flow.measured_from:
        load.n_answered += 1
        if not load.connections[target].is_slow:
            # Rounding may make a scheduled time a nanosecond later than the clock.
            histogram_record(&load.latency, now_ns - mark.sent_ns if now_ns > mark.sent_ns else 0)
    flow_settle(load, flow, mark.sequence + 1)


cdef size_t frames_walk(Load* load, Connection* c, const uint8_t* data, size_t n) noexcept nogil:
    """Process every complete frame of `data`; return the number of bytes consumed."""
    cdef size_t at = 0, length
    cdef uint64_t now_ns = clock_ns()
    cdef const uint8_t* frame
    cdef uint32_t index = <uint32_t>(c - load.connections)
    while n - at >= FRAME_HEAD:
        frame = data + at
        length = ((<size_t>frame[1] << 24) | (<size_t>frame[2] << 16)
                  | (<size_t>frame[3] << 8) | frame[4])
        if length > KEY_SIZE + PAYLOAD_MAX:
            connection_die(load, c)        # a relay sends no longer frame after the login
            return n
        if n - at < FRAME_HEAD + length:
            break
        if frame[0] == RECV_PACKET:
            if length < KEY_SIZE:
                load.n_corrupt += 1
            else:
                packet_arrived(load, index, frame + FRAME_HEAD, frame + FRAME_HEAD + KEY_SIZE,
                               length - KEY_SIZE, now_ns)
        at += FRAME_HEAD + length
    return at


cdef ssize_t socket_read(Load* load, Connection* c, const Bytes* before,
                         uint8_t* into) noexcept nogil:
    """Put `before` and up to INPUT new bytes into `into` and return their sum.

    Returns 0 when no new bytes are there, -1 at the end of the stream or after an error.
    """
    cdef ssize_t got
    if before.n:
        memcpy(into, before.data, before.n)
    got = recv(c.fd, into + before.n, load.slow_read if c.is_slow else <size_t>INPUT, MSG_DONTWAIT)
    if got < 0 and (errno == EAGAIN or errno == EINTR):
        return 0
    return <ssize_t>before.n + got if got > 0 else -1


cdef bint frames_read(Load* load, Connection* c, size_t n) noexcept nogil:
    """Process the complete frames of `n` bytes of input and keep the rest. False without memory."""
    cdef size_t used = frames_walk(load, c, load.input, n)
    return c.is_dead or bytes_set(&c.input, load.input + used, n - used)


cdef bint plain_read(Load* load, Connection* c) noexcept nogil:
    """Read once. False when the connection has ended."""
    cdef ssize_t n = socket_read(load, c, &c.input, load.input)
    return n == 0 or (n > 0 and frames_read(load, c, <size_t>n))


cdef bint tls_read(Load* load, Connection* c) noexcept nogil:
    """Read once and open the complete records. False when the connection has ended."""
    cdef ssize_t n = socket_read(load, c, &c.wire_input, load.wire_input)
    cdef size_t consumed = 0, produced = 0
    cdef RecordStatus status
    if n <= 0:
        return n == 0
    if c.input.n:
        memcpy(load.input, c.input.data, c.input.n)
    status = record_open(&c.records, &load.keyring, load.wire_input, <size_t>n,
                         load.input + c.input.n, INPUT_MAX, &consumed, &produced)
    return (frames_read(load, c, c.input.n + produced)
            and bytes_set(&c.wire_input, load.wire_input + consumed, <size_t>n - consumed)
            and status == RECORD_OK)


cdef void connection_readable(Load* load, Connection* c) noexcept nogil:
    if not (tls_read(load, c) if c.is_tls else plain_read(load, c)):
        connection_die(load, c)


cdef void slow_read_turn(Load* load) noexcept nogil:
    """Let every slow reader read once; epoll does not report their input."""
    cdef uint32_t i
    for i in range(load.n_connections):
        if load.connections[i].is_slow and not load.connections[i].is_dead:
            connection_readable(load, &load.connections[i])


# Time.

cdef void schedule_grant(Load* load, uint64_t now_ns) noexcept nogil:
    """Release every packet that is due and set the timer for the next one."""
    cdef itimerspec wake
    cdef uint64_t next_ns
    while True:
        next_ns = load.schedule_start_ns + <uint64_t>(
            load.n_scheduled * load.in_a_row * load.gap_ns)
        if next_ns > now_ns:
            break
        flow_grant(load, &load.flows[load.n_scheduled % load.n_flows], load.in_a_row)
        load.n_scheduled += 1
    wake.it_interval.tv_sec = wake.it_interval.tv_nsec = 0
    wake.it_value.tv_sec = <long>(next_ns // 1000000000)
    wake.it_value.tv_nsec = <long>(next_ns % 1000000000)
    timerfd_settime(load.timer, TFD_TIMER_ABSTIME, &wake, NULL)


cdef void stalls_check(Load* load) noexcept nogil:
    """Count packets that a silent flow sent before the latest check as lost, to open its window."""
    cdef uint32_t i
    cdef Flow* flow
    for i in range(load.n_flows):
        flow = &load.flows[i]
        if flow.expected == flow.expected_at_check and flow.sent_at_check > flow.expected:
            flow_settle(load, flow, flow.sent_at_check)
        flow.expected_at_check = flow.expected
        flow.sent_at_check = flow.next_sequence


cdef void load_start(Load* load, uint64_t now_ns) noexcept nogil:
    """Open every window, or start the schedule."""
    cdef uint32_t i
    load.schedule_start_ns = now_ns
    for i in range(load.n_flows):
        if load.pace == PACE_WINDOW:
            flow_grant(load, &load.flows[i], load.window)
        elif load.pace == PACE_FLOOD:
            flow_grant(load, &load.flows[i], 1)


cdef void load_measure(Load* load) noexcept nogil:
    cdef uint32_t i
    histogram_clear(&load.latency)
    for i in range(load.n_flows):
        load.flows[i].measured_from = load.flows[i].next_sequence
        load.flows[i].n_delivered = 0
    load.n_sent = load.n_sent_bytes = 0
    load.n_delivered = load.n_delivered_bytes = load.n_answered = 0
    load.n_corrupt = load.n_unexpected = 0


cdef int wait_ms(Load* load, uint64_t now_ns, uint64_t until_ns) noexcept nogil:
    """Return the milliseconds that epoll may sleep; 0 when a connection has more to send."""
    if load.busy_wait or (load.first_dirty != NULL and load.phase != DRAIN):
        return 0
    cdef uint64_t left_ns = min(until_ns - now_ns, <uint64_t>IDLE_WAIT_MS * 1000000)
    if load.n_slow:
        left_ns = min(left_ns, <uint64_t>SLOW_TURN_NS)
    return <int>(left_ns // 1000000 + 1)


cdef void events_take(Load* load, int timeout_ms) noexcept nogil:
    """Wait for events and handle them."""
    cdef epoll_event events[N_EVENTS]
    cdef int i, n = epoll_wait(load.epoll, events, N_EVENTS, timeout_ms)
    cdef Connection* c
    cdef uint64_t expirations
    for i in range(n):
        if events[i].data.u32 == TIMER:
            read(load.timer, &expirations, sizeof(expirations))
            continue
        c = &load.connections[events[i].data.u32]
        if events[i].events & EPOLLOUT and not c.is_dead:
            connection_writable(load, c)
        if events[i].events & ~EPOLLOUT and not c.is_dead:  # also the error or end of a slow reader
            connection_readable(load, c)


cdef void load_run(Load* load, uint64_t until_ns) noexcept nogil:
    """Run until the time is over, the drain complete, every connection over, or `stopped` set."""
    cdef uint64_t now_ns = clock_ns()
    while now_ns < until_ns and not flag_is_set(&load.stopped):
        if load.n_dead == load.n_connections or (load.phase == DRAIN and load.n_in_flight == 0):
            return
        if load.pace == PACE_SCHEDULE and load.phase != DRAIN:
            schedule_grant(load, now_ns)
        send_turn(load)
        if load.busy_wait:
            sched_yield()
        events_take(load, wait_ms(load, now_ns, until_ns))
        now_ns = clock_ns()
        if load.n_slow and now_ns >= load.next_slow_ns:
            slow_read_turn(load)
            load.next_slow_ns = now_ns + SLOW_TURN_NS
        if load.pace == PACE_WINDOW and now_ns >= load.next_check_ns:
            stalls_check(load)
            load.next_check_ns = now_ns + STALL_NS
