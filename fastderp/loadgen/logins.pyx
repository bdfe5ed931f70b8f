"""Logs many clients in: one epoll loop with a state machine per login.

Keys, boxes and requests are made before, so that a login costs the load far less than the relay.
The thread that calls `run` owns everything except `stopped`, and runs without the GIL.
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
    record_status_text, record_wipe,
)
from fastderp.loadgen.hello cimport (
    HELLO_ALERT, HELLO_ANSWER_MAX, HELLO_DONE, HELLO_MORE, HELLO_NO_MEMORY, HELLO_OLD, Hello,
    HelloStatus, Share, hello_end, hello_take,
)
from fastderp.loadgen.load cimport Bytes, FRAME_HEAD, KEY_SIZE
from fastderp.loadgen.sys cimport (
    CLOCK_MONOTONIC, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP,
    IP_BIND_ADDRESS_NO_PORT, IPPROTO_IP, IPPROTO_TCP, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_CLOEXEC,
    SOCK_NONBLOCK, SOCK_STREAM, TCP_NODELAY, TCP_NOTSENT_LOWAT, TFD_CLOEXEC, TFD_NONBLOCK,
    TFD_TIMER_ABSTIME, bind, clock_ns, close, connect, epoll_create1, epoll_ctl, epoll_event,
    epoll_wait, flag_is_set, flag_set, itimerspec, memmem, read, recv, sched_yield, send,
    setsockopt, sockaddr, sockaddr_storage, socket, socklen_t, timerfd_create, timerfd_settime,
)
from fastderp.tls.openssl cimport NID_X25519, crypto

from fastderp.errors import ProtocolError

cdef enum:
    SERVER_KEY = 0x01
    SERVER_INFO = 0x03
    KEY_AT = FRAME_HEAD + 8         # behind the magic of ServerKey
    ANSWER_MAX = 16384              # bytes; a relay sends a few hundred during a login
    INPUT = 65536
    OUTPUT = 8192                   # bytes; the longest message of a client is its ClientHello
    N_EVENTS = 256
    N_KEYS = 256                    # expanded keys; each login uses two at a time
    TIMER = 0xFFFFFFFF              # epoll's data for the timer; clients have their number
    WAIT_NS = 100000000             # the longest delay until a stop or a late login is noticed

# A longer queue of unsent bytes in a sender's kernel would measure the load, not the relay.
cdef int NOT_SENT_LIMIT_BYTES = 32768
cdef int ON = 1

cdef enum Stage:
    # IDLE ─► CONNECTING ─┬─► HANDSHAKE (TLS) ─┬─► UPGRADE ─┬─► SERVER_KEY ─► SERVER_INFO ─► DONE
    #                     └────────────────────┘ fast start ┘
    STAGE_IDLE
    STAGE_CONNECTING
    STAGE_HANDSHAKE
    STAGE_UPGRADE                   # waits for the 101
    STAGE_SERVER_KEY                # waits for ServerKey; with a fast start ClientInfo is sent
    STAGE_SERVER_INFO               # ClientInfo is sent; waits for ServerInfo
    STAGE_DONE                      # logged in

cdef enum Failure:
    NO_FAILURE
    FAILURE_SYSTEM                  # code: errno
    FAILURE_ENDED                   # the relay closed the connection
    FAILURE_TLS                     # code: HelloStatus
    FAILURE_RECORD                  # code: RecordStatus
    FAILURE_ANSWER                  # no 101, or a response without an end
    FAILURE_FRAME                   # code: the type of the unexpected frame
    FAILURE_KEY                     # the key of another relay
    FAILURE_LATE

cdef struct Login:                # one login; owned by the thread that calls `run`
    int fd
    Stage stage
    uint64_t late_ns                # the deadline of the login
    Hello hello                     # in STAGE_HANDSHAKE
    Records records                 # over TLS, after STAGE_HANDSHAKE
    Bytes wire                      # an incomplete record
    Bytes plain                     # bytes read and not yet parsed
    bint is_sealed                  # records are in use

cdef struct Crowd:                  # owned by the thread that calls `run`, except `stopped`
    Share share                     # of TLS; own is NULL over plain TCP
    int epoll
    int timer
    int stopped                     # set by any thread, through flag_set
    sockaddr_storage address
    socklen_t address_size
    sockaddr_storage* sources       # used in rotation
    uint32_t n_sources
    Keyring keyring                 # over TLS, for logins in progress
    const uint8_t* hello_record     # the ClientHello with its record header
    size_t n_hello_record
    const uint8_t* request          # NULL with a fast start
    size_t n_request
    bint fast_start
    const uint8_t* server_key
    # every client's ClientInfo frame, all of one size; with a fast start each follows its request
    const uint8_t* infos
    size_t n_info
    Login* logins
    uint32_t n
    uint32_t n_started
    uint32_t n_logged_in
    uint32_t n_at_once
    double gap_ns                   # between two logins of the schedule; 0 = as fast as possible
    uint64_t first_ns
    uint64_t last_ns                # the time of the latest login
    uint64_t limit_ns               # for one login
    bint busy_wait
    Failure failure                 # of the first login that failed
    unsigned long code
    uint32_t n_failed               # the number of that login's client
    uint8_t input[INPUT]
    uint8_t output[OUTPUT]
    uint8_t opened[ANSWER_MAX + INPUT + RECORD_WIRE_MAX]


cdef bint bytes_add(Bytes* b, const uint8_t* data, size_t n) noexcept nogil:
    """Append data. False when memory is out."""
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


cdef bint fail(Crowd* c, Login* e, Failure failure, unsigned long code) noexcept nogil:
    """Record the first failure; return False, for the caller to return."""
    if c.failure == NO_FAILURE:
        c.failure = failure
        c.code = code
        c.n_failed = <uint32_t>(e - c.logins)
    return False


# Sending.

cdef bint bytes_send(Crowd* c, Login* e, const uint8_t* data, size_t n) noexcept nogil:
    """Send all bytes: a fresh socket has room for the messages of a login, or is broken."""
    cdef ssize_t taken = send(e.fd, data, n, MSG_DONTWAIT | MSG_NOSIGNAL)
    if taken < 0:
        return fail(c, e, FAILURE_SYSTEM, errno)
    return <size_t>taken == n or fail(c, e, FAILURE_SYSTEM, ENOBUFS)


cdef bint client_send(Crowd* c, Login* e, const uint8_t* data, size_t n) noexcept nogil:
    cdef iovec part
    cdef size_t n_wire = 0
    cdef RecordStatus status
    if not e.is_sealed:
        return bytes_send(c, e, data, n)
    part.iov_base = <void*>data
    part.iov_len = n
    status = record_seal(&e.records, &c.keyring, &part, 1, c.output, OUTPUT, &n_wire)
    if status != RECORD_OK:
        return fail(c, e, FAILURE_RECORD, status)
    return bytes_send(c, e, c.output, n_wire)


# TLS.

cdef bint handshake_begin(Crowd* c, Login* e) noexcept nogil:
    e.stage = STAGE_HANDSHAKE
    return bytes_send(c, e, c.hello_record, c.n_hello_record)


cdef bint handshake_continue(Crowd* c, Login* e) noexcept nogil:
    """Continue the handshake with the input; after its end send the upgrade over records."""
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
        return fail(c, e, FAILURE_TLS, status)
    hello_end(&e.hello, &c.keyring)
    e.is_sealed = True
    return bytes_send(c, e, answer, n_answer) and upgrade_send(c, e)


# The login.

cdef bint client_connect(Crowd* c, Login* e) noexcept nogil:
    """Open the next client's connection."""
    cdef uint32_t number = <uint32_t>(e - c.logins)
    cdef sockaddr_storage* source
    cdef epoll_event event
    e.fd = socket(c.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if e.fd < 0:
        return fail(c, e, FAILURE_SYSTEM, errno)
    e.stage = STAGE_CONNECTING
    if c.n_sources:
        # connect() chooses the port: bind() would reserve it for all destinations.
        source = &c.sources[number % c.n_sources]
        setsockopt(e.fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &ON, sizeof(ON))
        if bind(e.fd, <sockaddr*>source, c.address_size) < 0:
            return fail(c, e, FAILURE_SYSTEM, errno)
    setsockopt(e.fd, IPPROTO_TCP, TCP_NODELAY, &ON, sizeof(ON))
    setsockopt(e.fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &NOT_SENT_LIMIT_BYTES,
               sizeof(NOT_SENT_LIMIT_BYTES))
    if connect(e.fd, <sockaddr*>&c.address, c.address_size) < 0 and errno != EINPROGRESS:
        return fail(c, e, FAILURE_SYSTEM, errno)
    # EPOLLET reports each change once, so one epoll_ctl call serves the whole login.
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
    event.data.u32 = number
    if epoll_ctl(c.epoll, EPOLL_CTL_ADD, e.fd, &event) == 0:
        return True
    return fail(c, e, FAILURE_SYSTEM, errno)


cdef bint upgrade_send(Crowd* c, Login* e) noexcept nogil:
    if c.fast_start:
        e.stage = STAGE_SERVER_KEY
        return client_info_send(c, e)
    e.stage = STAGE_UPGRADE
    return client_send(c, e, c.request, c.n_request)


cdef bint client_info_send(Crowd* c, Login* e) noexcept nogil:
    return client_send(c, e, c.infos + <size_t>(e - c.logins) * c.n_info, c.n_info)


cdef bint client_read(Crowd* c, Login* e, bint to_the_end) noexcept nogil:
    """Read what the socket has; with `to_the_end` up to the end of the stream.

    epoll reports that end only once.
    """
    cdef ssize_t n = INPUT
    while (n == INPUT or to_the_end) and e.stage != STAGE_DONE:
        n = recv(e.fd, c.input, INPUT, MSG_DONTWAIT)
        if n < 0:
            return errno == EAGAIN or errno == EINTR or fail(c, e, FAILURE_SYSTEM, errno)
        if n == 0:
            return fail(c, e, FAILURE_ENDED, 0)
        if not bytes_received(c, e, c.input, n):
            return False
    return True


cdef bint bytes_received(Crowd* c, Login* e, const uint8_t* data, size_t n) noexcept nogil:
    """Process bytes from the socket."""
    if e.stage != STAGE_HANDSHAKE and not e.is_sealed:
        return plain_received(c, e, data, n)
    if not bytes_add(&e.wire, data, n):
        return fail(c, e, FAILURE_SYSTEM, ENOMEM)
    if e.stage == STAGE_HANDSHAKE and not handshake_continue(c, e):
        return False
    return e.stage == STAGE_HANDSHAKE or e.wire.n == 0 or records_received(c, e)


cdef bint records_received(Crowd* c, Login* e) noexcept nogil:
    cdef size_t consumed = 0
    cdef size_t produced = 0
    cdef RecordStatus status = record_open(
        &e.records, &c.keyring, e.wire.data, e.wire.n, c.opened, sizeof(c.opened), &consumed,
        &produced)
    bytes_cut(&e.wire, consumed)
    if status != RECORD_OK:
        return fail(c, e, FAILURE_RECORD, status)
    return produced == 0 or plain_received(c, e, c.opened, produced)


cdef bint plain_received(Crowd* c, Login* e, const uint8_t* data, size_t n) noexcept nogil:
    if not bytes_add(&e.plain, data, n):
        return fail(c, e, FAILURE_SYSTEM, ENOMEM)
    return messages_process(c, e)


cdef bint messages_process(Crowd* c, Login* e) noexcept nogil:
    """Process the complete messages in `plain`."""
    cdef size_t n
    if e.stage == STAGE_UPGRADE:
        n = answer_size(e)
        if n == 0:
            return e.plain.n <= ANSWER_MAX or fail(c, e, FAILURE_ANSWER, 0)
        if not answer_is_upgrade(e):
            return fail(c, e, FAILURE_ANSWER, 0)
        bytes_cut(&e.plain, n)
        e.stage = STAGE_SERVER_KEY
    if e.stage == STAGE_SERVER_KEY:
        n = frame_size(e)
        if n == 0:
            return True
        if e.plain.data[0] != SERVER_KEY or n < KEY_AT + KEY_SIZE or n > ANSWER_MAX:
            return fail(c, e, FAILURE_FRAME, e.plain.data[0])
        if e.plain.n < n:
            return True
        if memcmp(e.plain.data + KEY_AT, c.server_key, KEY_SIZE) != 0:
            return fail(c, e, FAILURE_KEY, 0)
        bytes_cut(&e.plain, n)
        e.stage = STAGE_SERVER_INFO
        if not c.fast_start and not client_info_send(c, e):
            return False
    if e.stage == STAGE_SERVER_INFO:
        n = frame_size(e)
        if n == 0:
            return True
        if e.plain.data[0] != SERVER_INFO or n > ANSWER_MAX:
            return fail(c, e, FAILURE_FRAME, e.plain.data[0])
        if e.plain.n >= n:
            login_finish(c, e)
    return True


cdef void login_finish(Crowd* c, Login* e) noexcept nogil:
    """Finish a login; its ServerInfo stays at the start of `plain` for members()."""
    e.stage = STAGE_DONE
    c.n_logged_in += 1
    c.last_ns = clock_ns()


cdef size_t answer_size(Login* e) noexcept nogil:
    """Return the size of the HTTP response head, 0 while it is incomplete."""
    cdef void* end = memmem(e.plain.data, e.plain.n, b"\r\n\r\n", 4) if e.plain.n else NULL
    return <size_t>(<uint8_t*>end - e.plain.data) + 4 if end != NULL else 0


cdef bint answer_is_upgrade(Login* e) noexcept nogil:
    return (e.plain.n >= 12 and memcmp(e.plain.data, b"HTTP/1.", 7) == 0
            and memcmp(e.plain.data + 8, b" 101", 4) == 0)


cdef size_t frame_size(Login* e) noexcept nogil:
    """Return the size of the next frame, 0 while its header is incomplete."""
    cdef const uint8_t* p = e.plain.data
    if e.plain.n < FRAME_HEAD:
        return 0
    return FRAME_HEAD + ((<size_t>p[1] << 24) | (<size_t>p[2] << 16) | (<size_t>p[3] << 8) | p[4])


# Time.

cdef void logins_begin(Crowd* c, uint64_t now_ns) noexcept nogil:
    """Begin the logins that are due, up to n_at_once at a time."""
    cdef Login* e
    cdef uint64_t due_ns
    while (c.n_started < c.n and c.n_started - c.n_logged_in < c.n_at_once
           and c.failure == NO_FAILURE):
        due_ns = c.first_ns + <uint64_t>(c.n_started * c.gap_ns)
        if due_ns > now_ns:
            timer_set(c, due_ns)
            return
        e = &c.logins[c.n_started]
        c.n_started += 1
        e.late_ns = now_ns + c.limit_ns
        client_connect(c, e)


cdef void timer_set(Crowd* c, uint64_t when_ns) noexcept nogil:
    cdef itimerspec wake
    wake.it_interval.tv_sec = wake.it_interval.tv_nsec = 0
    wake.it_value.tv_sec = <long>(when_ns // 1000000000)
    wake.it_value.tv_nsec = <long>(when_ns % 1000000000)
    timerfd_settime(c.timer, TFD_TIMER_ABSTIME, &wake, NULL)


cdef void deadlines_check(Crowd* c, uint64_t now_ns) noexcept nogil:
    """Fail at a login that takes longer than limit_ns."""
    cdef uint32_t i
    for i in range(c.n_started):
        if c.logins[i].stage != STAGE_DONE and c.logins[i].late_ns <= now_ns:
            fail(c, &c.logins[i], FAILURE_LATE, 0)
            return


cdef void login_event(Crowd* c, Login* e, uint32_t events) noexcept nogil:
    if e.stage == STAGE_CONNECTING:
        # The first write reports a connection that failed.
        if c.share.own is NULL:
            upgrade_send(c, e)
        else:
            handshake_begin(c, e)
    elif e.stage != STAGE_DONE:
        client_read(c, e, events & EPOLLRDHUP != 0)


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
    while (c.n_logged_in < c.n and c.failure == NO_FAILURE and now_ns < until_ns
           and not flag_is_set(&c.stopped)):
        logins_begin(c, now_ns)
        if c.busy_wait:
            sched_yield()
        n = epoll_wait(c.epoll, events, N_EVENTS,
                       0 if c.busy_wait else wait_ms(until_ns - now_ns))
        for i in range(n):
            if events[i].data.u32 == TIMER:
                read(c.timer, &expirations, sizeof(expirations))
            else:
                login_event(c, &c.logins[events[i].data.u32], events[i].events)
        now_ns = clock_ns()
        if now_ns >= look_ns:
            deadlines_check(c, now_ns)
            look_ns = now_ns + WAIT_NS


cdef class Logins:
    """Clients that log in; the stub describes the arguments."""

    cdef Crowd crowd
    cdef object kept                # owns the memory that the crowd points to

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
            raise ValueError(
                "at_once must be 1 or more, rate must not be negative, limit_s must be positive,"
                f" but they are {at_once}, {rate} and {limit_s}")
        if len({len(info) for info in infos}) > 1:
            raise ValueError("all ClientInfo frames must have the same size")
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
        c.logins = <Login*>calloc(c.n or 1, sizeof(Login))
        if c.sources == NULL or c.logins == NULL:
            raise MemoryError()
        for i in range(c.n):
            c.logins[i].fd = -1
        for source in sources:
            if self.put_address(&c.sources[c.n_sources], source) != c.address_size:
                raise ValueError("every source must have the address family of the relay")
            c.n_sources += 1
        c.epoll = epoll_create1(EPOLL_CLOEXEC)
        c.timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        event.events = EPOLLIN
        event.data.u32 = TIMER
        if c.epoll < 0 or c.timer < 0 or epoll_ctl(c.epoll, EPOLL_CTL_ADD, c.timer, &event) < 0:
            raise OSError(errno, os.strerror(errno))

    cdef int share(self, bytes hello, bytes private) except -1:
        """Keep the ClientHello and key that all handshakes share."""
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
            raise ValueError(f"a socket address of {len(address)} bytes is not valid")
        memcpy(into, PyBytes_AS_STRING(address), len(address))
        return <socklen_t>len(address)

    def run(self, double seconds):
        """Log clients in for up to `seconds`; return True when all are in or `stop` was called."""
        cdef Crowd* c = &self.crowd
        cdef uint64_t until_ns = clock_ns() + <uint64_t>(seconds * 1e9)
        with nogil:
            crowd_run(c, until_ns)
        if c.failure == FAILURE_SYSTEM:
            raise OSError(c.code, os.strerror(c.code))
        if c.failure == FAILURE_LATE:
            raise TimeoutError
        if c.failure == FAILURE_ENDED:
            raise ConnectionError("the relay closed the connection")
        if c.failure != NO_FAILURE:
            raise ProtocolError(self.failure_text())
        return c.n_logged_in == c.n or flag_is_set(&c.stopped)

    cdef str failure_text(self):
        cdef Crowd* c = &self.crowd
        cdef Login* e = &c.logins[c.n_failed]
        if c.failure == FAILURE_TLS and c.code == HELLO_OLD:
            return "a load needs TLS 1.3, but the relay does not speak it"
        if c.failure == FAILURE_TLS and c.code == HELLO_ALERT:
            return f"the relay refused the TLS handshake with alert {e.hello.alert}"
        if c.failure == FAILURE_TLS:
            return "no memory left" if c.code == HELLO_NO_MEMORY else "TLS handshake failed"
        if c.failure == FAILURE_RECORD:
            return record_status_text(<RecordStatus>c.code).decode()
        if c.failure == FAILURE_ANSWER:
            said = (<const char*>e.plain.data)[:e.plain.n].split(b"\r\n")[0][:100].decode("latin-1")
            return f"the relay did not upgrade to DERP but answered {said!r}"
        if c.failure == FAILURE_FRAME:
            wanted = "ServerKey" if e.stage == STAGE_SERVER_KEY else "ServerInfo"
            return f"the relay sent frame {c.code:#04x} instead of {wanted}"
        return "a relay with another key answers at this address"

    def stop(self):
        """End the current and every later `run` within 0.1 s. Any thread may call it."""
        flag_set(&self.crowd.stopped)

    @property
    def n_logged_in(self):
        """The number of logged-in clients, also during `run`."""
        return self.crowd.n_logged_in

    @property
    def seconds(self):
        """The time from the first connection to the latest login."""
        cdef Crowd* c = &self.crowd
        return (c.last_ns - c.first_ns) / 1e9 if c.n_logged_in else 0.0

    def members(self):
        """Return the logged-in clients and hand their connections over; the stub has the fields."""
        cdef Crowd* c = &self.crowd
        cdef Login* e
        cdef uint32_t i
        cdef size_t n
        found = []
        for i in range(c.n_started):
            e = &c.logins[i]
            if e.stage != STAGE_DONE or e.fd < 0:
                continue
            n = frame_size(e)
            plain = (<const char*>e.plain.data)[:e.plain.n]
            records = None
            if e.is_sealed:
                pending = (<const char*>e.wire.data)[:e.wire.n] if e.wire.n else b""
                records = record_layer_of(&e.records, pending)
                e.is_sealed = False
            found.append((i, e.fd, plain[:n], plain[n:], records))
            e.fd = -1
        return found

    def __dealloc__(self):
        cdef Crowd* c = &self.crowd
        cdef Login* e
        cdef uint32_t i
        for i in range(c.n if c.logins != NULL else 0):
            e = &c.logins[i]
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
        free(c.logins)
        free(c.sources)
