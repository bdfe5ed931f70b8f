"""TLS handshakes by OpenSSL through memory buffers, for either side of a connection.

Control plane. A Handshake belongs to the task that made it; `step` runs without the GIL and may run
in a helper thread, while the owner calls `feed` and `take_output`. A finished TLS 1.3 handshake
becomes a RecordLayer, and its OpenSSL object is freed; TLS 1.2 continues through OpenSSL.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcmp

from fastderp.tls.record cimport record_layer_new, record_secret_size
from fastderp.tls.context cimport (
    ClientContext, Context, ServerContext, Watch, certificate_to_der, first_reason, reason_text,
    sha256,
)
from fastderp.tls.key_schedule cimport TrafficSecrets, key_schedule_write_to
from fastderp.tls.openssl cimport (
    BIO, BIO_CTRL_PENDING, NID_COMMON_NAME, OPENSSL_STACK, SSL, SSL_AD_INTERNAL_ERROR,
    SSL_AD_UNRECOGNIZED_NAME, SSL_CTRL_MODE, SSL_CTRL_SET_TLSEXT_HOSTNAME,
    SSL_ERROR_WANT_CLIENT_HELLO_CB, SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE,
    SSL_ERROR_ZERO_RETURN, SSL_MODE_RELEASE_BUFFERS, TLS1_3_VERSION, X509,
    X509_CHECK_FLAG_NEVER_CHECK_SUBJECT, X509_VERIFY_PARAM, crypto, ssl,
)

from _thread import allocate_lock
from typing import NamedTuple

from fastderp.tls.errors import TlsError
from fastderp.util.net import host_bytes, is_address

# More than the largest ClientHello or certificate chain that OpenSSL takes: more input is a flood.
INPUT_MAX_BYTES = 512 * 1024

CAUSES = (
    "plain_http", "not_tls", "version", "no_shared", "server_name", "no_certificate",
    "certificate", "alert", "protocol", "flood", "closed",
)

# Reasons in the words of OpenSSL and AWS-LC (context.reason_text), whose numbers differ.
_REASONS = {
    "certificate verify failed": "certificate",
    "http request": "plain_http",
    "https proxy request": "plain_http",
    "no application protocol": "no_shared",
    "no common signature algorithms": "no_shared",
    "no shared cipher": "no_shared",
    "no shared group": "no_shared",
    "no suitable key share": "no_shared",
    "no suitable signature algorithm": "no_shared",
    "unknown protocol": "version",
    "unsupported protocol": "version",
    "version too low": "version",
    "wrong ssl version": "version",
}
# Reasons from here on are alerts of the peer, by their description (ssl.h).
_ALERTS = 1000
_PROTOCOL_VERSION_ALERT = _ALERTS + 70
_HTTP_HEADS = (b"GET /", b"HEAD ", b"POST ", b"PUT /", b"OPTIO", b"CONNE", b"DELET", b"PATCH")


class ClientHello(NamedTuple):
    # See handshake.pyi.
    server_name: str | None
    alpn: tuple[str, ...]


cdef class Handshake:
    """See handshake.pyi."""

    cdef Context context
    cdef SSL* connection      # freed by records(), an error, or the end of this object
    cdef BIO* source          # owned by connection
    cdef BIO* sink            # owned by connection
    cdef Watch watch
    cdef object lock          # guards input, output, head and stepping
    cdef bytearray input      # fed, not yet given to OpenSSL
    cdef bytearray output
    cdef bytes head           # the peer's first bytes, to recognise plain HTTP
    cdef bint stepping
    cdef readonly bint done
    cdef readonly bint eof
    cdef readonly object hello  # None unless a certificate is to be chosen
    cdef object refusal
    cdef readonly str version
    cdef readonly str cipher
    cdef readonly str server_name
    cdef readonly str alpn
    cdef readonly list peer_chain
    cdef bytes pinned_name    # name that a pinned certificate must have; None for an address

    def __init__(self, Context context not None, server_name=None, *, cert_name=None):
        if self.connection is not NULL:
            raise RuntimeError("a handshake is initialised once")
        self.context = context
        self.lock = allocate_lock()
        self.input = bytearray()
        self.output = bytearray()
        self.head = b""
        self.peer_chain = []
        self._open()
        if context.is_server:
            ssl.SSL_set_accept_state(self.connection)
        else:
            ssl.SSL_set_connect_state(self.connection)
            self._name_server(server_name, cert_name or server_name)

    def __dealloc__(self):
        self._free()

    cdef int _open(self) except -1:
        crypto.ERR_clear_error()
        self.connection = ssl.SSL_new(self.context.ctx)
        self.source = crypto.BIO_new(crypto.BIO_s_mem())
        self.sink = crypto.BIO_new(crypto.BIO_s_mem())
        if self.connection is NULL or self.source is NULL or self.sink is NULL:
            crypto.BIO_free(self.source)
            crypto.BIO_free(self.sink)
            raise MemoryError
        ssl.SSL_set_bio(self.connection, self.source, self.sink)
        ssl.SSL_set_ex_data(self.connection, 0, &self.watch)
        return 0

    cdef int _name_server(self, server_name, cert_name) except -1:
        """Send and check the server's name; an address is checked but never sent (RFC 6066 §3)."""
        cdef X509_VERIFY_PARAM* param = ssl.SSL_get0_param(self.connection)
        cdef bytes name
        cdef int ok = 1
        if server_name and not is_address(server_name):
            name = host_bytes(server_name)
            ok = ssl.SSL_ctrl(self.connection, SSL_CTRL_SET_TLSEXT_HOSTNAME, 0, <char*>name)
            self.pinned_name = name
        if ok and (<ClientContext>self.context).verify:
            if not cert_name:
                raise ValueError("a server name is needed to verify its certificate")
            if is_address(cert_name):
                ok = crypto.X509_VERIFY_PARAM_set1_ip_asc(param, cert_name.encode())
            else:
                name = host_bytes(cert_name)
                ok = crypto.X509_VERIFY_PARAM_set1_host(param, name, len(name))
        if not ok:
            raise ValueError(f"not a server name: {server_name!r}")
        return 0

    cdef void _free(self) noexcept:
        if self.connection is not NULL:
            ssl.SSL_free(self.connection)
            self.connection = NULL
        crypto.OPENSSL_cleanse(&self.watch, sizeof(Watch))

    def choose(self, ServerContext context not None):
        self._alive()
        if self.hello is None:
            raise RuntimeError("no certificate is to be chosen")
        if ssl.SSL_set_SSL_CTX(self.connection, context.ctx) is NULL:
            raise MemoryError
        self.context = context
        self.hello = None

    def refuse(self, refusal not None):
        self.watch.alert = (
            SSL_AD_UNRECOGNIZED_NAME if refusal.cause == "server_name" else SSL_AD_INTERNAL_ERROR
        )
        self.refusal = refusal
        self.hello = None

    def feed(self, data not None):
        self._alive()
        with self.lock:
            if len(self.input) + len(data) > INPUT_MAX_BYTES:
                raise TlsError("flood", f"more than {INPUT_MAX_BYTES} bytes wait for the handshake")
            if len(self.head) < 5:
                self.head += bytes(data[:5 - len(self.head)])
            self.input += data

    @property
    def unread_bytes(self):
        with self.lock:
            n_bytes = len(self.input)
        if self.connection is not NULL:
            n_bytes += crypto.BIO_ctrl(self.source, BIO_CTRL_PENDING, 0, NULL)
        return n_bytes

    def take_output(self):
        with self.lock:
            output = bytes(self.output)
            self.output.clear()
        return output

    def step(self):
        cdef int result, error
        cdef unsigned long code
        if self.done:
            return True
        self._alive()
        with self.lock:
            if self.stepping:
                raise RuntimeError("one step at a time")
            self.stepping = True
        try:
            while True:
                self._push_input()
                with nogil:
                    crypto.ERR_clear_error()
                    key_schedule_write_to(&self.watch.secrets)
                    result = ssl.SSL_do_handshake(self.connection)
                    key_schedule_write_to(NULL)
                    error = ssl.SSL_get_error(self.connection, result)
                    code = crypto.ERR_get_error()
                    crypto.ERR_clear_error()
                self._pull_output()
                if result == 1:
                    self._finish()
                    return True
                if error == SSL_ERROR_WANT_CLIENT_HELLO_CB:
                    self.hello = self._client_hello()
                    return False
                if error != SSL_ERROR_WANT_READ and error != SSL_ERROR_WANT_WRITE:
                    raise self._failure(code)
                if not self.input:
                    return False
        except TlsError:
            self._free()
            raise
        finally:
            with self.lock:
                self.stepping = False

    cdef int _push_input(self) except -1:
        """Hand what was fed over to OpenSSL."""
        cdef bytes data
        with self.lock:
            data = bytes(self.input)
            self.input.clear()
        if data and crypto.BIO_write(self.source, <const char*>data, <int>len(data)) != len(data):
            raise MemoryError
        return 0

    cdef bint _pull_output(self) except -1:
        """Take OpenSSL's output over; return whether there was any."""
        cdef bytes data = bio_take(self.sink)
        if data:
            with self.lock:
                self.output += data
        return bool(data)

    cdef object _client_hello(self):
        """Return what `on_client_hello` has kept."""
        cdef const Watch* w = &self.watch
        protocols, rest = [], bytes(w.alpn[:w.n_alpn])
        while rest:
            protocols.append(rest[1:1 + rest[0]].decode("ascii", "replace"))
            rest = rest[1 + rest[0]:]
        return ClientHello(self._asked_name(), tuple(protocols))

    cdef object _asked_name(self):
        """Return the server name that OpenSSL's callbacks have seen in the ClientHello, or None."""
        cdef const Watch* w = &self.watch
        if w.n_server_name == 0:
            return None
        return bytes(w.server_name[:w.n_server_name]).decode("ascii", "replace")

    cdef object _failure(self, unsigned long code):
        """Return the exception for OpenSSL's error `code`."""
        cdef int reason = code & 0xFFF  # 12 bits in OpenSSL 1.1.1; libssl has no larger reason
        cdef long verified
        text = reason_text(code)
        name = self._asked_name()
        with self.lock:
            head = self.head
        if self.refusal is not None:
            return self.refusal
        if self.watch.name_refused:
            wanted = (<ServerContext>self.context).policy.server_name.decode()
            asked = f"asked for {name!r}" if name else "sent no server name"
            return TlsError("server_name", f"the client {asked}; only {wanted!r} is served")
        if self.context.is_server and head.startswith(_HTTP_HEADS):
            return TlsError("plain_http", "plain HTTP on a TLS port")
        if head and head[0] != 22:
            return TlsError("not_tls", f"the peer does not speak TLS: {text}")
        if reason == _PROTOCOL_VERSION_ALERT:
            cause = "version"
        else:
            cause = "alert" if reason > _ALERTS else _REASONS.get(text, "protocol")
        if cause == "certificate":
            verified = ssl.SSL_get_verify_result(self.connection)
            text = f"{text}: {crypto.X509_verify_cert_error_string(verified).decode()}"
        if name:
            text = f"{text}; the client asked for {name!r}"
        return TlsError(cause, f"TLS handshake failed: {text}")

    cdef int _finish(self) except -1:
        """Read what the handshake agreed on."""
        cdef const uint8_t* alpn = NULL
        cdef unsigned int n_alpn = 0
        cdef const char* name = ssl.SSL_get_servername(self.connection, 0)
        cdef bint is_13 = ssl.SSL_version(self.connection) == TLS1_3_VERSION
        self.version = "TLSv1.3" if is_13 else "TLSv1.2"
        if self.version == "TLSv1.2":
            # Set after the handshake: during it, this mode would allocate the buffers for each
            # record.
            ssl.SSL_ctrl(self.connection, SSL_CTRL_MODE, SSL_MODE_RELEASE_BUFFERS, NULL)
        self.cipher = ssl.SSL_CIPHER_get_name(ssl.SSL_get_current_cipher(self.connection)).decode()
        self.server_name = name.decode("ascii", "replace") if name is not NULL else None
        ssl.SSL_get0_alpn_selected(self.connection, &alpn, &n_alpn)
        self.alpn = (<const char*>alpn)[:n_alpn].decode("ascii", "replace") if n_alpn else None
        if not self.context.is_server:
            self.peer_chain = chain_to_der(ssl.SSL_get_peer_cert_chain(self.connection))
            if (<ClientContext>self.context).pin is not None:
                self._check_pin((<ClientContext>self.context).pin)
        self.done = True
        return 0

    cdef int _check_pin(self, bytes pin) except -1:
        """Check the leaf, whose key has signed this handshake, and the rest (PROTOCOL §13)."""
        cdef OPENSSL_STACK* chain = ssl.SSL_get_peer_cert_chain(self.connection)
        cdef X509* leaf
        cdef int i
        if not self.peer_chain:
            self._refuse("the server presents no certificate")
        leaf = <X509*>crypto.OPENSSL_sk_value(chain, 0)
        # The relay discards a metacert's own key, so a metacert as a leaf is forged.
        if is_metacert(leaf) or sha256(self.peer_chain[0]) != pin:
            self._refuse("the server's certificate is not the pinned one")
        for i in range(1, crypto.OPENSSL_sk_num(chain)):
            if not is_metacert(<X509*>crypto.OPENSSL_sk_value(chain, i)):
                self._refuse("the server presents more certificates than the pinned one")
        if self.pinned_name and crypto.X509_check_host(
            leaf, self.pinned_name, len(self.pinned_name), X509_CHECK_FLAG_NEVER_CHECK_SUBJECT, NULL
        ) != 1:
            self._refuse(
                f"the server's certificate is pinned, but not for {self.pinned_name.decode()}"
            )
        if (
            crypto.X509_cmp_current_time(crypto.X509_get0_notBefore(leaf)) >= 0
            or crypto.X509_cmp_current_time(crypto.X509_get0_notAfter(leaf)) <= 0
        ):
            self._refuse("the server's certificate is pinned, but not valid now")
        return 0

    cdef int _refuse(self, str why) except -1:
        with self.lock:
            self.output.clear()  # our Finished must not complete a handshake that is refused
        raise TlsError("certificate", why)

    cdef int _alive(self) except -1:
        if self.connection is NULL:
            raise TlsError("closed", "this handshake has ended")
        return 0

    cdef int _usable(self) except -1:
        self._alive()
        if not self.done:
            raise RuntimeError("the handshake is not done")
        return 0

    def records(self):
        cdef const TrafficSecrets* secrets = &self.watch.secrets
        cdef bint server = self.context.is_server
        cdef uint16_t suite
        self._usable()
        if self.version != "TLSv1.3":
            raise RuntimeError(f"{self.version} continues through read and write")
        suite = ssl.SSL_CIPHER_get_protocol_id(ssl.SSL_get_current_cipher(self.connection))
        size = record_secret_size(suite)
        if (
            size == 0 or secrets.n_client != size or secrets.n_server != size
            or ssl.SSL_has_pending(self.connection)
        ):
            raise TlsError("protocol", "OpenSSL did not give the traffic secrets")
        try:
            with self.lock:
                unread = bio_take(self.source) + self.input
                self.input.clear()
            if server:
                return record_layer_new(suite, False, secrets.client, secrets.server, unread)
            return record_layer_new(suite, True, secrets.server, secrets.client, unread)
        finally:
            self._free()

    def read(self, int n=65536):
        cdef bytes data
        cdef int result, error
        cdef unsigned long code
        cdef char* target
        cdef bint answered
        self._usable()
        self._push_input()
        data = bytes(max(n, 2))  # never Python's shared one-byte objects
        target = <char*>data  # not shared until returned
        with nogil:
            crypto.ERR_clear_error()
            result = ssl.SSL_read(self.connection, target, n)
            error = ssl.SSL_get_error(self.connection, result)
            code = crypto.ERR_get_error()
            crypto.ERR_clear_error()
        answered = self._pull_output()
        if result <= 0 and error not in (
            SSL_ERROR_ZERO_RETURN, SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE
        ):
            cause = "alert" if code & 0xFFF > _ALERTS else "protocol"
            raise TlsError(cause, f"TLS failed: {reason_text(code)}")
        if answered:
            # OpenSSL would go on, and its warnings for a flood of attempts would fill the output.
            raise TlsError("protocol", "TLS failed: no renegotiation")
        self.eof |= result <= 0 and error == SSL_ERROR_ZERO_RETURN
        return data[:max(result, 0)]

    def write(self, data not None):
        cdef Py_buffer view
        cdef int result, n
        self._usable()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        n = <int>min(view.len, 1 << 30)
        with nogil:
            crypto.ERR_clear_error()
            result = ssl.SSL_write(self.connection, view.buf, n) if n else 0
        PyBuffer_Release(&view)
        self._pull_output()
        if result != n:
            raise TlsError("protocol", f"TLS failed: {first_reason()}")

    def close_notify(self):
        self._usable()
        crypto.ERR_clear_error()
        ssl.SSL_shutdown(self.connection)
        self._pull_output()


cdef bytes bio_take(BIO* bio):
    """Remove and return all bytes of a memory buffer."""
    cdef long n = crypto.BIO_ctrl(bio, BIO_CTRL_PENDING, 0, NULL)
    cdef bytes data
    if n <= 0:
        return b""
    data = bytes(max(n, 2))  # never Python's shared one-byte objects
    return data[:max(0, crypto.BIO_read(bio, <char*>data, <int>n))]


cdef bint is_metacert(X509* certificate) noexcept:
    """Whether it has the common name of a metacert (PROTOCOL §10)."""
    cdef char[80] name  # the name has exactly 71 characters; AWS-LC does not truncate longer ones
    cdef int n = crypto.X509_NAME_get_text_by_NID(
        crypto.X509_get_subject_name(certificate), NID_COMMON_NAME, name, sizeof(name)
    )
    return n >= 7 and memcmp(name, b"derpkey", 7) == 0


cdef list chain_to_der(OPENSSL_STACK* chain):
    cdef int i
    if chain is NULL:
        return []
    return [
        certificate_to_der(<X509*>crypto.OPENSSL_sk_value(chain, i))
        for i in range(crypto.OPENSSL_sk_num(chain))
    ]
