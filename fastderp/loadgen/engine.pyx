"""The load engine's Python interface: takes connections over, runs a load on them, reports.

A phase runs load.pyx in the calling thread, without the GIL.
"""

import os
import random

from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from fastderp.tls.aead cimport keyring_free, keyring_init
from fastderp.tls.record cimport RECORD_WIRE_MAX, RecordLayer, record_wipe
from fastderp.loadgen.histogram cimport histogram_percentile
from fastderp.loadgen.load cimport (
    DRAIN, FRAME_MAX, INPUT, INPUT_MAX, KEY_SIZE, MEASURE, N_KEYS, N_SIZES, OUTPUT_MAX, PACE_FLOOD,
    PACE_SCHEDULE, PACE_WINDOW, SLOW_TURN_NS, TIMER, WARM_UP, Bytes, Connection, Flow, Load, Phase,
    bytes_set, load_measure, load_run, load_start,
)
from fastderp.loadgen.payload cimport MARK_SIZE, PATTERN_SIZE, PAYLOAD_MAX
from fastderp.loadgen.sys cimport (
    CLOCK_MONOTONIC, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLIN, TFD_CLOEXEC, TFD_NONBLOCK, clock_ns,
    close, epoll_create1, epoll_ctl, epoll_event, flag_set, timerfd_create,
)


cdef class Engine:
    """A load over logged-in connections; the stub describes the arguments."""

    cdef Load load
    cdef bint started
    cdef object pattern                 # owns the memory of load.pattern

    def __cinit__(self, connections, flows, *, sizes, uint64_t window=0, double rate=0.0,
                  uint32_t in_a_row=1, slow=(), size_t slow_bytes_per_s=0,
                  bint joined_records=False, bint busy_wait=False, bint verify=False, seed=0):
        cdef Load* load = &self.load
        load.epoll = load.timer = -1
        if window and rate:
            raise ValueError("a load takes a window or a rate, not both")
        if not in_a_row:
            raise ValueError("in_a_row must be 1 or more, but is 0")
        load.pace = PACE_WINDOW if window else PACE_SCHEDULE if rate else PACE_FLOOD
        load.window = window
        load.in_a_row = in_a_row
        load.verify = verify
        load.joined_records = joined_records
        load.busy_wait = busy_wait
        if rate:
            load.gap_ns = 1e9 / rate
        self.draw(sizes, random.Random(seed))
        load.epoll = epoll_create1(EPOLL_CLOEXEC)
        load.timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if load.epoll < 0 or load.timer < 0:
            raise OSError(errno, os.strerror(errno))
        self.take(list(connections))
        self.slow_down(list(slow), slow_bytes_per_s)
        self.lay(list(flows))
        self.watch()

    cdef void* memory(self, size_t n, size_t size) except NULL:
        cdef void* fresh = calloc(n or 1, size)
        if fresh == NULL:
            raise MemoryError()
        return fresh

    cdef draw(self, sizes, rng):
        """Draw the run's seed, the bodies and the sizes, and allocate the work space."""
        cdef Load* load = &self.load
        for size, weight in sizes:
            if not MARK_SIZE <= size <= PAYLOAD_MAX:
                raise ValueError(
                    f"a packet size must be {MARK_SIZE} to {PAYLOAD_MAX} bytes, but is {size}")
            if weight <= 0:
                raise ValueError(f"the weight of size {size} must be positive, not {weight}")
        load.seed = rng.getrandbits(64)
        self.pattern = rng.randbytes(PATTERN_SIZE)
        load.pattern = <uint8_t*>PyBytes_AS_STRING(self.pattern)
        load.sizes = <uint32_t*>self.memory(N_SIZES, sizeof(uint32_t))
        load.input = <uint8_t*>self.memory(FRAME_MAX + INPUT_MAX, 1)
        load.wire_input = <uint8_t*>self.memory(INPUT_MAX, 1)
        load.output = <uint8_t*>self.memory(OUTPUT_MAX, 1)
        load.wire_output = <uint8_t*>self.memory(2 * OUTPUT_MAX, 1)
        if not keyring_init(&load.keyring, N_KEYS):
            raise MemoryError()
        drawn = rng.choices([size for size, _ in sizes], [weight for _, weight in sizes], k=N_SIZES)
        for i, size in enumerate(drawn):
            load.sizes[i] = size

    cdef take(self, list connections):
        """Take the connections' sockets and keys over."""
        cdef Load* load = &self.load
        cdef Connection* c
        load.connections = <Connection*>self.memory(len(connections), sizeof(Connection))
        for joined in connections:
            if len(joined.key) != KEY_SIZE:
                raise ValueError(f"a key has 32 bytes, not {len(joined.key)}")
            c = &load.connections[load.n_connections]
            memcpy(c.key, PyBytes_AS_STRING(joined.key), KEY_SIZE)
            self.take_unread(&c.input, joined.unread, FRAME_MAX)
            if joined.records is not None:
                self.take_unread(&c.wire_input, joined.records.pending, RECORD_WIRE_MAX)
                (<RecordLayer?>joined.records).take(&c.records)
                c.is_tls = True
            c.fd = joined.detach()
            load.n_connections += 1

    cdef take_unread(self, Bytes* into, bytes unread, size_t limit):
        """Start with bytes read during the login, less than a whole frame or record."""
        if <size_t>len(unread) >= limit:
            raise ValueError(f"a connection may bring {limit - 1} unread bytes, not {len(unread)}")
        if not bytes_set(into, <const uint8_t*>PyBytes_AS_STRING(unread), len(unread)):
            raise MemoryError()

    cdef slow_down(self, list indexes, size_t bytes_per_s):
        """Make slow readers of some connections."""
        cdef Load* load = &self.load
        load.slow_read = min(
            <size_t>INPUT, max(<size_t>1, bytes_per_s * SLOW_TURN_NS // 1000000000))
        for index in indexes:
            if not 0 <= index < load.n_connections:
                raise ValueError(
                    f"slow reader {index}: there are only {load.n_connections} connections")
            load.connections[index].is_slow = True
            load.n_slow += 1

    cdef lay(self, list flows):
        cdef Load* load = &self.load
        load.flows = <Flow*>self.memory(len(flows), sizeof(Flow))
        for source, target in flows:
            if not (0 <= source < load.n_connections and 0 <= target < load.n_connections):
                raise ValueError(
                    f"flow {source} -> {target}: there are only {load.n_connections} connections")
            load.flows[load.n_flows].source = source
            load.flows[load.n_flows].target = target
            load.n_flows += 1
        if not load.n_flows:
            load.pace = PACE_WINDOW            # a schedule needs at least one flow

    cdef watch(self):
        cdef Load* load = &self.load
        cdef epoll_event event
        cdef uint32_t i
        event.events = EPOLLIN
        event.data.u32 = TIMER
        epoll_ctl(load.epoll, EPOLL_CTL_ADD, load.timer, &event)
        for i in range(load.n_connections):
            event.data.u32 = i
            event.events = 0 if load.connections[i].is_slow else EPOLLIN
            if epoll_ctl(load.epoll, EPOLL_CTL_ADD, load.connections[i].fd, &event) < 0:
                raise OSError(errno, os.strerror(errno))

    cdef run(self, Phase phase, double seconds):
        cdef Load* load = &self.load
        cdef uint64_t start_ns = clock_ns()
        cdef uint64_t until_ns = start_ns + <uint64_t>(seconds * 1e9)
        if load.epoll < 0:
            raise ValueError("the engine is closed")
        load.phase = phase
        with nogil:
            if not self.started:
                self.started = True
                load_start(load, start_ns)
            if phase == MEASURE:
                load_measure(load)
            load_run(load, until_ns)
        if phase == MEASURE:
            load.measure_ns = max(<uint64_t>1, clock_ns() - start_ns)

    def warm_up(self, double seconds):
        """Run the load without measuring."""
        self.run(WARM_UP, seconds)

    def measure(self, double seconds):
        """Run the load and measure; discard the previous measurement."""
        self.run(MEASURE, seconds)

    def drain(self, double limit_s):
        """Stop sending and wait up to `limit_s` seconds for packets in flight."""
        self.run(DRAIN, limit_s)

    def stop(self):
        """End the current and every later phase within 0.1 s. Any thread may call it."""
        flag_set(&self.load.stopped)

    def close(self):
        """Close every connection."""
        cdef Load* load = &self.load
        cdef uint32_t i
        if load.epoll < 0:
            return
        for i in range(load.n_connections):
            close(load.connections[i].fd)
            load.connections[i].is_dead = True
        close(load.epoll)
        close(load.timer)
        load.epoll = load.timer = -1

    def percentile_ns(self, double percent):
        """Return the latency in ns that `percent` of the measured packets did not exceed."""
        return histogram_percentile(&self.load.latency, percent)

    def totals(self):
        """Return the measurement's counters; the stub describes them."""
        cdef Load* load = &self.load
        return {
            "seconds": load.measure_ns / 1e9,
            "sent": load.n_sent,
            "sent_bytes": load.n_sent_bytes,
            "delivered": load.n_delivered,
            "delivered_bytes": load.n_delivered_bytes,
            "lost": load.n_sent - load.n_answered,
            "corrupt": load.n_corrupt,
            "unexpected": load.n_unexpected,
            "connections_lost": load.n_dead,
            "latency_max_ns": load.latency.maximum,
        }

    def delivered_by_flow(self):
        """Return the number of packets delivered during the measurement, by flow."""
        return [self.load.flows[i].n_delivered for i in range(self.load.n_flows)]

    def __dealloc__(self):
        cdef Load* load = &self.load
        cdef uint32_t i
        for i in range(load.n_connections):
            if load.epoll >= 0:
                close(load.connections[i].fd)
            if load.connections[i].is_tls:
                record_wipe(&load.connections[i].records, NULL)
            free(load.connections[i].input.data)
            free(load.connections[i].wire_input.data)
            free(load.connections[i].output.data)
        if load.epoll >= 0:
            close(load.epoll)
        if load.timer >= 0:
            close(load.timer)
        keyring_free(&load.keyring)
        free(load.connections)
        free(load.flows)
        free(load.sizes)
        free(load.input)
        free(load.wire_input)
        free(load.output)
        free(load.wire_output)
