"""Answers STUN in a separate thread, without the GIL and without allocating (PROTOCOL §11).

The thread owns the buffers; it is the only writer of the counters. Python starts and stops it and
reads the counters. The caller keeps the sockets open while it runs.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset
from posix.uio cimport iovec
from posix.unistd cimport getpid, pid_t

from fastderp.dataplane.sys cimport (
    EAGAIN, ECONNRESET, EFD_CLOEXEC, EFD_NONBLOCK, EHOSTUNREACH, EINTR, ENETUNREACH, MSG_DONTWAIT,
    MSG_NOSIGNAL, PR_SET_NAME, atomic_load_u8, atomic_peek_u64, atomic_poke_u64, atomic_store_u8,
    close, counter_add, errno, eventfd, eventfd_drain, eventfd_wake, msghdr, prctl, pthread_create,
    pthread_join, pthread_t,
)
from fastderp.server.net.sys cimport AF_INET, POLLIN, poll, pollfd, sockaddr_in, sockaddr_in6
from fastderp.server.stun.sys cimport (
    CMSG_DATA, CMSG_FIRSTHDR, CMSG_NXTHDR, ECONNREFUSED, IP_PKTINFO, IPPROTO_IP, IPPROTO_IPV6,
    IPV6_PKTINFO, PRIO_PROCESS, cmsghdr, in6_pktinfo, in_pktinfo, mmsghdr, recvmmsg, sendmmsg,
    setpriority,
)

import os

cdef enum:
    SOCKETS_MAX = 64
    BATCH = 32               # datagrams per system call
    DATAGRAM_MAX = 65536
    ANSWER_MAX = 44
    CONTROL_BYTES = 64       # one struct in6_pktinfo with its header
    HEADER_BYTES = 20
    SOFTWARE = 0x8022
    FINGERPRINT = 0x8028
    FINGERPRINT_XOR = 0x5354554E
    READ_ERROR_PAUSE_MS = 1000

# The beginning of an IPv4 client's address on a dual-stack socket.
cdef uint8_t[12] MAPPED = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]
cdef uint8_t[4] COOKIE = [0x21, 0x12, 0xA4, 0x42]
# The thread runs at the priority of logins, below the data plane.
cdef int NICENESS = 10


cdef struct Counters:
    uint64_t success
    uint64_t not_stun
    uint64_t read_error
    uint64_t write_error
    uint64_t ipv4
    uint64_t ipv6
    uint64_t no_local_addr
    uint64_t unanswered
    uint64_t from_gateway


cdef struct Slot:
    # One datagram of a batch and the answer to it. The answer reuses the sender's address and the
    # control message.
    sockaddr_in6 sender
    iovec request
    iovec answer
    uint8_t control[CONTROL_BYTES]
    uint8_t answer_bytes[ANSWER_MAX]
    uint8_t request_bytes[DATAGRAM_MAX]


cdef struct Responder:
    pollfd polled[SOCKETS_MAX + 1]    # the last is `wake`
    int n_sockets
    int wake
    int report                        # written after a read error
    uint8_t is_stopping               # atomic; set by Python
    uint8_t is_silent                 # atomic; set by Python
    uint32_t gateway                  # fixed; an IPv4 address in network order, 0 = none
    uint64_t last_error               # atomic; errno of the last read error
    Counters counters
    uint32_t crc_table[256]
    mmsghdr requests[BATCH]
    mmsghdr answers[BATCH]
    Slot slots[BATCH]


# The wire

cdef void crc_table_fill(uint32_t* table) noexcept nogil:
    cdef uint32_t value, i, _bit
    for i in range(256):
        value = i
        for _bit in range(8):
            value = (value >> 1) ^ (0xEDB88320u if value & 1 else 0)
        table[i] = value


cdef uint32_t crc32(const uint32_t* table, const uint8_t* data, size_t n) noexcept nogil:
    cdef uint32_t value = 0xFFFFFFFFu
    cdef size_t i
    for i in range(n):
        value = (value >> 8) ^ table[(value ^ data[i]) & 0xFF]
    return value ^ 0xFFFFFFFFu


cdef inline uint32_t read_u16(const uint8_t* data) noexcept nogil:
    return (<uint32_t>data[0] << 8) | data[1]


cdef bint is_request(const uint32_t* table, const uint8_t* data, size_t n) noexcept nogil:
    """Return whether a datagram is a tailscale binding request.

    As strict as the reference: SOFTWARE `tailnode` anywhere, a correct FINGERPRINT last, attributes
    that fill the datagram exactly. The length field of the header is ignored.
    """
    cdef size_t at = HEADER_BYTES
    cdef size_t value, length = 0
    cdef uint32_t last = 0, fingerprint
    cdef bint from_tailscale = False
    if n < HEADER_BYTES or data[0] != 0 or data[1] != 1 or memcmp(data + 4, COOKIE, 4) != 0:
        return False
    while at < n:
        if at + 4 > n:
            return False
        last = read_u16(data + at)
        length = read_u16(data + at + 2)
        value = at + 4
        at = value + ((length + 3) & ~<size_t>3)
        if at > n:
            return False
        if last == SOFTWARE and length == 8 and memcmp(data + value, "tailnode", 8) == 0:
            from_tailscale = True
    if not from_tailscale or last != FINGERPRINT or length != 4:
        return False
    fingerprint = (read_u16(data + n - 4) << 16) | read_u16(data + n - 2)
    return crc32(table, data, n - 8) ^ FINGERPRINT_XOR == fingerprint


cdef size_t answer_write(
    uint8_t* out, const uint8_t* txid, const uint8_t* address, size_t address_bytes,
    const uint8_t* port,
) noexcept nogil:
    """Write the answer for a sender at `address` (4 or 16 bytes) and `port` (2 bytes).

    Return its size, 32 or 44.
    """
    cdef size_t i
    memset(out, 0, 32)
    out[0] = out[1] = 1
    out[3] = <uint8_t>(8 + address_bytes)
    memcpy(out + 4, COOKIE, 4)
    memcpy(out + 8, txid, 12)
    out[21] = 0x20
    out[23] = <uint8_t>(4 + address_bytes)
    out[25] = 1 if address_bytes == 4 else 2
    out[26] = port[0] ^ COOKIE[0]
    out[27] = port[1] ^ COOKIE[1]
    for i in range(address_bytes):
        # The mask is the cookie and the transaction id, which are adjacent in the header.
        out[28 + i] = address[i] ^ out[4 + i]
    return 28 + address_bytes


# The thread

cdef void batch_prepare(Responder* r) noexcept nogil:
    """Reset the buffer sizes of each message, which the kernel has overwritten."""
    cdef int i
    cdef msghdr* message
    cdef Slot* slot
    for i in range(BATCH):
        slot = &r.slots[i]
        slot.request.iov_base = slot.request_bytes
        slot.request.iov_len = DATAGRAM_MAX
        message = &r.requests[i].msg_hdr
        message.msg_name = &slot.sender
        message.msg_namelen = sizeof(sockaddr_in6)
        message.msg_iov = &slot.request
        message.msg_iovlen = 1
        message.msg_control = slot.control
        message.msg_controllen = CONTROL_BYTES
        message.msg_flags = 0


cdef bint source_from_destination(msghdr* message) noexcept nogil:
    """Make the destination of a request, as the kernel reports it, the source of its answer.

    Return False when the kernel reports no destination.
    """
    cdef cmsghdr* header = CMSG_FIRSTHDR(message)
    cdef in_pktinfo* ipv4
    cdef in6_pktinfo* ipv6
    while header is not NULL:
        if header.cmsg_level == IPPROTO_IP and header.cmsg_type == IP_PKTINFO:
            ipv4 = <in_pktinfo*>CMSG_DATA(header)
            ipv4.ipi_ifindex = 0
            ipv4.ipi_addr.s_addr = 0
            return True
        if header.cmsg_level == IPPROTO_IPV6 and header.cmsg_type == IPV6_PKTINFO:
            ipv6 = <in6_pktinfo*>CMSG_DATA(header)
            # The route selects the interface, but a link-local address belongs to one interface
            # only.
            if ipv6.ipi6_addr.s6_addr[0] != 0xFE or ipv6.ipi6_addr.s6_addr[1] & 0xC0 != 0x80:
                ipv6.ipi6_ifindex = 0
            return True
        header = CMSG_NXTHDR(message, header)
    return False


cdef bint answer_prepare(Responder* r, int i, msghdr* answer) noexcept nogil:
    """Write the answer to request `i` of the batch; False when it gets none."""
    cdef Slot* slot = &r.slots[i]
    cdef msghdr* request = &r.requests[i].msg_hdr
    cdef sockaddr_in* sender = <sockaddr_in*>&slot.sender
    cdef size_t n
    if not is_request(r.crc_table, slot.request_bytes, r.requests[i].msg_len):
        counter_add(&r.counters.not_stun, 1)
        return False
    if slot.sender.sin6_family == AF_INET:
        counter_add(&r.counters.ipv4, 1)
        counter_add(&r.counters.from_gateway,
                    r.gateway != 0 and sender.sin_addr.s_addr == r.gateway)
        n = answer_write(
            slot.answer_bytes, slot.request_bytes + 8, <uint8_t*>&sender.sin_addr, 4,
            <uint8_t*>&sender.sin_port)
    elif memcmp(slot.sender.sin6_addr.s6_addr, MAPPED, 12) == 0:
        counter_add(&r.counters.ipv4, 1)
        n = answer_write(
            slot.answer_bytes, slot.request_bytes + 8, slot.sender.sin6_addr.s6_addr + 12, 4,
            <uint8_t*>&slot.sender.sin6_port)
    else:
        counter_add(&r.counters.ipv6, 1)
        n = answer_write(
            slot.answer_bytes, slot.request_bytes + 8, slot.sender.sin6_addr.s6_addr, 16,
            <uint8_t*>&slot.sender.sin6_port)
    slot.answer.iov_base = slot.answer_bytes
    slot.answer.iov_len = n
    answer[0] = request[0]
    answer.msg_iov = &slot.answer
    answer.msg_flags = 0
    if not source_from_destination(request):
        counter_add(&r.counters.no_local_addr, 1)
        answer.msg_control = NULL
        answer.msg_controllen = 0
    return True


cdef void answers_send(Responder* r, int fd, int n) noexcept nogil:
    """Send the first `n` answers of the batch.

    An answer that the kernel refuses is counted and skipped.
    """
    cdef int at = 0
    cdef int sent
    while at < n:
        sent = sendmmsg(fd, &r.answers[at], n - at, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent > 0:
            counter_add(&r.counters.success, sent)
            at += sent
        elif errno != EINTR:
            counter_add(&r.counters.write_error, 1)
            at += 1


cdef bint batch_answer(Responder* r, int fd) noexcept nogil:
    """Answer one batch of a socket; False when the socket cannot be read."""
    cdef int i, n_requests, n_answers = 0
    batch_prepare(r)
    n_requests = recvmmsg(fd, r.requests, BATCH, MSG_DONTWAIT, NULL)
    if n_requests < 0:
        # A network error belongs to an earlier answer; the socket is usable.
        if errno in (EAGAIN, EINTR, ECONNREFUSED, ECONNRESET, EHOSTUNREACH, ENETUNREACH):
            return True
        atomic_poke_u64(&r.last_error, <uint64_t>errno)
        counter_add(&r.counters.read_error, 1)
        eventfd_wake(r.report)
        return False
    if atomic_load_u8(&r.is_silent):
        counter_add(&r.counters.unanswered, n_requests)
        return True
    for i in range(n_requests):
        n_answers += answer_prepare(r, i, &r.answers[n_answers].msg_hdr)
    answers_send(r, fd, n_answers)
    return True


cdef void* responder_run(void* argument) noexcept nogil:
    cdef Responder* r = <Responder*>argument
    cdef pollfd* wake = &r.polled[r.n_sockets]
    cdef bint all_readable
    cdef int i
    prctl(PR_SET_NAME, <const char*>b"fastderp-stun")
    setpriority(PRIO_PROCESS, 0, NICENESS)
    while not atomic_load_u8(&r.is_stopping):
        if poll(r.polled, r.n_sockets + 1, -1) < 0:
            continue
        all_readable = True
        for i in range(r.n_sockets):
            if r.polled[i].revents:
                all_readable = batch_answer(r, r.polled[i].fd) and all_readable
        if not all_readable:
            poll(wake, 1, READ_ERROR_PAUSE_MS)
    return NULL


cdef class StunResponder:
    """A thread that answers STUN on UDP sockets, from `start` to `stop`.

    Args:
        descriptors: of bound sockets, up to 64, that stay open while it runs; on those with
            IP_PKTINFO or IPV6_PKTINFO, answers leave from the address of the request.
        gateway: an IPv4 address, 4 bytes, whose requests are counted; empty for none.

    Raises OSError when descriptors or memory are out.
    """

    cdef Responder* inner
    cdef pthread_t thread
    cdef bint is_running
    cdef pid_t owner                  # the process that has the thread

    def __cinit__(self, descriptors, bytes gateway=b""):
        if len(descriptors) > SOCKETS_MAX:
            raise ValueError(f"at most {SOCKETS_MAX} sockets, not {len(descriptors)}")
        if len(gateway) not in (0, 4):
            raise ValueError(f"a gateway has 4 bytes, not {len(gateway)}")
        cdef Responder* r = <Responder*>calloc(1, sizeof(Responder))
        if r is NULL:
            raise MemoryError
        self.inner = r
        if gateway:
            memcpy(&r.gateway, <const uint8_t*>gateway, 4)
        r.report = -1
        r.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if r.wake >= 0:
            r.report = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if r.report < 0:
            raise OSError(errno, os.strerror(errno))
        crc_table_fill(r.crc_table)
        for descriptor in descriptors:
            r.polled[r.n_sockets].fd = descriptor
            r.polled[r.n_sockets].events = POLLIN
            r.n_sockets += 1
        r.polled[r.n_sockets].fd = r.wake
        r.polled[r.n_sockets].events = POLLIN

    def __dealloc__(self):
        if self.inner is NULL:
            return
        self.stop()
        if self.inner.wake >= 0:
            close(self.inner.wake)
        if self.inner.report >= 0:
            close(self.inner.report)
        free(self.inner)

    def start(self):
        """Start the thread. Raises OSError when the system refuses it."""
        cdef int error
        if self.is_running:
            return
        atomic_store_u8(&self.inner.is_stopping, 0)
        eventfd_drain(self.inner.wake)
        error = pthread_create(&self.thread, NULL, responder_run, self.inner)
        if error:
            raise OSError(error, os.strerror(error))
        self.is_running = True
        self.owner = getpid()

    def stop(self):
        """Stop the thread and wait for it; a no-op when it does not run, or after a fork."""
        if not self.is_running:
            return
        if self.owner != getpid():
            # A child shares `wake`, and would keep the thread of the owner awake.
            self.is_running = False
            return
        atomic_store_u8(&self.inner.is_stopping, 1)
        eventfd_wake(self.inner.wake)
        with nogil:
            pthread_join(self.thread, NULL)
        self.is_running = False

    @property
    def is_silent(self):
        """Whether datagrams are read and not answered. May be assigned at any time."""
        return bool(atomic_load_u8(&self.inner.is_silent))

    @is_silent.setter
    def is_silent(self, bint is_silent):
        atomic_store_u8(&self.inner.is_silent, is_silent)

    def fileno(self):
        """Return a descriptor that is readable after a read error, until `take_error`."""
        return self.inner.report

    def take_error(self):
        """Return the errno of the last read error, 0 when there was none since the last call."""
        cdef uint64_t number = atomic_peek_u64(&self.inner.last_error)
        eventfd_drain(self.inner.report)
        atomic_poke_u64(&self.inner.last_error, 0)
        return number

    def counters(self):
        """Return the counters by the dispositions and families of PROTOCOL §14, §22.

        `unanswered` are the datagrams of silent times, `from_gateway` the requests of the gateway.
        """
        cdef Counters* c = &self.inner.counters
        return {
            "success": atomic_peek_u64(&c.success),
            "not_stun": atomic_peek_u64(&c.not_stun),
            "read_error": atomic_peek_u64(&c.read_error),
            "write_error": atomic_peek_u64(&c.write_error),
            "ipv4": atomic_peek_u64(&c.ipv4),
            "ipv6": atomic_peek_u64(&c.ipv6),
            "no_local_addr": atomic_peek_u64(&c.no_local_addr),
            "unanswered": atomic_peek_u64(&c.unanswered),
            "from_gateway": atomic_peek_u64(&c.from_gateway),
        }


def answer_to(bytes datagram, bytes address, int port):
    """Return the answer to a datagram from `address` (4 or 16 bytes) and `port`.

    None when it gets none. PROTOCOL §11.
    """
    cdef uint32_t[256] table
    cdef uint8_t[ANSWER_MAX] out
    cdef uint8_t[2] port_bytes = [port >> 8 & 0xFF, port & 0xFF]
    if len(address) not in (4, 16):
        raise ValueError(f"an address has 4 or 16 bytes, not {len(address)}")
    crc_table_fill(table)
    if not is_request(table, datagram, len(datagram)):
        return None
    return out[:answer_write(out, <const uint8_t*>datagram + 8, address, len(address), port_bytes)]
