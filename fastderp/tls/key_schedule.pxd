# The traffic secrets of TLS 1.3 connections, taken where they are derived (RFC 8446 §7.1).

from libc.stdint cimport uint8_t

from fastderp.tls.openssl cimport SSL_CTX, SSL_METHOD


cdef struct TrafficSecrets:
    # Of the application data. Belongs to the owner of the handshake; written during its steps.
    uint8_t client[48]
    uint8_t server[48]
    size_t n_client              # 0 until derived
    size_t n_server


# Make a context whose handshakes derive their secrets here; NULL when libssl has no such context.
cdef SSL_CTX* key_schedule_context(const SSL_METHOD* method) noexcept nogil

# Have the secrets that this thread derives from now on written to `secrets`; NULL ends that.
cdef void key_schedule_write_to(TrafficSecrets* secrets) noexcept nogil
