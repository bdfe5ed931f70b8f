"""The contexts that TLS connections share: a listener's certificate and rules, or a client's trust.

Control plane. A context never changes once it is made, and any thread may use it. OpenSSL's
callbacks are in this module, too: they read the context's policy and store their findings in a
Watch.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memcmp, memcpy, strchr, strlen, strncmp
from posix.strings cimport strcasecmp

from fastderp.tls.hkdf cimport hash_of
from fastderp.tls.key_schedule cimport key_schedule_context
from fastderp.tls.openssl cimport (
    BIO, EVP_PKEY, SSL, SSL_AD_DECODE_ERROR, SSL_AD_UNRECOGNIZED_NAME, SSL_CLIENT_HELLO_ERROR,
    SSL_CLIENT_HELLO_RETRY, SSL_CTRL_EXTRA_CHAIN_CERT, SSL_CTRL_MODE,
    SSL_CTRL_SET_MAX_PROTO_VERSION, SSL_CTRL_SET_MIN_PROTO_VERSION, SSL_CTRL_SET_SESS_CACHE_MODE,
    SSL_CTRL_SET_TLSEXT_SERVERNAME_ARG, SSL_CTRL_SET_TLSEXT_SERVERNAME_CB, SSL_METHOD,
    SSL_MODE_NO_AUTO_CHAIN,
    SSL_OP_CIPHER_SERVER_PREFERENCE, SSL_OP_NO_COMPRESSION, SSL_OP_NO_RENEGOTIATION,
    SSL_OP_NO_TICKET, SSL_OP_PRIORITIZE_CHACHA, SSL_SESS_CACHE_OFF, SSL_TLSEXT_ERR_ALERT_FATAL,
    SSL_TLSEXT_ERR_OK, SSL_VERIFY_NONE, SSL_VERIFY_PEER, TLS1_2_VERSION, TLS1_3_VERSION,
    TLSEXT_TYPE_alpn, TLSEXT_TYPE_server_name, X509, crypto, ssl,
)

import os

from fastderp.tls import openssl, roots as built_in
from fastderp.tls.errors import TlsError
from fastderp.util.net import host_bytes

VERSIONS = {"TLSv1.2": TLS1_2_VERSION, "TLSv1.3": TLS1_3_VERSION}
# AES first where the client has it in hardware; clients without prefer ChaCha20 and get it.
SUITES_13 = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
CIPHERS_12 = "ECDHE+AESGCM+AES128:ECDHE+AESGCM:ECDHE+CHACHA20"
# ERR_SYSTEM_FLAG of OpenSSL 3 (err.h): a system call has failed, and the other bits are its errno.
_SYSTEM_FLAG = 1 << 31


cdef size_t hex_decode(const char* text, uint8_t* out, size_t cap) noexcept nogil:
    """Return the number of bytes decoded; 0 for other text and for more than `cap` bytes."""
    cdef size_t i, n = strlen(text)
    cdef int high, low
    if n % 2 or n // 2 > cap:
        return 0
    for i in range(n // 2):
        high = hex_digit(text[2 * i])
        low = hex_digit(text[2 * i + 1])
        if high < 0 or low < 0:
            return 0
        out[i] = <uint8_t>(high << 4 | low)
    return n // 2


cdef int hex_digit(char c) noexcept nogil:
    if c'0' <= c <= c'9':
        return c - c'0'
    if c'a' <= c <= c'f':
        return c - c'a' + 10
    if c'A' <= c <= c'F':
        return c - c'A' + 10
    return -1


cdef void on_keylog(const SSL* connection, const char* line) noexcept nogil:
    """Keep the two application traffic secrets, from lines of `LABEL client-random secret`."""
    cdef Watch* watch = <Watch*>ssl.SSL_get_ex_data(connection, 0)
    cdef const char* secret = strchr(line, c' ')
    if secret is not NULL:
        secret = strchr(secret + 1, c' ')
    if watch is NULL or secret is NULL:
        return
    if strncmp(line, "CLIENT_TRAFFIC_SECRET_0 ", 24) == 0:
        watch.secrets.n_client = hex_decode(secret + 1, watch.secrets.client, 48)
    elif strncmp(line, "SERVER_TRAFFIC_SECRET_0 ", 24) == 0:
        watch.secrets.n_server = hex_decode(secret + 1, watch.secrets.server, 48)


cdef int on_server_name(SSL* connection, int* alert, void* arg) noexcept nogil:
    """Keep the name in a ClientHello; refuse another one than required (PROTOCOL §10)."""
    cdef const char* wanted = (<Policy*>arg).server_name
    cdef const char* name = ssl.SSL_get_servername(connection, 0)
    cdef Watch* watch = <Watch*>ssl.SSL_get_ex_data(connection, 0)
    if name is not NULL:
        watch.n_server_name = min(strlen(name), sizeof(watch.server_name))
        memcpy(watch.server_name, name, watch.n_server_name)
    if wanted[0] == 0 or (name is not NULL and strcasecmp(name, wanted) == 0):
        return SSL_TLSEXT_ERR_OK
    watch.name_refused = True
    alert[0] = SSL_AD_UNRECOGNIZED_NAME
    return SSL_TLSEXT_ERR_ALERT_FATAL


cdef int on_client_hello(SSL* connection, int* alert, void* arg) noexcept nogil:
    """Store the client's request, and pause; each step calls it until a certificate is set."""
    cdef Watch* watch = <Watch*>ssl.SSL_get_ex_data(connection, 0)
    cdef const uint8_t* value = NULL
    cdef size_t n = 0
    if watch.alert:
        alert[0] = watch.alert
        return SSL_CLIENT_HELLO_ERROR
    watch.n_server_name = watch.n_alpn = 0
    if ssl.SSL_client_hello_get0_ext(connection, TLSEXT_TYPE_server_name, &value, &n):
        # RFC 6066 §3: the length of a list (2 bytes), and one entry: type, length (2 bytes), host.
        if (
            n < 6 or n - 5 > sizeof(watch.server_name) or value[2] != 0
            or be16(value) != n - 2 or be16(value + 3) != n - 5
        ):
            alert[0] = SSL_AD_DECODE_ERROR
            return SSL_CLIENT_HELLO_ERROR
        watch.n_server_name = n - 5
        memcpy(watch.server_name, value + 5, n - 5)
    if (
        ssl.SSL_client_hello_get0_ext(connection, TLSEXT_TYPE_alpn, &value, &n)
        and 2 <= n <= sizeof(watch.alpn) + 2
    ):
        watch.n_alpn = n - 2
        memcpy(watch.alpn, value + 2, n - 2)
    return SSL_CLIENT_HELLO_RETRY


cdef size_t be16(const uint8_t* bytes) noexcept nogil:
    return <size_t>bytes[0] << 8 | bytes[1]


cdef int on_alpn(
    SSL* connection, const uint8_t** out, uint8_t* n_out, const uint8_t* offered,
    unsigned int n_offered, void* arg
) noexcept nogil:
    """Take the first of our protocols that the client offers; lists are length-prefixed names."""
    cdef Policy* policy = <Policy*>arg
    cdef size_t ours = 0
    cdef unsigned int theirs
    while ours < policy.n_alpn:
        theirs = 0
        while theirs < n_offered and theirs + offered[theirs] < n_offered:
            if (
                offered[theirs] == policy.alpn[ours]
                and memcmp(&offered[theirs + 1], &policy.alpn[ours + 1], offered[theirs]) == 0
            ):
                out[0] = &offered[theirs + 1]
                n_out[0] = offered[theirs]
                return SSL_TLSEXT_ERR_OK
            theirs += 1 + offered[theirs]
        ours += 1 + policy.alpn[ours]
    return SSL_TLSEXT_ERR_ALERT_FATAL


cdef str reason_text(unsigned long code):
    if code & _SYSTEM_FLAG:
        return os.strerror(code - _SYSTEM_FLAG)
    cdef const char* text = crypto.ERR_reason_error_string(code) if code else NULL
    if text is NULL:
        return "unknown reason"
    reason = text.decode()
    # AWS-LC writes NO_SHARED_CIPHER where OpenSSL writes "no shared cipher".
    return reason.replace("_", " ").lower() if reason.isupper() else reason


cdef str first_reason():
    """Return the oldest error of this thread's OpenSSL queue, and empty the queue."""
    cdef unsigned long code = crypto.ERR_get_error()
    crypto.ERR_clear_error()
    return reason_text(code)


cdef bytes sha256(bytes data):
    cdef uint8_t digest[32]
    hash_of(sizeof(digest), data, len(data), digest)
    return (<const char*>digest)[:32]


cdef X509* certificate_from_der(bytes der) except NULL:
    cdef const uint8_t* start = der
    cdef X509* certificate = crypto.d2i_X509(NULL, &start, len(der))
    if certificate is NULL:
        raise TlsError("certificate", f"not a certificate in DER: {first_reason()}")
    return certificate


cdef bytearray der_room(int n, str what):
    """Return room for n bytes of DER, as i2d counted them; its failure raises TlsError."""
    if n <= 0:
        raise TlsError("certificate", f"{what} has no DER: {first_reason()}")
    return bytearray(n)


cdef bytes certificate_to_der(X509* certificate):
    cdef bytearray der = der_room(crypto.i2d_X509(certificate, NULL), "a certificate")
    cdef uint8_t* out = der    # i2d advances it
    crypto.i2d_X509(certificate, &out)
    return bytes(der)


cdef EVP_PKEY* key_from_bytes(bytes data) except NULL:
    """Read a private key in PEM or DER; an encrypted one is refused, without a prompt for it."""
    cdef const uint8_t* start = data
    cdef EVP_PKEY* key
    cdef BIO* bio
    if b"-----BEGIN" in data:
        bio = crypto.BIO_new_mem_buf(start, <int>len(data))
        if bio is NULL:
            raise MemoryError
        key = crypto.PEM_read_bio_PrivateKey(bio, NULL, NULL, <void*><char*> "")
        crypto.BIO_free(bio)
    else:
        key = crypto.d2i_AutoPrivateKey(NULL, &start, len(data))
    if key is NULL:
        raise TlsError(
            "certificate",
            f"not a usable private key (PEM or DER, not encrypted): {first_reason()}",
        )
    return key


cdef class Context:
    """See context.pyi. Versions, suites and the delivery of traffic secrets, for both sides."""

    def __dealloc__(self):
        if self.ctx is not NULL:
            ssl.SSL_CTX_free(self.ctx)

    cdef int _open(self, bint is_server, str max_version, suites) except -1:
        if self.ctx is not NULL:
            raise RuntimeError("a context is initialised once")
        if max_version not in VERSIONS:
            raise ValueError(f"max_version is one of {', '.join(VERSIONS)}, not {max_version!r}")
        self.is_server = is_server
        crypto.ERR_clear_error()
        self._create(ssl.TLS_server_method() if is_server else ssl.TLS_client_method())
        ssl.SSL_CTX_ctrl(self.ctx, SSL_CTRL_SET_MIN_PROTO_VERSION, TLS1_2_VERSION, NULL)
        ssl.SSL_CTX_ctrl(self.ctx, SSL_CTRL_SET_MAX_PROTO_VERSION, VERSIONS[max_version], NULL)
        ssl.SSL_CTX_ctrl(self.ctx, SSL_CTRL_SET_SESS_CACHE_MODE, SSL_SESS_CACHE_OFF, NULL)
        ssl.SSL_CTX_ctrl(self.ctx, SSL_CTRL_MODE, SSL_MODE_NO_AUTO_CHAIN, NULL)
        ssl.SSL_CTX_set_options(
            self.ctx, SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION
            | SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA)
        # Without tickets both sequence numbers are zero when the handshake ends.
        ssl.SSL_CTX_set_num_tickets(self.ctx, 0)
        if not ssl.SSL_CTX_set_cipher_list(self.ctx, CIPHERS_12.encode()):
            raise TlsError("no_shared", f"this OpenSSL has none of {CIPHERS_12}")
        names = SUITES_13 if suites is None else ":".join(suites)
        if not ssl.SSL_CTX_set_ciphersuites(self.ctx, names.encode()):
            raise ValueError(f"not TLS 1.3 suites of this OpenSSL: {names}")
        return 0

    cdef int _create(self, const SSL_METHOD* method) except -1:
        self.ctx = key_schedule_context(method)
        if self.ctx is not NULL:
            return 0
        self.ctx = ssl.SSL_CTX_new(method)
        if self.ctx is NULL:
            raise MemoryError
        ssl.SSL_CTX_set_keylog_callback(self.ctx, on_keylog)
        return 0


cdef class ServerContext(Context):
    """See context.pyi."""

    def __init__(self, chain, bytes key not None, *, alpn=("http/1.1",), required_sni=None,
                 str max_version="TLSv1.3", suites=None):
        self._open(True, max_version, suites)
        self._set_chain(list(chain), key)
        self._set_policy(tuple(alpn), required_sni)
        if self.policy.n_alpn:
            ssl.SSL_CTX_set_alpn_select_cb(self.ctx, on_alpn, &self.policy)
        ssl.SSL_CTX_callback_ctrl(self.ctx, SSL_CTRL_SET_TLSEXT_SERVERNAME_CB, on_server_name)
        ssl.SSL_CTX_ctrl(self.ctx, SSL_CTRL_SET_TLSEXT_SERVERNAME_ARG, 0, &self.policy)

    cdef int _set_policy(self, tuple alpn, required_sni) except -1:
        cdef bytes name = host_bytes(required_sni) if required_sni else b""
        cdef bytes protocols = b"".join([bytes([len(p)]) + p.encode("ascii") for p in alpn])
        if len(name) >= <Py_ssize_t>sizeof(self.policy.server_name):
            raise ValueError("a server name has at most 255 characters")
        if len(protocols) > <Py_ssize_t>sizeof(self.policy.alpn):
            raise ValueError("too many ALPN protocols")
        memcpy(self.policy.server_name, <const char*>name, len(name))
        memcpy(self.policy.alpn, <const char*>protocols, len(protocols))
        self.policy.n_alpn = len(protocols)
        return 0

    cdef int _set_chain(self, list chain, bytes key_bytes) except -1:
        cdef X509* certificate
        cdef EVP_PKEY* key
        cdef int ok
        if not chain:
            raise TlsError("certificate", "an empty certificate chain")
        certificate = certificate_from_der(chain[0])
        ok = ssl.SSL_CTX_use_certificate(self.ctx, certificate)
        crypto.X509_free(certificate)
        if not ok:
            raise TlsError("certificate", f"OpenSSL refuses the certificate: {first_reason()}")
        key = key_from_bytes(key_bytes)
        ok = ssl.SSL_CTX_use_PrivateKey(self.ctx, key) and ssl.SSL_CTX_check_private_key(self.ctx)
        crypto.EVP_PKEY_free(key)
        if not ok:
            raise TlsError(
                "certificate", f"the private key does not fit the certificate: {first_reason()}"
            )
        for der in chain[1:]:
            certificate = certificate_from_der(der)
            if not ssl.SSL_CTX_ctrl(self.ctx, SSL_CTRL_EXTRA_CHAIN_CERT, 0, certificate):
                crypto.X509_free(certificate)
                raise TlsError(
                    "certificate", f"OpenSSL refuses a certificate of the chain: {first_reason()}"
                )
        return 0


cdef class DeferredContext(Context):
    """See context.pyi."""

    def __init__(self, *, str max_version="TLSv1.3", suites=None):
        self._open(True, max_version, suites)
        ssl.SSL_CTX_set_client_hello_cb(self.ctx, on_client_hello, NULL)


cdef class ClientContext(Context):
    """See context.pyi."""

    def __init__(self, *, bint verify=True, bint system_roots=True, cafile=None, roots=(), pin=None,
                 str max_version="TLSv1.3", suites=None):
        self._open(False, max_version, suites)
        self.verify = verify and pin is None
        self.pin = pin
        if pin is not None and len(pin) != 32:
            raise ValueError("a pin is the 32 bytes of a SHA-256")
        ssl.SSL_CTX_set_verify(self.ctx, SSL_VERIFY_PEER if self.verify else SSL_VERIFY_NONE, NULL)
        if self.verify:
            self._add_roots(system_roots, cafile, roots)

    cdef int _add_roots(self, bint system_roots, cafile, roots) except -1:
        cdef X509* certificate
        cdef int ok
        if system_roots:
            ssl.SSL_CTX_set_default_verify_paths(self.ctx)
            for path in built_in.system_files(openssl.SOURCE):
                ssl.SSL_CTX_load_verify_locations(self.ctx, os.fsencode(path), NULL)
            crypto.ERR_clear_error()  # not an error: there are built-in roots
            roots = (*built_in.BUILT_IN, *roots)
        if cafile is not None and not ssl.SSL_CTX_load_verify_locations(
            self.ctx, str(cafile).encode(), NULL
        ):
            raise TlsError("certificate", f"no usable certificates in {cafile}: {first_reason()}")
        for der in roots:
            certificate = certificate_from_der(der)
            ok = crypto.X509_STORE_add_cert(ssl.SSL_CTX_get_cert_store(self.ctx), certificate)
            crypto.X509_free(certificate)
            if not ok:
                raise TlsError(
                    "certificate", f"OpenSSL refuses a root certificate: {first_reason()}"
                )
        return 0
