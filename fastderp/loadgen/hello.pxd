# A TLS 1.3 client's handshake (RFC 8446) at minimal cost to the client; the server's work is
# unchanged. All clients of a load share one key pair and one ClientHello, so only the key agreement
# is expensive. Certificates are not verified here; connect.relay_key does that first. Functions
# change only their arguments; any thread may call them.

from libc.stdint cimport uint8_t, uint16_t

from fastderp.tls.aead cimport Keyring, TrafficKey
from fastderp.tls.record cimport Records
from fastderp.tls.openssl cimport EVP_PKEY


cdef enum:
    HELLO_ANSWER_MAX = 128          # bytes for ChangeCipherSpec and Finished
    TRANSCRIPT_MAX = 65536          # bytes; with a real relay it has two kilobytes

cdef enum HelloStatus:
    HELLO_MORE                      # needs further input
    HELLO_DONE
    HELLO_OLD                       # the server speaks TLS 1.2
    HELLO_ALERT                     # the server refuses with Hello.alert
    HELLO_BROKEN                    # not a handshake, or a record that fails to open
    HELLO_NO_MEMORY

cdef struct Share:                  # common to all clients; fixed, owned by the caller
    EVP_PKEY* own                   # X25519
    const uint8_t* client_hello     # without a record's header
    size_t n_client_hello

# One client's handshake; the caller zeroes it before and calls hello_end after. Caller's thread.
cdef struct Hello:
    uint8_t* transcript             # every message of both sides; holds TRANSCRIPT_MAX bytes
    size_t n_transcript
    size_t n_parsed                 # bytes of the transcript already parsed
    uint16_t suite                  # 0 before the ServerHello
    uint8_t alert
    TrafficKey theirs               # handshake traffic keys, valid once the suite is known
    TrafficKey ours
    uint8_t main_secret[48]


# Process the complete records of `wire`. At HELLO_DONE `answer` has the bytes to send and `records`
# the keys of the connection, which seal the bytes behind `consumed`. `scratch` holds one record.
cdef HelloStatus hello_take(
    Hello* h, const Share* share, Keyring* ring, const uint8_t* wire, size_t n_wire,
    size_t* consumed, uint8_t* scratch, uint8_t* answer, size_t* n_answer, Records* records
) noexcept nogil

# Free and wipe the handshake.
cdef void hello_end(Hello* h, Keyring* ring) noexcept nogil
