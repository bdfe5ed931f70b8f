"""Logins of many clients: one epoll loop in which each login is a small state machine.

Keys, boxes and requests are made before, so that a login costs the load far less than the relay.
The loop uses no Python object and no GIL; only the thread that runs it touches its state, except
`stopped`.
"""

import os

from libc.errno cimport EAGAIN, EINPROGRESS, EINTR, ENOBUFS, ENOMEM, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memmove
from posix.uio cimport iovec

from cpython.bytes cimport PyBytes_AS_STRING

from fastderp.tls.aead cimport Keyring, keyring_free, keyring_init
from fastderp.tls.record cimport (
    RECORD_OK, RECORD_WIRE_MAX, RecordStatus, Records, record_layer_of, record_open, record_seal,
    record_status_text, record_wipe)
from fastderp.loadgen.hello cimport (
    HELLO_ALERT, HELLO_ANSWER_MAX, HELLO_DONE, HELLO_MORE, HELLO_NO_MEMORY, HELLO_OLD, Hello,
    HelloStatus, Share, hello_end, hello_take)
from fastderp.loadgen.load cimport Bytes, FRAME_HEAD, KEY_SIZE
from fastderp.loadgen.sys cimport (
    CLOCK_MONOTONIC, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP,
    IP_BIND_ADDRESS_NO_PORT, IPPROTO_IP, IPPROTO_TCP, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_CLOEXEC,
    SOCK_NONBLOCK, SOCK_STREAM, TCP_NODELAY, TCP_NOTSENT_LOWAT, TFD_CLOEXEC, TFD_NONBLOCK,
    TFD_TIMER_ABSTIME, bind, clock_ns, close, connect, epoll_create1, epoll_ctl, epoll_event,
    epoll_wait, flag_is_set, flag_set, itimerspec, memmem, read, recv, sched_yield, send,
    setsockopt, sockaddr, sockaddr_storage, socket, socklen_t, timerfd_create, timerfd_settime)
from fastderp.tls.openssl cimport NID_X25519, crypto

from fastderp.errors import ProtocolError

cdef enum:
    SERVER_KEY = 0x01
    SERVER_INFO = 0x03
    KEY_AT = FRAME_HEAD + 8         # after the magic of ServerKey
    ANSWER_MAX = 16384              # a relay sends a few hundred bytes during a login
    INPUT = 65536
    OUTPUT = 8192                   # a client's largest message is a ClientHello
    N_EVENTS = 256
    N_KEYS = 256                    # each client has two at a time
    TIMER = 0xFFFFFFFF              # epoll's name for the timer; clients have their number
    WAIT_NS = 100000000             # maximum delay of a stop and of a login's timeout

# More unsent bytes in a sender's kernel would be a queue of the load, not of the relay.
cdef int NOT_SENT_LIMIT_BYTES = 32768
cdef int ON = 1

cdef enum Stage:
    # OUTSIDE ─► CONNECTING ─┬─► SHAKING (TLS) ─┬─► UPGRADING ─┬─► GREETED ─► ENTERING ─► INSIDE
    #                        └──────────────────┘  fast start ─┘
    OUTSIDE
    CONNECTING
    SHAKING
    UPGRADING                       # waits for the 101
    GREETED                         # waits for ServerKey; a fast start has sent ClientInfo
    ENTERING                        # has sent ClientInfo and waits for ServerInfo
    INSIDE

cdef enum Trouble:
    NO_TROUBLE
    TROUBLE_SYSTEM                  # code: errno
    TROUBLE_ENDED                   # the relay closed the connection
    TROUBLE_TLS                     # code: HelloStatus
    TROUBLE_RECORD                  # code: RecordStatus
    TROUBLE_ANSWER                  # not a 101, or no end of the answer
    TROUBLE_FRAME                   # code: type of the frame that should be another
    TROUBLE_KEY                     # the key of another relay
    TROUBLE_LATE

cdef struct Entrant:
    int fd
    Stage stage
    uint64_t late_ns                # the time of its timeout
    Hello hello                     # while SHAKING
    Records records                 # over TLS, behind SHAKING
    Bytes wire                      # an incomplete record
    Bytes plain                     # bytes read and not yet parsed
    bint is_sealed                  # records are in use

cdef struct Crowd:
    Share share                     # of TLS; without a key over plain TCP
    int epoll
    int timer
    int stopped                     # set by any thread, through flag_set
    sockaddr_storage address
    socklen_t address_size
    sockaddr_storage* sources       # used in rotation
    uint32_t n_sources
    Keyring keyring                 # over TLS, for logins in progress
    const uint8_t* hello_record     # the encoded ClientHello
    size_t n_hello_record
    const uint8_t* request          # not with a fast start
    size_t n_request
    bint fast_start
    const uint8_t* server_key
    # The ClientInfo frames of all clients, of one size; with a fast start each follows the request.
    const uint8_t* infos
    size_t n_info
    Entrant* entrants
    uint32_t n
    uint32_t n_started
    uint32_t n_inside
    uint32_t n_at_once
    double gap_ns                   # between two logins of the schedule; 0: no schedule
    uint64_t first_ns
    uint64_t last_ns                # the time of the last login
    uint64_t limit_ns               # for one login
    bint busy_wait
    Trouble trouble                 # of the first client that failed
    unsigned long code
    uint32_t who
    uint8_t input[INPUT]
    uint8_t output[OUTPUT]
    uint8_t opened[ANSWER_MAX + INPUT + RECORD_WIRE_MAX]


cdef bint bytes_add(Bytes* b, const uint8_t* data, size_t n) noexcept nogil:
    """Append; return False without memory."""
    cdef void* grown
    if b.n + n > b.capacity:
        grown = realloc(b.data, b.n + n)
        if grown == NULL:
            return False
        b.data = <uint8_t*>grown
        b.capacity = b.n + n
    if n:
        memcpy(b.data + b.n, data, n)
    b.n += n
    return True


cdef void bytes_cut(Bytes* b, size_t n) noexcept nogil:
    """Remove the first `n` bytes."""
    b.n -= n
    if b.n:
        memmove(b.data, b.data + n, b.n)


cdef bint fail(Crowd* c, Entrant* e, Trouble trouble, unsigned long code) noexcept nogil:
    """Keep the first error; return False, for the caller to return."""
    if c.trouble == NO_TROUBLE:
        c.trouble = trouble
        c.code = code
        c.who = <uint32_t>(e - c.entrants)
    return False


# Messages of a client.

cdef bint transmit(Crowd* c, Entrant* e, const uint8_t* data, size_t n) noexcept nogil:
    """Send all bytes: a new socket accepts the bytes of a login, or is broken."""
    cdef ssize_t taken = send(e.fd, data, n, MSG_DONTWAIT | MSG_NOSIGNAL)
    if taken < 0:
        return fail(c, e, TROUBLE_SYSTEM, errno)
    return <size_t>taken == n or fail(c, e, TROUBLE_SYSTEM, ENOBUFS)


cdef bint say(Crowd* c, Entrant* e, const uint8_t* data, size_t n) noexcept nogil:
    cdef iovec part
    cdef size_t n_wire = 0
    cdef RecordStatus status
    if not e.is_sealed:
        return transmit(c, e, data, n)
    part.iov_base = <void*>data
    part.iov_len = n
    status = record_seal(&e.records, &c.keyring, &part, 1, c.output, OUTPUT, &n_wire)
    if status != RECORD_OK:
        return fail(c, e, TROUBLE_RECORD, status)
    return transmit(c, e, c.output, n_wire)


# TLS.

cdef bint shake_begin(Crowd* c, Entrant* e) noexcept nogil:
    e.stage = SHAKING
    return transmit(c, e, c.hello_record, c.n_hello_record)


cdef bint shake_on(Crowd* c, Entrant* e) noexcept nogil:
    """Continue the handshake as far as the input reaches; after its end use records."""
    cdef uint8_t answer[HELLO_ANSWER_MAX]
    cdef size_t n_answer = 0
    cdef size_t consumed = 0
    cdef HelloStatus status = hello_take(
        &e.hello, &c.share, &c.keyring, e.wire.data, e.wire.n, &consumed, c.opened, answer,
        &n_answer, &e.records)
    bytes_cut(&e.wire, consumed)
    if status == HELLO_MORE:
        return True
    if status != HELLO_DONE:
        return fail(c, e, TROUBLE_TLS, status)
    hello_end(&e.hello, &c.keyring)
    e.is_sealed = True
    return transmit(c, e, answer, n_answer) and upgrade(c, e)


# The login.

cdef bint enter(Crowd* c, Entrant* e) noexcept nogil:
    """Open the next client's connection."""
    cdef uint32_t number = <uint32_t>(e - c.entrants)
    cdef sockaddr_storage* source
    cdef epoll_event event
    e.fd = socket(c.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if e.fd < 0:
        return fail(c, e, TROUBLE_SYSTEM, errno)
    e.stage = CONNECTING
    if c.n_sources:
        # The kernel assigns the port at connect; at bind it would be taken for all relays.
        source = &c.sources[number % c.n_sources]
        setsockopt(e.fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &ON, sizeof(ON))
        if bind(e.fd, <sockaddr*>source, c.address_size) < 0:
            return fail(c, e, TROUBLE_SYSTEM, errno)
    setsockopt(e.fd, IPPROTO_TCP, TCP_NODELAY, &ON, sizeof(ON))
    setsockopt(e.fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &NOT_SENT_LIMIT_BYTES,
               sizeof(NOT_SENT_LIMIT_BYTES))
    if connect(e.fd, <sockaddr*>&c.address, c.address_size) < 0 and errno != EINPROGRESS:
        return fail(c, e, TROUBLE_SYSTEM, errno)
    # With edge-triggered events a client needs one epoll_ctl call, and none after its login.
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
    event.data.u32 = number
    return epoll_ctl(c.epoll, EPOLL_CTL_ADD, e.fd, &event) == 0 or fail(c, e, TROUBLE_SYSTEM, errno)


cdef bint upgrade(Crowd* c, Entrant* e) noexcept nogil:
    if c.fast_start:
        e.stage = GREETED
        return introduce(c, e)
    e.stage = UPGRADING
    return say(c, e, c.request, c.n_request)


cdef bint introduce(Crowd* c, Entrant* e) noexcept nogil:
    return say(c, e, c.infos + <size_t>(e - c.entrants) * c.n_info, c.n_info)


cdef bint listen_to(Crowd* c, Entrant* e, bint to_the_end) noexcept nogil:
    """Read all bytes and the end of the stream, as epoll reports each change only once."""
    cdef ssize_t n = INPUT
    while (n == INPUT or to_the_end) and e.stage != INSIDE:
        n = recv(e.fd, c.input, INPUT, MSG_DONTWAIT)
        if n < 0:
            return errno == EAGAIN or errno == EINTR or fail(c, e, TROUBLE_SYSTEM, errno)
        if n == 0:
            return fail(c, e, TROUBLE_ENDED, 0)
        if not hear(c, e, c.input, n):
            return False
    return True


cdef bint hear(Crowd* c, Entrant* e, const uint8_t* data, size_t n) noexcept nogil:
    """Process the input."""
    if e.stage != SHAKING and not e.is_sealed:
        return hear_plain(c, e, data, n)
    if not bytes_add(&e.wire, data, n):
        return fail(c, e, TROUBLE_SYSTEM, ENOMEM)
    if e.stage == SHAKING and not shake_on(c, e):
        return False
    return e.stage == SHAKING or e.wire.n == 0 or open_records(c, e)


cdef bint open_records(Crowd* c, Entrant* e) noexcept nogil:
    cdef size_t consumed = 0
    cdef size_t produced = 0
    cdef RecordStatus status = record_open(
        &e.records, &c.keyring, e.wire.data, e.wire.n, c.opened, sizeof(c.opened), &consumed,
        &produced)
    bytes_cut(&e.wire, consumed)
    if status != RECORD_OK:
        return fail(c, e, TROUBLE_RECORD, status)
    return produced == 0 or hear_plain(c, e, c.opened, produced)


cdef bint hear_plain(Crowd* c, Entrant* e, const uint8_t* data, size_t n) noexcept nogil:
    return advance(c, e) if bytes_add(&e.plain, data, n) else fail(c, e, TROUBLE_SYSTEM, ENOMEM)


cdef bint advance(Crowd* c, Entrant* e) noexcept nogil:
    """Parse the complete messages of the input."""
    cdef size_t n
    if e.stage == UPGRADING:
        n = answer_size(e)
        if n == 0:
            return e.plain.n <= ANSWER_MAX or fail(c, e, TROUBLE_ANSWER, 0)
        if not answer_is_upgrade(e):
            return fail(c, e, TROUBLE_ANSWER, 0)
        bytes_cut(&e.plain, n)
        e.stage = GREETED
    if e.stage == GREETED:
        n = frame_size(e)
        if n == 0:
            return True
        if e.plain.data[0] != SERVER_KEY or n < KEY_AT + KEY_SIZE or n > ANSWER_MAX:
            return fail(c, e, TROUBLE_FRAME, e.plain.data[0])
        if e.plain.n < n:
            return True
        if memcmp(e.plain.data + KEY_AT, c.server_key, KEY_SIZE) != 0:
            return fail(c, e, TROUBLE_KEY, 0)
        bytes_cut(&e.plain, n)
        e.stage = ENTERING
        if not c.fast_start and not introduce(c, e):
            return False
    if e.stage == ENTERING:
        n = frame_size(e)
        if n == 0:
            return True
        if e.plain.data[0] != SERVER_INFO or n > ANSWER_MAX:
            return fail(c, e, TROUBLE_FRAME, e.plain.data[0])
        if e.plain.n >= n:
            arrive(c, e)
    return True


cdef void arrive(Crowd* c, Entrant* e) noexcept nogil:
    """Finish a login; its ServerInfo stays in front of `plain` until Python reads it."""
    e.stage = INSIDE
    c.n_inside += 1
    c.last_ns = clock_ns()


cdef size_t answer_size(Entrant* e) noexcept nogil:
    """Return the length of the HTTP answer, 0 while it is incomplete."""
    cdef void* end = memmem(e.plain.data, e.plain.n, b"\r\n\r\n", 4) if e.plain.n else NULL
    return <size_t>(<uint8_t*>end - e.plain.data) + 4 if end != NULL else 0


cdef bint answer_is_upgrade(Entrant* e) noexcept nogil:
    return (e.plain.n >= 12 and memcmp(e.plain.data, b"HTTP/1.", 7) == 0
            and memcmp(e.plain.data + 8, b" 101", 4) == 0)


cdef size_t frame_size(Entrant* e) noexcept nogil:
    """Return the length of the next frame, 0 without a complete header."""
    cdef const uint8_t* p = e.plain.data
    if e.plain.n < FRAME_HEAD:
        return 0
    return FRAME_HEAD + ((<size_t>p[1] << 24) | (<size_t>p[2] << 16) | (<size_t>p[3] << 8) | p[4])


# Time.

cdef void crowd_enter(Crowd* c, uint64_t now_ns) noexcept nogil:
    """Begin the logins that are due, up to the limit of concurrent ones."""
    cdef Entrant* e
    cdef uint64_t due_ns
    while c.n_started < c.n and c.n_started - c.n_inside < c.n_at_once and c.trouble == NO_TROUBLE:
        due_ns = c.first_ns + <uint64_t>(c.n_started * c.gap_ns)
        if due_ns > now_ns:
            alarm(c, due_ns)
            return
        e = &c.entrants[c.n_started]
        c.n_started += 1
        e.late_ns = now_ns + c.limit_ns
        enter(c, e)


cdef void alarm(Crowd* c, uint64_t when_ns) noexcept nogil:
    cdef itimerspec wake
    wake.it_interval.tv_sec = wake.it_interval.tv_nsec = 0
    wake.it_value.tv_sec = <long>(when_ns // 1000000000)
    wake.it_value.tv_nsec = <long>(when_ns % 1000000000)
    timerfd_settime(c.timer, TFD_TIMER_ABSTIME, &wake, NULL)


cdef void crowd_hurry(Crowd* c, uint64_t now_ns) noexcept nogil:
    """Fail a login that takes too long."""
    cdef uint32_t i
    for i in range(c.n_started):
        if c.entrants[i].stage != INSIDE and c.entrants[i].late_ns <= now_ns:
            fail(c, &c.entrants[i], TROUBLE_LATE, 0)
            return


cdef void entrant_ready(Crowd* c, Entrant* e, uint32_t events) noexcept nogil:
    if e.stage == CONNECTING:
        # A write to a failed connection returns its error.
        if c.share.own is NULL:
            upgrade(c, e)
        else:
            shake_begin(c, e)
    elif e.stage != INSIDE:
        listen_to(c, e, events & EPOLLRDHUP != 0)


cdef int wait_ms(uint64_t left_ns) noexcept nogil:
    return <int>(min(<uint64_t>WAIT_NS, left_ns) // 1000000 + 1)


cdef void crowd_run(Crowd* c, uint64_t until_ns) noexcept nogil:
    cdef epoll_event events[N_EVENTS]
    cdef uint64_t expirations
    cdef uint64_t now_ns = clock_ns()
    cdef uint64_t look_ns = now_ns + WAIT_NS
    cdef int i
    cdef int n
    if c.first_ns == 0:
        c.first_ns = now_ns
    while (c.n_inside < c.n and c.trouble == NO_TROUBLE and now_ns < until_ns
           and not flag_is_set(&c.stopped)):
        crowd_enter(c, now_ns)
        if c.busy_wait:
            sched_yield()
        n = epoll_wait(c.epoll, events, N_EVENTS, 0 if c.busy_wait else wait_ms(until_ns - now_ns))
        for i in range(n):
            if events[i].data.u32 == TIMER:
                read(c.timer, &expirations, sizeof(expirations))
            else:
                entrant_ready(c, &c.entrants[events[i].data.u32], events[i].events)
        now_ns = clock_ns()
        if now_ns >= look_ns:
            crowd_hurry(c, now_ns)
            look_ns = now_ns + WAIT_NS


cdef class Logins:
    """Clients that log in; see the stub for the arguments."""

    cdef Crowd crowd
    cdef object kept                # owns the memory of the crowd

    def __cinit__(self, bytes address not None, bytes server_key not None, bytes request, infos, *,
                  bytes hello=None, bytes hello_key=None, sources=(), int at_once=64,
                  double rate=0.0, double limit_s=30.0, bint busy_wait=False):
        cdef Crowd* c = &self.crowd
        cdef bytes joined = b"".join(infos)
        cdef epoll_event event
        cdef uint32_t i
        c.epoll = c.timer = -1
        if len(server_key) != KEY_SIZE:
            raise ValueError(f"a key has {KEY_SIZE} bytes, not {len(server_key)}")
        if at_once < 1 or rate < 0 or limit_s <= 0:
            raise ValueError("at least one login at a time, at a rate and within a time above 0")
        if len({len(info) for info in infos}) > 1:
            raise ValueError("every ClientInfo must have the same size")
        self.kept = (server_key, request, joined)
        c.server_key = <const uint8_t*>PyBytes_AS_STRING(server_key)
        c.fast_start = request is None
        if not c.fast_start:
            c.request = <const uint8_t*>PyBytes_AS_STRING(request)
            c.n_request = len(request)
        c.infos = <const uint8_t*>PyBytes_AS_STRING(joined)
        c.n = len(infos)
        c.n_info = len(joined) // c.n if c.n else 0
        c.n_at_once = at_once
        c.busy_wait = busy_wait
        c.gap_ns = 1e9 / rate if rate else 0.0
        c.limit_ns = <uint64_t>(limit_s * 1e9)
        if hello is not None:
            self.share(hello, hello_key)
        c.address_size = self.put_address(&c.address, address)
        c.sources = <sockaddr_storage*>calloc(len(sources) or 1, sizeof(sockaddr_storage))
        c.entrants = <Entrant*>calloc(c.n or 1, sizeof(Entrant))
        if c.sources == NULL or c.entrants == NULL:
            raise MemoryError()
        for i in range(c.n):
            c.entrants[i].fd = -1
        for source in sources:
            if self.put_address(&c.sources[c.n_sources], source) != c.address_size:
                raise ValueError("a source is an address of the relay's family")
            c.n_sources += 1
        c.epoll = epoll_create1(EPOLL_CLOEXEC)
        c.timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        event.events = EPOLLIN
        event.data.u32 = TIMER
        if c.epoll < 0 or c.timer < 0 or epoll_ctl(c.epoll, EPOLL_CTL_ADD, c.timer, &event) < 0:
            raise OSError(errno, os.strerror(errno))

    cdef int share(self, bytes hello, bytes private) except -1:
        """Store the shared data of the clients' handshakes."""
        cdef Crowd* c = &self.crowd
        cdef bytes record = b"\x16\3\1" + len(hello).to_bytes(2, "big") + hello
        if private is None or len(private) != KEY_SIZE:
            raise ValueError("a ClientHello needs its private key, 32 bytes")
        self.kept += (record,)
        c.hello_record = <const uint8_t*>PyBytes_AS_STRING(record)
        c.n_hello_record = len(record)
        c.share.client_hello = c.hello_record + 5
        c.share.n_client_hello = len(hello)
        c.share.own = crypto.EVP_PKEY_new_raw_private_key(
            NID_X25519, NULL, <const uint8_t*>PyBytes_AS_STRING(private), KEY_SIZE)
        if c.share.own is NULL or not keyring_init(&c.keyring, N_KEYS):
            raise MemoryError
        return 0

    cdef socklen_t put_address(self, sockaddr_storage* into, bytes address) except 0:
        if not 2 < len(address) <= <Py_ssize_t>sizeof(sockaddr_storage):
            raise ValueError("not a socket address")
        memcpy(into, PyBytes_AS_STRING(address), len(address))
        return <socklen_t>len(address)

    def run(self, double seconds):
        """Continue for up to `seconds`; return whether all are logged in or `stop` was called."""
        cdef Crowd* c = &self.crowd
        cdef uint64_t until_ns = clock_ns() + <uint64_t>(seconds * 1e9)
        with nogil:
            crowd_run(c, until_ns)
        if c.trouble == TROUBLE_SYSTEM:
            raise OSError(c.code, os.strerror(c.code))
        if c.trouble == TROUBLE_LATE:
            raise TimeoutError
        if c.trouble == TROUBLE_ENDED:
            raise ConnectionError("the relay closed the connection")
        if c.trouble != NO_TROUBLE:
            raise ProtocolError(self.complaint())
        return c.n_inside == c.n or flag_is_set(&c.stopped)

    cdef str complaint(self):
        cdef Crowd* c = &self.crowd
        cdef Entrant* e = &c.entrants[c.who]
        if c.trouble == TROUBLE_TLS and c.code == HELLO_OLD:
            return "a load needs TLS 1.3"
        if c.trouble == TROUBLE_TLS and c.code == HELLO_ALERT:
            return f"TLS handshake refused with alert {e.hello.alert}"
        if c.trouble == TROUBLE_TLS:
            return "no memory left" if c.code == HELLO_NO_MEMORY else "TLS handshake failed"
        if c.trouble == TROUBLE_RECORD:
            return record_status_text(<RecordStatus>c.code).decode()
        if c.trouble == TROUBLE_ANSWER:
            said = (<const char*>e.plain.data)[:e.plain.n].split(b"\r\n")[0][:100].decode("latin-1")
            return f"it did not upgrade to DERP but answered {said!r}"
        if c.trouble == TROUBLE_FRAME:
            wanted = "ServerKey" if e.stage == GREETED else "ServerInfo"
            return f"frame {c.code:#04x} where {wanted} was expected"
        return "another relay answers at this address"

    def stop(self):
        """End the running and every later `run` within 0.1 s; may be called from any thread."""
        flag_set(&self.crowd.stopped)

    @property
    def n_inside(self):
        """The number of logged-in clients; readable while it runs."""
        return self.crowd.n_inside

    @property
    def seconds(self):
        """The time from the first connection to the last login so far, in seconds."""
        cdef Crowd* c = &self.crowd
        return (c.last_ns - c.first_ns) / 1e9 if c.n_inside else 0.0

    def members(self):
        """Return the logged-in clients once; see the stub for the members."""
        cdef Crowd* c = &self.crowd
        cdef Entrant* e
        cdef uint32_t i
        cdef size_t n
        found = []
        for i in range(c.n_started):
            e = &c.entrants[i]
            if e.stage != INSIDE or e.fd < 0:
                continue
            n = frame_size(e)
            plain = (<const char*>e.plain.data)[:e.plain.n]
            records = None
            if e.is_sealed:
                rest = (<const char*>e.wire.data)[:e.wire.n] if e.wire.n else b""
                records = record_layer_of(&e.records, rest)
                e.is_sealed = False
            found.append((i, e.fd, plain[:n], plain[n:], records))
            e.fd = -1
        return found

    def __dealloc__(self):
        cdef Crowd* c = &self.crowd
        cdef Entrant* e
        cdef uint32_t i
        for i in range(c.n if c.entrants != NULL else 0):
            e = &c.entrants[i]
            if e.fd >= 0:
                close(e.fd)
            hello_end(&e.hello, &c.keyring)
            if e.is_sealed:
                record_wipe(&e.records, NULL)
            free(e.wire.data)
            free(e.plain.data)
        crypto.EVP_PKEY_free(c.share.own)
        keyring_free(&c.keyring)
        if c.epoll >= 0:
            close(c.epoll)
        if c.timer >= 0:
            close(c.timer)
        free(c.entrants)
        free(c.sources)
