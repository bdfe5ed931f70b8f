# The shared state of TLS connections (context.pyx), and the notes of OpenSSL's callbacks about
# each.

from libc.stdint cimport uint8_t

from fastderp.tls.key_schedule cimport TrafficSecrets
from fastderp.tls.openssl cimport EVP_PKEY, SSL_CTX, SSL_METHOD, X509


cdef struct Watch:
    # The notes of OpenSSL's callbacks for their Handshake. Belongs to the running step, and between
    # steps to the owner of the Handshake.
    TrafficSecrets secrets
    bint name_refused
    # Of the ClientHello; `alert` refuses it, 0 for none.
    uint8_t server_name[256]
    uint8_t alpn[256]
    size_t n_server_name
    size_t n_alpn
    int alert


cdef struct Policy:
    # The policy that OpenSSL's callbacks read. Constant once the context is made.
    char server_name[256]
    uint8_t alpn[256]
    size_t n_alpn


cdef class Context:
    cdef SSL_CTX* ctx
    cdef readonly bint is_server

    cdef int _open(self, bint is_server, str max_version, suites) except -1
    cdef int _create(self, const SSL_METHOD* method) except -1


cdef class ServerContext(Context):
    cdef Policy policy

    cdef int _set_policy(self, tuple alpn, required_sni) except -1
    cdef int _set_chain(self, list chain, bytes key_bytes) except -1


cdef class DeferredContext(Context):
    pass


cdef class ClientContext(Context):
    cdef readonly bint verify
    cdef readonly bytes pin

    cdef int _add_roots(self, bint system_roots, cafile, roots) except -1


cdef str reason_text(unsigned long code)
cdef str first_reason()
cdef X509* certificate_from_der(bytes der) except NULL
cdef bytes certificate_to_der(X509* certificate)
cdef bytearray der_room(int n, str what)
cdef EVP_PKEY* key_from_bytes(bytes data) except NULL
cdef bytes sha256(bytes data)
