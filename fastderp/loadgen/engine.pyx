"""The native load engine: one epoll loop over connections that have logged in already.

A flow is an ordered pair of connections; each packet carries its flow, number and time, so the
arrival, in this same process, is all the acknowledgement there is. `Engine.run` holds the calling
thread with the GIL released; nothing else touches the engine's state meanwhile but `stop`.
"""

import os
import random

from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy
from posix.uio cimport iovec

from fastderp.dataplane.record cimport (
    RECORD_OK, RECORD_WIRE_MAX, RecordLayer, RecordStatus, Records, record_contexts_release,
    record_open, record_seal, record_wipe)
from fastderp.loadgen.histogram cimport (
    Histogram, histogram_clear, histogram_percentile, histogram_record)
from fastderp.loadgen.payload cimport (
    MARK_SIZE, PATTERN_SIZE, PAYLOAD_MAX, Mark, payload_body_is, payload_read, payload_write)
from fastderp.loadgen.sys cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, MSG_DONTWAIT,
    MSG_NOSIGNAL, TFD_CLOEXEC, TFD_NONBLOCK, TFD_TIMER_ABSTIME, clock_getcpuclockid,
    clock_gettime, clock_ns, clockid_t, close, epoll_create1, epoll_ctl, epoll_event, epoll_wait,
    flag_is_set, flag_set, itimerspec, read, recv, send, timerfd_create, timerfd_settime, timespec, CLOCK_MONOTONIC)

cdef enum:
    FRAME_HEAD = 5
    KEY_SIZE = 32
    FRAME_MAX = FRAME_HEAD + KEY_SIZE + PAYLOAD_MAX
    SEND_PACKET = 0x04
    RECV_PACKET = 0x05
    BATCH = 65536                   # a connection writes about this much per turn, then the next one may
    INPUT = 262144                  # one read; more would not fit the caches
    INPUT_MAX = INPUT + RECORD_WIRE_MAX
    OUTPUT_MAX = BATCH + FRAME_MAX
    N_SIZES = 4096                  # length of the drawn sequence of packet sizes
    N_EVENTS = 256
    TIMER = 0xFFFFFFFF              # epoll's name for the timer; connections are named by their index

cdef enum:
    IDLE_WAIT_MS = 100              # how late a `stop` may be noticed
    STALL_NS = 500000000            # a flow without any arrival for so long has lost what it sent

cdef enum Load:
    LOAD_WINDOW                     # an arrival releases the next packet
    LOAD_RATE                       # packets leave by schedule
    LOAD_FLOOD                      # senders never wait

cdef enum Phase:
    WARM_UP
    MEASURE
    DRAIN                           # nothing new is sent; ends when nothing is under way


cdef struct Flow:
    uint32_t source                 # connection indexes
    uint32_t target
    uint64_t credit                 # packets it may send now
    uint64_t next_sequence
    uint64_t expected               # every number below has arrived or was given up
    uint64_t expected_at_check      # the same, and what had been sent, at the last stall check
    uint64_t sent_at_check
    uint64_t measured_from          # first number of the measurement
    uint64_t n_delivered            # arrivals during the measurement
    Flow* next_ready                # valid while is_ready
    bint is_ready

cdef struct Bytes:                  # grows, never shrinks
    uint8_t* data
    size_t n
    size_t capacity

cdef struct Connection:
    int fd
    uint8_t key[KEY_SIZE]
    Flow* first_ready               # flows with credit, in the order they may send
    Flow* last_ready
    Connection* next_dirty          # valid while is_dirty
    Records records                 # only with is_tls
    Bytes input                     # an incomplete frame
    Bytes wire_input                # with is_tls: an incomplete record
    Bytes output                    # what the socket did not take; not empty = EPOLLOUT is asked for
    size_t n_output_written
    bint is_tls
    bint is_dirty                   # has flows to send and is in the engine's list
    bint is_dead

cdef struct State:
    int epoll
    int timer
    Load load
    Phase phase
    bint verify
    bint joined_records
    int stopped                     # set by any thread, through flag_set
    Connection* connections
    uint32_t n_connections
    Flow* flows
    uint32_t n_flows
    Connection* first_dirty
    Connection* last_dirty
    uint64_t window
    double gap_ns                   # between two packets of the schedule
    uint64_t schedule_start_ns
    uint64_t n_scheduled
    uint64_t n_under_way
    uint64_t next_check_ns
    uint64_t seed
    uint8_t* pattern
    uint32_t* sizes                 # N_SIZES of them
    # Work space: what was left over, then what was read; and the packets of one write.
    uint8_t* input                  # FRAME_MAX + INPUT_MAX bytes of frames
    uint8_t* wire_input             # INPUT_MAX bytes of records
    uint8_t* output                 # OUTPUT_MAX bytes of frames
    uint8_t* wire_output            # twice as many: even records of the smallest frames fit
    # The measurement.
    uint64_t n_sent
    uint64_t n_sent_bytes
    uint64_t n_delivered            # arrived while measuring, whenever sent
    uint64_t n_delivered_bytes
    uint64_t n_answered             # of those sent while measuring, arrived by the end of the drain
    uint64_t n_corrupt
    uint64_t n_unexpected           # arrived again, out of order, or after having been given up
    uint64_t n_dead
    uint64_t measure_ns
    Histogram latency


# Bytes left over between turns.

cdef bint bytes_set(Bytes* b, const uint8_t* data, size_t n) noexcept nogil:
    """Replace the contents; False when there is no memory."""
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


# Which flow sends next.

cdef void dirty_push(State* s, Connection* c) noexcept nogil:
    if c.is_dirty:
        return
    c.is_dirty = True
    c.next_dirty = NULL
    if s.first_dirty == NULL:
        s.first_dirty = c
    else:
        s.last_dirty.next_dirty = c
    s.last_dirty = c


cdef Connection* dirty_pop(State* s) noexcept nogil:
    cdef Connection* c = s.first_dirty
    s.first_dirty = c.next_dirty
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


cdef void flow_grant(State* s, Flow* flow, uint64_t n_packets) noexcept nogil:
    """Let `flow` send so many more."""
    cdef Connection* c = &s.connections[flow.source]
    flow.credit += n_packets
    if c.is_dead or s.connections[flow.target].is_dead:
        return
    ready_push(c, flow)
    dirty_push(s, c)


cdef void flow_settle(State* s, Flow* flow, uint64_t up_to) noexcept nogil:
    """Every packet below number `up_to` has arrived or is lost; a window opens by as many."""
    cdef uint64_t n = up_to - flow.expected
    flow.expected = up_to
    s.n_under_way -= n
    if s.load == LOAD_WINDOW:
        flow_grant(s, flow, n)


# Connections.

cdef void connection_watch(State* s, Connection* c, uint32_t events) noexcept nogil:
    cdef epoll_event event
    event.events = events
    event.data.u32 = <uint32_t>(c - s.connections)
    epoll_ctl(s.epoll, EPOLL_CTL_MOD, c.fd, &event)


cdef void connection_die(State* s, Connection* c) noexcept nogil:
    """Take a broken connection out of the load; what is under way to or from it is lost."""
    cdef epoll_event unused
    cdef uint32_t i, index = <uint32_t>(c - s.connections)
    cdef Flow* flow
    if c.is_dead:
        return
    c.is_dead = True
    s.n_dead += 1
    epoll_ctl(s.epoll, EPOLL_CTL_DEL, c.fd, &unused)
    for i in range(s.n_flows):
        flow = &s.flows[i]
        if flow.source == index or flow.target == index:
            s.n_under_way -= flow.next_sequence - flow.expected
            flow.expected = flow.next_sequence


cdef void connection_write(State* s, Connection* c, const uint8_t* data, size_t n) noexcept nogil:
    """Write, and keep what the socket does not take."""
    cdef ssize_t taken = send(c.fd, data, n, MSG_DONTWAIT | MSG_NOSIGNAL)
    if taken < 0:
        if errno != EAGAIN and errno != EINTR:
            connection_die(s, c)
            return
        taken = 0
    if <size_t>taken == n:
        return
    if not bytes_set(&c.output, data + taken, n - <size_t>taken):
        connection_die(s, c)
        return
    c.n_output_written = 0
    connection_watch(s, c, EPOLLIN | EPOLLOUT)


cdef void connection_writable(State* s, Connection* c) noexcept nogil:
    """Go on with what the socket did not take before."""
    cdef ssize_t taken = send(c.fd, c.output.data + c.n_output_written, c.output.n - c.n_output_written,
                              MSG_DONTWAIT | MSG_NOSIGNAL)
    if taken < 0:
        if errno != EAGAIN and errno != EINTR:
            connection_die(s, c)
        return
    c.n_output_written += <size_t>taken
    if c.n_output_written < c.output.n:
        return
    c.output.n = 0
    connection_watch(s, c, EPOLLIN)
    if c.first_ready != NULL:
        dirty_push(s, c)


# Sending.

cdef uint64_t due_ns(State* s, Flow* flow, uint64_t now_ns) noexcept nogil:
    """When the flow's next packet should leave: by schedule if there is one, else now."""
    if s.load != LOAD_RATE:
        return now_ns
    cdef uint64_t place = flow.next_sequence * s.n_flows + <uint64_t>(flow - s.flows)
    return s.schedule_start_ns + <uint64_t>(place * s.gap_ns)


cdef size_t packet_write(State* s, Flow* flow, uint64_t now_ns, uint8_t* frame) noexcept nogil:
    """Write the flow's next SendPacket into `frame`; return its size."""
    cdef Mark mark
    cdef uint32_t index = <uint32_t>(flow - s.flows)
    mark.sequence = flow.next_sequence
    mark.sent_ns = due_ns(s, flow, now_ns)
    mark.flow = index
    mark.size = s.sizes[(flow.next_sequence + index * 31) % N_SIZES]
    cdef uint32_t length = KEY_SIZE + mark.size
    frame[0] = SEND_PACKET
    frame[1] = <uint8_t>(length >> 24)
    frame[2] = <uint8_t>(length >> 16)
    frame[3] = <uint8_t>(length >> 8)
    frame[4] = <uint8_t>length
    memcpy(frame + FRAME_HEAD, s.connections[flow.target].key, KEY_SIZE)
    payload_write(frame + FRAME_HEAD + KEY_SIZE, &mark, s.seed, s.pattern)
    flow.next_sequence += 1
    s.n_under_way += 1
    if s.phase == MEASURE:
        s.n_sent += 1
        s.n_sent_bytes += mark.size
    return FRAME_HEAD + length


cdef bint seal(State* s, Connection* c, uint8_t* frames, size_t n, size_t* n_wire) noexcept nogil:
    """Append `frames` to the wire output as one record, or as few as their size allows."""
    cdef iovec part
    cdef size_t produced = 0
    part.iov_base = frames
    part.iov_len = n
    cdef RecordStatus status = record_seal(
        &c.records, &part, 1, s.wire_output + n_wire[0], 2 * OUTPUT_MAX - n_wire[0], &produced)
    n_wire[0] += produced
    return status == RECORD_OK


cdef void connection_send(State* s, Connection* c) noexcept nogil:
    """Send what the connection's flows may send, in turns, up to one batch."""
    cdef size_t n = 0, n_wire = 0, size
    cdef uint64_t now_ns = clock_ns()
    cdef Flow* flow
    cdef bint good = True
    if c.is_dead or c.output.n:         # EPOLLOUT comes back to it
        return
    while c.first_ready != NULL and n < BATCH:
        flow = ready_pop(c)
        if s.connections[flow.target].is_dead:
            continue
        size = packet_write(s, flow, now_ns, s.output + n)
        if c.is_tls and not s.joined_records:
            good = good and seal(s, c, s.output + n, size, &n_wire)
        n += size
        if s.load != LOAD_FLOOD:
            flow.credit -= 1
        if flow.credit:
            ready_push(c, flow)
    if n == 0:
        return
    if c.is_tls and s.joined_records:
        good = seal(s, c, s.output, n, &n_wire)
    if not good:
        connection_die(s, c)
    elif c.is_tls:
        connection_write(s, c, s.wire_output, n_wire)
    else:
        connection_write(s, c, s.output, n)
    if c.first_ready != NULL and c.output.n == 0 and not c.is_dead:
        dirty_push(s, c)


cdef void send_turn(State* s) noexcept nogil:
    """Give every connection that has something to send one turn."""
    cdef Connection* last = s.last_dirty
    cdef Connection* c
    if s.phase == DRAIN:
        return
    while s.first_dirty != NULL:
        c = dirty_pop(s)
        connection_send(s, c)
        if c == last:
            return


# Receiving.

cdef void packet_arrived(State* s, uint32_t target, const uint8_t* source_key, const uint8_t* payload,
                         size_t size, uint64_t now_ns) noexcept nogil:
    """Check one packet against its flow and count it."""
    cdef Mark mark
    cdef Flow* flow
    if not payload_read(payload, size, &mark, s.seed) or mark.flow >= s.n_flows:
        s.n_corrupt += 1
        return
    flow = &s.flows[mark.flow]
    if (flow.target != target or memcmp(s.connections[flow.source].key, source_key, KEY_SIZE) != 0
            or (s.verify and not payload_body_is(payload, &mark, s.pattern))):
        s.n_corrupt += 1
        return
    if mark.sequence < flow.expected:
        s.n_unexpected += 1
        return
    if s.phase == MEASURE:
        s.n_delivered += 1
        s.n_delivered_bytes += size
        flow.n_delivered += 1
    if s.phase != WARM_UP and mark.sequence >= flow.measured_from:
        s.n_answered += 1
        # A schedule may run ahead of the clock by a rounding of its nanoseconds.
        histogram_record(&s.latency, now_ns - mark.sent_ns if now_ns > mark.sent_ns else 0)
    flow_settle(s, flow, mark.sequence + 1)


cdef size_t frames_walk(State* s, Connection* c, const uint8_t* data, size_t n) noexcept nogil:
    """Take every complete frame of `data`; return how many bytes that was."""
    cdef size_t at = 0, length
    cdef uint64_t now_ns = clock_ns()
    cdef const uint8_t* frame
    cdef uint32_t index = <uint32_t>(c - s.connections)
    while n - at >= FRAME_HEAD:
        frame = data + at
        length = (<size_t>frame[1] << 24) | (<size_t>frame[2] << 16) | (<size_t>frame[3] << 8) | frame[4]
        if length > KEY_SIZE + PAYLOAD_MAX:
            connection_die(s, c)        # nothing a relay sends after the login is that long
            return n
        if n - at < FRAME_HEAD + length:
            break
        if frame[0] == RECV_PACKET:
            if length < KEY_SIZE:
                s.n_corrupt += 1
            else:
                packet_arrived(s, index, frame + FRAME_HEAD, frame + FRAME_HEAD + KEY_SIZE,
                               length - KEY_SIZE, now_ns)
        at += FRAME_HEAD + length
    return at


cdef ssize_t socket_read(Connection* c, const Bytes* before, uint8_t* into) noexcept nogil:
    """Put `before` and up to INPUT fresh bytes into `into`; return the sum, 0 for nothing yet, -1 at the end."""
    cdef ssize_t got
    if before.n:
        memcpy(into, before.data, before.n)
    got = recv(c.fd, into + before.n, INPUT, MSG_DONTWAIT)
    if got < 0 and (errno == EAGAIN or errno == EINTR):
        return 0
    return <ssize_t>before.n + got if got > 0 else -1


cdef bint frames_read(State* s, Connection* c, size_t n) noexcept nogil:
    """Take the complete frames among `n` bytes of input and keep the rest; False without memory."""
    cdef size_t used = frames_walk(s, c, s.input, n)
    return c.is_dead or bytes_set(&c.input, s.input + used, n - used)


cdef bint plain_read(State* s, Connection* c) noexcept nogil:
    """Read once; False when the connection is over."""
    cdef ssize_t n = socket_read(c, &c.input, s.input)
    return n == 0 or (n > 0 and frames_read(s, c, <size_t>n))


cdef bint tls_read(State* s, Connection* c) noexcept nogil:
    """Read once and open the complete records; False when the connection is over."""
    cdef ssize_t n = socket_read(c, &c.wire_input, s.wire_input)
    cdef size_t consumed = 0, produced = 0
    cdef RecordStatus status
    if n <= 0:
        return n == 0
    if c.input.n:
        memcpy(s.input, c.input.data, c.input.n)
    status = record_open(&c.records, s.wire_input, <size_t>n, s.input + c.input.n, INPUT_MAX,
                         &consumed, &produced)
    return (frames_read(s, c, c.input.n + produced)
            and bytes_set(&c.wire_input, s.wire_input + consumed, <size_t>n - consumed)
            and status == RECORD_OK)


cdef void connection_readable(State* s, Connection* c) noexcept nogil:
    if not (tls_read(s, c) if c.is_tls else plain_read(s, c)):
        connection_die(s, c)


# Time.

cdef void schedule_grant(State* s, uint64_t now_ns) noexcept nogil:
    """Let go of every packet whose time has come, and set the timer for the next one."""
    cdef itimerspec wake
    cdef uint64_t next_ns
    while True:
        next_ns = s.schedule_start_ns + <uint64_t>(s.n_scheduled * s.gap_ns)
        if next_ns > now_ns:
            break
        flow_grant(s, &s.flows[s.n_scheduled % s.n_flows], 1)
        s.n_scheduled += 1
    wake.it_interval.tv_sec = wake.it_interval.tv_nsec = 0
    wake.it_value.tv_sec = <long>(next_ns // 1000000000)
    wake.it_value.tv_nsec = <long>(next_ns % 1000000000)
    timerfd_settime(s.timer, TFD_TIMER_ABSTIME, &wake, NULL)


cdef void stalls_check(State* s) noexcept nogil:
    """Give up what a silent flow had sent before the last check: otherwise its window stays shut."""
    cdef uint32_t i
    cdef Flow* flow
    for i in range(s.n_flows):
        flow = &s.flows[i]
        if flow.expected == flow.expected_at_check and flow.sent_at_check > flow.expected:
            flow_settle(s, flow, flow.sent_at_check)
        flow.expected_at_check = flow.expected
        flow.sent_at_check = flow.next_sequence


cdef void load_start(State* s, uint64_t now_ns) noexcept nogil:
    """Open every window, or start the schedule."""
    cdef uint32_t i
    s.schedule_start_ns = now_ns
    for i in range(s.n_flows):
        if s.load == LOAD_WINDOW:
            flow_grant(s, &s.flows[i], s.window)
        elif s.load == LOAD_FLOOD:
            flow_grant(s, &s.flows[i], 1)


cdef void measure_start(State* s) noexcept nogil:
    cdef uint32_t i
    histogram_clear(&s.latency)
    for i in range(s.n_flows):
        s.flows[i].measured_from = s.flows[i].next_sequence
        s.flows[i].n_delivered = 0
    s.n_sent = s.n_sent_bytes = s.n_delivered = s.n_delivered_bytes = s.n_answered = 0
    s.n_corrupt = s.n_unexpected = 0


cdef int wait_ms(State* s, uint64_t now_ns, uint64_t until_ns) noexcept nogil:
    """How long epoll may sleep: not at all when a connection has more to send."""
    if s.first_dirty != NULL and s.phase != DRAIN:
        return 0
    cdef uint64_t left_ms = (until_ns - now_ns) // 1000000 + 1
    return <int>min(left_ms, <uint64_t>IDLE_WAIT_MS)


cdef void events_take(State* s, int timeout_ms) noexcept nogil:
    """Wait for what the kernel has and serve it."""
    cdef epoll_event events[N_EVENTS]
    cdef int i, n = epoll_wait(s.epoll, events, N_EVENTS, timeout_ms)
    cdef Connection* c
    cdef uint64_t expirations
    for i in range(n):
        if events[i].data.u32 == TIMER:
            read(s.timer, &expirations, sizeof(expirations))
            continue
        c = &s.connections[events[i].data.u32]
        if events[i].events & EPOLLOUT and not c.is_dead:
            connection_writable(s, c)
        if events[i].events & ~EPOLLOUT and not c.is_dead:
            connection_readable(s, c)


cdef void state_run(State* s, uint64_t until_ns) noexcept nogil:
    """Turn until the time is over, the drain is complete, nobody is left, or somebody says stop."""
    cdef uint64_t now_ns = clock_ns()
    while now_ns < until_ns and not flag_is_set(&s.stopped):
        if s.n_dead == s.n_connections or (s.phase == DRAIN and s.n_under_way == 0):
            return
        if s.load == LOAD_RATE and s.phase != DRAIN:
            schedule_grant(s, now_ns)
        send_turn(s)
        events_take(s, wait_ms(s, now_ns, until_ns))
        now_ns = clock_ns()
        if s.load == LOAD_WINDOW and now_ns >= s.next_check_ns:
            stalls_check(s)
            s.next_check_ns = now_ns + STALL_NS


def process_cpu_ns(int pid):
    """Return the CPU time, in nanoseconds, that process `pid` has used so far, all its threads together.

    Raises ProcessLookupError when there is no such process.
    """
    cdef clockid_t clock
    cdef timespec used
    if clock_getcpuclockid(pid, &clock) != 0 or clock_gettime(clock, &used) != 0:
        raise ProcessLookupError(f"no process {pid}")
    return <long long>used.tv_sec * 1000000000 + used.tv_nsec


cdef class Engine:
    """A load over logged-in connections; see the stub for the arguments."""

    cdef State state
    cdef bint started
    cdef object pattern                 # keeps the memory that state.pattern points to

    def __cinit__(self, connections, flows, *, sizes, uint64_t window=0, double rate=0.0,
                  bint joined_records=False, bint verify=False, int seed=0):
        cdef State* s = &self.state
        s.epoll = s.timer = -1
        if window and rate:
            raise ValueError("a load has a window or a rate, not both")
        s.load = LOAD_WINDOW if window else LOAD_RATE if rate else LOAD_FLOOD
        s.window = window
        s.verify = verify
        s.joined_records = joined_records
        if rate:
            s.gap_ns = 1e9 / rate
        self.draw(sizes, random.Random(seed))
        s.epoll = epoll_create1(EPOLL_CLOEXEC)
        s.timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if s.epoll < 0 or s.timer < 0:
            raise OSError(errno, os.strerror(errno))
        self.take(list(connections))
        self.lay(list(flows))
        self.watch()

    cdef void* memory(self, size_t n, size_t size) except NULL:
        cdef void* fresh = calloc(n or 1, size)
        if fresh == NULL:
            raise MemoryError()
        return fresh

    cdef draw(self, sizes, rng):
        """Everything that chance decides: the run's mark, the bodies and the sizes."""
        cdef State* s = &self.state
        for size, weight in sizes:
            if not MARK_SIZE <= size <= PAYLOAD_MAX:
                raise ValueError(f"packet size {size} is not between {MARK_SIZE} and {PAYLOAD_MAX} bytes")
            if weight <= 0:
                raise ValueError(f"the weight of size {size} must be positive, not {weight}")
        s.seed = rng.getrandbits(64)
        self.pattern = rng.randbytes(PATTERN_SIZE)
        s.pattern = <uint8_t*>PyBytes_AS_STRING(self.pattern)
        s.sizes = <uint32_t*>self.memory(N_SIZES, sizeof(uint32_t))
        s.input = <uint8_t*>self.memory(FRAME_MAX + INPUT_MAX, 1)
        s.wire_input = <uint8_t*>self.memory(INPUT_MAX, 1)
        s.output = <uint8_t*>self.memory(OUTPUT_MAX, 1)
        s.wire_output = <uint8_t*>self.memory(2 * OUTPUT_MAX, 1)
        drawn = rng.choices([size for size, _ in sizes], [weight for _, weight in sizes], k=N_SIZES)
        for i, size in enumerate(drawn):
            s.sizes[i] = size

    cdef take(self, list connections):
        """Take the connections' sockets and keys over."""
        cdef State* s = &self.state
        cdef Connection* c
        s.connections = <Connection*>self.memory(len(connections), sizeof(Connection))
        for joined in connections:
            if len(joined.key) != KEY_SIZE:
                raise ValueError(f"a key has 32 bytes, not {len(joined.key)}")
            c = &s.connections[s.n_connections]
            memcpy(c.key, PyBytes_AS_STRING(joined.key), KEY_SIZE)
            self.take_unread(&c.input, joined.unread, FRAME_MAX)
            if joined.records is not None:
                self.take_unread(&c.wire_input, joined.records.pending, RECORD_WIRE_MAX)
                (<RecordLayer?>joined.records).take(&c.records)
                # Expanded again when used: a crowd of idle clients holds bare keys.
                record_contexts_release(&c.records, True, True)
                c.is_tls = True
            c.fd = joined.detach()
            s.n_connections += 1

    cdef take_unread(self, Bytes* into, bytes unread, size_t limit):
        """Begin with bytes that were read during the login: less than a whole frame or record."""
        if <size_t>len(unread) >= limit:
            raise ValueError("more was read behind the login than a load can begin with")
        if not bytes_set(into, <const uint8_t*>PyBytes_AS_STRING(unread), len(unread)):
            raise MemoryError()

    cdef lay(self, list flows):
        cdef State* s = &self.state
        s.flows = <Flow*>self.memory(len(flows), sizeof(Flow))
        for source, target in flows:
            if not (0 <= source < s.n_connections and 0 <= target < s.n_connections):
                raise ValueError(f"flow {source} -> {target} names a connection that does not exist")
            s.flows[s.n_flows].source = source
            s.flows[s.n_flows].target = target
            s.n_flows += 1
        if not s.n_flows:
            s.load = LOAD_WINDOW            # a schedule needs somebody to send

    cdef watch(self):
        cdef State* s = &self.state
        cdef epoll_event event
        cdef uint32_t i
        event.events = EPOLLIN
        event.data.u32 = TIMER
        epoll_ctl(s.epoll, EPOLL_CTL_ADD, s.timer, &event)
        for i in range(s.n_connections):
            event.data.u32 = i
            if epoll_ctl(s.epoll, EPOLL_CTL_ADD, s.connections[i].fd, &event) < 0:
                raise OSError(errno, os.strerror(errno))

    cdef run(self, Phase phase, double seconds):
        cdef State* s = &self.state
        cdef uint64_t start_ns = clock_ns()
        cdef uint64_t until_ns = start_ns + <uint64_t>(seconds * 1e9)
        if s.epoll < 0:
            raise ValueError("the engine is closed")
        s.phase = phase
        with nogil:
            if not self.started:
                self.started = True
                load_start(s, start_ns)
            if phase == MEASURE:
                measure_start(s)
            state_run(s, until_ns)
        if phase == MEASURE:
            s.measure_ns = max(<uint64_t>1, clock_ns() - start_ns)

    def warm_up(self, double seconds):
        """Run the load without measuring."""
        self.run(WARM_UP, seconds)

    def measure(self, double seconds):
        """Run the load and measure; forgets any earlier measurement."""
        self.run(MEASURE, seconds)

    def drain(self, double limit_s):
        """Send nothing more and wait, at most `limit_s` seconds, for what is under way."""
        self.run(DRAIN, limit_s)

    def stop(self):
        """End the running and every later phase within 0.1 s; may be called from any thread."""
        flag_set(&self.state.stopped)

    def close(self):
        """Close every connection."""
        cdef State* s = &self.state
        cdef uint32_t i
        if s.epoll < 0:
            return
        for i in range(s.n_connections):
            close(s.connections[i].fd)
            s.connections[i].is_dead = True
        close(s.epoll)
        close(s.timer)
        s.epoll = s.timer = -1

    def percentile_ns(self, double percent):
        """Return the latency in nanoseconds that `percent` of the measured packets did not exceed."""
        return histogram_percentile(&self.state.latency, percent)

    @property
    def progress(self):
        """(packets delivered so far in this measurement, connections lost); readable while a phase runs."""
        return self.state.n_delivered, self.state.n_dead

    def totals(self):
        """Return the measurement's counters; see the stub for their names."""
        cdef State* s = &self.state
        return {
            "seconds": s.measure_ns / 1e9,
            "sent": s.n_sent,
            "sent_bytes": s.n_sent_bytes,
            "delivered": s.n_delivered,
            "delivered_bytes": s.n_delivered_bytes,
            "lost": s.n_sent - s.n_answered,
            "corrupt": s.n_corrupt,
            "unexpected": s.n_unexpected,
            "connections_lost": s.n_dead,
            "latency_max_ns": s.latency.maximum,
        }

    def delivered_by_flow(self):
        """Return the packets delivered during the measurement, one number per flow."""
        return [self.state.flows[i].n_delivered for i in range(self.state.n_flows)]

    def __dealloc__(self):
        cdef State* s = &self.state
        cdef uint32_t i
        for i in range(s.n_connections):
            if s.epoll >= 0:
                close(s.connections[i].fd)
            if s.connections[i].is_tls:
                record_wipe(&s.connections[i].records)
            free(s.connections[i].input.data)
            free(s.connections[i].wire_input.data)
            free(s.connections[i].output.data)
        if s.epoll >= 0:
            close(s.epoll)
        if s.timer >= 0:
            close(s.timer)
        free(s.connections)
        free(s.flows)
        free(s.sizes)
        free(s.input)
        free(s.wire_input)
        free(s.output)
        free(s.wire_output)
