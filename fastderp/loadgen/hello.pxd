# A TLS 1.3 client's handshake (RFC 8446) at the least cost to the client; the server's work is that of any other.
# All clients of a load share one key pair and one ClientHello, so the only expensive thing left is the key agreement.
# Nobody's certificate is looked at: whoever needs that has asked before. Functions touch only what they are given.

from libc.stdint cimport uint8_t, uint16_t

from fastderp.tls.aead cimport Keyring, TrafficKey
from fastderp.tls.record cimport Records
from fastderp.tls.openssl cimport EVP_PKEY


cdef enum:
    HELLO_ANSWER_MAX = 128          # what a client says at the end: ChangeCipherSpec and Finished
    TRANSCRIPT_MAX = 65536          # of a real relay it has two kilobytes

cdef enum HelloStatus:
    HELLO_MORE                      # needs further input
    HELLO_DONE
    HELLO_OLD                       # the server speaks TLS 1.2
    HELLO_ALERT                     # the server refuses: Hello.alert
    HELLO_BROKEN                    # not a handshake, or one that does not open
    HELLO_NO_MEMORY

cdef struct Share:                  # what the clients have in common
    EVP_PKEY* own                   # X25519
    const uint8_t* client_hello     # without a record's header
    size_t n_client_hello

cdef struct Hello:                  # one client's; zeroed before, hello_end after
    uint8_t* transcript             # every message of both sides, TRANSCRIPT_MAX bytes of room
    size_t n_transcript
    size_t n_understood             # of it
    uint16_t suite                  # 0 before the ServerHello
    uint8_t alert
    TrafficKey theirs               # of the handshake's traffic, once the suite is known
    TrafficKey ours
    uint8_t main_secret[48]


# Understand the complete records of `wire`. At HELLO_DONE `answer` has what is to be sent, and `records` the keys of
# the connection; what is behind `consumed` is sealed with them. `scratch` has room for a record.
cdef HelloStatus hello_take(
    Hello* h, const Share* share, Keyring* ring, const uint8_t* wire, size_t n_wire, size_t* consumed, uint8_t* scratch,
    uint8_t* answer, size_t* n_answer, Records* records
) noexcept nogil

# Forget everything.
cdef void hello_end(Hello* h, Keyring* ring) noexcept nogil
