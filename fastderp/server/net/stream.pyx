"""Non-blocking stream sockets on the event loop, for connections outside the data plane.

They replace asyncio transports because of the hand-over to the data plane: the bytes written and
read are known at every moment, and `detach` returns the descriptor. Works the same on uvloop and
asyncio. Loop thread only. Compiled, because a login passes here several times; stream.pyi describes
the interface.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

from fastderp.dataplane.reports cimport kernel_cause as session_cause
from fastderp.dataplane.sys cimport (
    EAGAIN, EINTR, EPIPE, EPOLLIN, EPOLLOUT, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL,
    EPOLL_CTL_MOD, IPPROTO_TCP, MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, SOL_SOCKET, SO_RCVBUF,
    TCP_INFO, TCP_NOTSENT_LOWAT, clock_ns, close, epoll_create1, epoll_ctl, epoll_event,
    epoll_wait, errno, getsockopt, recv, send, setsockopt, shutdown, tcp_counts,
)
from fastderp.server.net.sys cimport (
    AF_INET, AF_INET6, INET6_ADDRSTRLEN, POLLIN, SOCK_CLOEXEC, SOCK_NONBLOCK, accept4, getsockname,
    inet_ntop, ntohs, poll, pollfd, sockaddr, sockaddr_in, sockaddr_in6, sockaddr_storage,
)

import os
from errno import EIO

from fastderp.server.observe.supervisor import supervisor

# A login needs a few hundred bytes; a bridged TLS 1.2 connection moves whole records.
READ_BYTES = 16 * 1024
# Limit per iteration of the loop: STUN, the data plane's events and new connections are served
# between two iterations.
SLICE_S = 0.004
# This many sockets ready at once count as a storm.
BUSY_EVENTS = 4

cdef enum:
    EVENTS_PER_TURN = 64
    INPUT = 16384           # READ_BYTES

cdef uint8_t[12] MAPPED = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]


def accept(int listening):
    """See stream.pyi."""
    cdef sockaddr_storage address
    cdef unsigned int n
    cdef int descriptor
    while True:
        n = sizeof(address)
        descriptor = accept4(
            listening, <sockaddr*>&address, &n, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if descriptor >= 0:
            return descriptor, address_object(&address)
        if errno == EAGAIN:
            return None
        if errno != EINTR:
            raise OSError(errno, os.strerror(errno))


def has_waiting(int listening):
    """See stream.pyi."""
    cdef pollfd one
    one.fd = listening
    one.events = POLLIN
    return poll(&one, 1, 0) > 0


def kernel_cause(int error):
    """See stream.pyi."""
    return session_cause(error)


cdef tuple address_object(const sockaddr_storage* address):
    """Return (ip, port); ("", 0) for the peer of a unix socket, which has no name.

    An IPv4-mapped address (::ffff:a.b.c.d), which a socket for both families gives, is IPv4.
    """
    cdef char[INET6_ADDRSTRLEN] text
    cdef const sockaddr_in* four = <const sockaddr_in*>address
    cdef const sockaddr_in6* six = <const sockaddr_in6*>address
    if address.ss_family == AF_INET:
        inet_ntop(AF_INET, &four.sin_addr, text, sizeof(text))
        return (<bytes>text).decode("ascii"), ntohs(four.sin_port)
    if address.ss_family == AF_INET6 and memcmp(&six.sin6_addr, MAPPED, sizeof(MAPPED)) == 0:
        inet_ntop(AF_INET, six.sin6_addr.s6_addr + sizeof(MAPPED), text, sizeof(text))
        return (<bytes>text).decode("ascii"), ntohs(six.sin6_port)
    if address.ss_family == AF_INET6:
        inet_ntop(AF_INET6, &six.sin6_addr, text, sizeof(text))
        return (<bytes>text).decode("ascii"), ntohs(six.sin6_port)
    return "", 0


cdef class Poller:
    """See stream.pyi."""

    cdef object loop
    cdef int epoll                              # -1 when closed
    cdef dict streams                           # by descriptor
    # Ready at the last poll; those from `next_ready` on are not yet notified.
    cdef epoll_event[EVENTS_PER_TURN] ready
    cdef int n_ready
    cdef int next_ready
    cdef uint8_t[INPUT] input                   # of the stream that reads

    def __cinit__(self, loop):
        self.loop = loop
        self.streams = {}
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, os.strerror(errno))

    def __init__(self, loop):
        loop.add_reader(self.epoll, self._dispatch)

    @property
    def is_busy(self):
        return self.n_ready >= BUSY_EVENTS

    def close(self):
        if self.epoll >= 0:
            self.loop.remove_reader(self.epoll)
            close(self.epoll)
            self.epoll = -1
            self.streams.clear()

    def __dealloc__(self):
        if self.epoll >= 0:
            close(self.epoll)

    cdef int watch(self, Stream stream, unsigned int before, unsigned int events) except -1:
        """Notify the stream of these events from now on instead of those before; 0 is none."""
        cdef epoll_event event
        cdef int operation = EPOLL_CTL_MOD
        if not events:
            # epoll reports errors of a socket even without requested events, repeatedly.
            operation = EPOLL_CTL_DEL
            self.streams.pop(stream.descriptor, None)
        elif not before:
            operation = EPOLL_CTL_ADD
        event.events = events
        event.data.u64 = stream.descriptor
        if self.epoll >= 0 and epoll_ctl(self.epoll, operation, stream.descriptor, &event) < 0:
            raise OSError(errno, os.strerror(errno))
        if operation == EPOLL_CTL_ADD:
            self.streams[stream.descriptor] = stream
        return 0

    def _dispatch(self):
        """Notify ready streams, for up to SLICE_S.

        The rest follows in the next iteration.
        """
        cdef uint64_t deadline_ns = clock_ns() + <uint64_t>(max(SLICE_S, 0) * 1e9)
        cdef epoll_event* event
        if self.next_ready == self.n_ready:
            self.next_ready = 0
            self.n_ready = max(0, epoll_wait(self.epoll, self.ready, EVENTS_PER_TURN, 0))
        while self.next_ready < self.n_ready:
            event = &self.ready[self.next_ready]
            self.next_ready += 1
            # An earlier event may have closed the stream; a new stream with the same descriptor
            # finds nothing to read.
            stream = self.streams.get(<int>event.data.u64)
            if stream is not None:
                (<Stream>stream).act(event.events)
                if clock_ns() > deadline_ns:
                    break


cdef class Stream:
    """See stream.pyi."""

    cdef Poller poller
    cdef int descriptor                 # -1 when closed or detached
    cdef unsigned int events            # wanted of epoll
    cdef bint is_acting                 # epoll learns of `events` when the callbacks return
    cdef unsigned int watched           # the events that epoll has registered
    cdef bytearray unsent
    cdef int write_error                # the first of a write; 0 before
    cdef uint64_t moved_ns              # the last progress of the peer, or the begin of its turn
    cdef public object on_bytes
    cdef public object on_end
    cdef public object on_drained
    cdef public int read_bytes

    def __cinit__(self, Poller poller not None, sock, on_bytes, on_end, on_drained):
        self.descriptor = sock if isinstance(sock, int) else sock.detach()
        self.poller = poller
        self.on_bytes = on_bytes
        self.on_end = on_end
        self.on_drained = on_drained
        self.read_bytes = READ_BYTES
        self.moved_ns = clock_ns()

    def __dealloc__(self):
        if self.descriptor >= 0:
            close(self.descriptor)

    @property
    def silent_s(self):
        return (clock_ns() - self.moved_ns) * 1e-9 if self.events else 0.0

    @property
    def closed(self):
        return self.descriptor < 0

    @property
    def n_unsent(self):
        return len(self.unsent) if self.unsent is not None else 0

    @property
    def flushed(self):
        return not self.unsent

    @property
    def local_ip(self):
        cdef sockaddr_storage address
        cdef unsigned int n = sizeof(address)
        if getsockname(self.descriptor, <sockaddr*>&address, &n) < 0:
            return ""
        return address_object(&address)[0]

    def round_trip_us(self):
        cdef tcp_counts info
        return info.rtt_us if self.read_counts(&info) else None

    def bytes_moved(self):
        cdef tcp_counts info
        return (info.bytes_sent, info.bytes_received) if self.read_counts(&info) else None

    cdef bint read_counts(self, tcp_counts* info):
        """Read the kernel's counters; return False unless it is an open TCP socket."""
        cdef unsigned int n = sizeof(tcp_counts)
        return (
            getsockopt(self.descriptor, IPPROTO_TCP, TCP_INFO, info, &n) == 0
            and n == sizeof(tcp_counts)
        )

    def limit_kernel(self, int unsent_bytes, int near_receive_bytes, int near_us):
        if setsockopt(
            self.descriptor, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent_bytes, sizeof(int)
        ) == 0 and (self.round_trip_us() or 0) <= near_us:
            setsockopt(self.descriptor, SOL_SOCKET, SO_RCVBUF, &near_receive_bytes, sizeof(int))

    def start(self):
        """See stream.pyi."""
        self.events = EPOLLIN
        self.act(EPOLLIN)

    def resume(self):
        if not self.events:
            self.moved_ns = clock_ns()
        self.want(self.events | EPOLLIN)

    def pause(self):
        self.want(self.events & ~<unsigned int>EPOLLIN)

    def send(self, bytes data not None):
        cdef Py_ssize_t n_sent
        if not data or self.descriptor < 0:
            return not self.unsent
        if self.unsent:
            self.unsent += data
            return False
        n_sent = self.send_now(<const uint8_t*>PyBytes_AS_STRING(data), len(data))
        if n_sent == len(data):
            return True
        self.unsent = bytearray(data[n_sent:])
        self.want(self.events | EPOLLOUT)
        return False

    def end_output(self):
        if self.descriptor >= 0:
            shutdown(self.descriptor, SHUT_WR)

    def detach(self):
        cdef int descriptor = self.descriptor
        self.forget()
        return descriptor

    def close(self):
        cdef int descriptor = self.descriptor
        self.forget()
        if descriptor >= 0:
            close(descriptor)

    cdef int forget(self) except -1:
        """Stop watching; drop the callbacks, and with them the cycle through their owner."""
        self.events = 0
        self.sync()
        self.descriptor = -1
        self.on_bytes = self.on_end = self.on_drained = nothing
        return 0

    cdef int want(self, unsigned int events) except -1:
        self.events = events
        if not self.is_acting:
            self.sync()
        return 0

    cdef int sync(self) except -1:
        """Tell epoll about a change."""
        if self.events != self.watched and self.descriptor >= 0:
            self.poller.watch(self, self.watched, self.events)
            self.watched = self.events
        return 0

    cdef int act(self, unsigned int ready) except -1:
        """Act on epoll's events. The next read or write reports an error or the end.

        Connections guard themselves; this guard is for bridges and tunnels.
        """
        self.is_acting = True
        try:
            if self.events & EPOLLOUT and ready & ~<unsigned int>EPOLLIN:
                self.flush()
            if self.events & EPOLLIN and ready & ~<unsigned int>EPOLLOUT:
                self.read()
            self.is_acting = False
            self.sync()
        except Exception as error:
            self.is_acting = False
            supervisor.note("stream", error)
            supervisor.guard("stream", self.on_end, OSError(EIO, "internal error"))
        return 0

    cdef int read(self) except -1:
        cdef Py_ssize_t n = recv(
            self.descriptor, self.poller.input, min(self.read_bytes, INPUT), MSG_DONTWAIT)
        cdef int error = errno
        if n == 0 and self.write_error:
            n, error = -1, self.write_error     # reporting it to the write has cleared it
        if n > 0:
            self.moved_ns = clock_ns()
            self.on_bytes(PyBytes_FromStringAndSize(<const char*>self.poller.input, n))
        elif n == 0:
            self.pause()
            self.on_end(None)
        elif error != EAGAIN and error != EINTR:
            self.pause()
            self.on_end(OSError(error, os.strerror(error)))
        return 0

    cdef int flush(self) except -1:
        cdef Py_ssize_t n = self.send_now(
            <const uint8_t*>PyByteArray_AS_STRING(self.unsent), len(self.unsent))
        if n > 0:
            self.moved_ns = clock_ns()
        del self.unsent[:n]
        if not self.unsent:
            self.want(self.events & ~<unsigned int>EPOLLOUT)
            self.on_drained()
        return 0

    cdef Py_ssize_t send_now(self, const uint8_t* data, Py_ssize_t n):
        """Return the number of bytes accepted; all if it is broken: the next read reports that."""
        cdef Py_ssize_t n_sent = send(self.descriptor, data, n, MSG_DONTWAIT | MSG_NOSIGNAL)
        if n_sent >= 0:
            return n_sent
        if errno == EAGAIN or errno == EINTR:
            return 0
        if self.write_error == 0 and errno != EPIPE:    # that one follows an end
            self.write_error = errno
        return n


def nothing(*_):
    """Replace a callback after `close` or `detach`."""
