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
    KEY_AT = FRAME_HEAD + 8         # after the magic of ServerKey
    ANSWER_MAX = 16384              # bytes; a relay sends a few hundred during a login
    INPUT = 65536
    OUTPUT = 8192                   # bytes; the longest message of a client is its ClientHello
    N_EVENTS = 256
    N_KEYS = 256                    # expanded keys; each login uses two at a time
    TIMER = 0xFFFFFFFF              # epoll's data for the timer; clients have their number
    WAIT_NS = 100000000             # the longest delay before a stop or a late login is handled

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


include "login_machine.pxi"


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
