# A TLS 1.3 client's handshake (RFC 8446) with the least cost for the client; the server does the
# work of any handshake.
# All clients of a load share one key pair and one ClientHello, so the only expensive step is the
# key agreement.
# Certificates are not verified here: the first connection of the load does that. Functions touch
# only their arguments.

from libc.stdint cimport uint8_t, uint16_t

from fastderp.tls.aead cimport Keyring, TrafficKey
from fastderp.tls.record cimport Records
from fastderp.tls.openssl cimport EVP_PKEY


cdef enum:
    HELLO_ANSWER_MAX = 128          # the client's last flight: ChangeCipherSpec and Finished
    TRANSCRIPT_MAX = 65536          # a real relay's has 2 KB

cdef enum HelloStatus:
    HELLO_MORE                      # needs further input
    HELLO_DONE
    HELLO_OLD                       # the server speaks TLS 1.2
    HELLO_ALERT                     # the server refuses: Hello.alert
    HELLO_BROKEN                    # not a handshake, or a record that does not open
    HELLO_NO_MEMORY

cdef struct Share:                  # shared by all clients
    EVP_PKEY* own                   # X25519
    const uint8_t* client_hello     # without a record's header
    size_t n_client_hello

cdef struct Hello:                  # one client's; zeroed before, hello_end after
    uint8_t* transcript             # every message of both sides, TRANSCRIPT_MAX bytes of room
    size_t n_transcript
    size_t n_understood             # parsed bytes of it
    uint16_t suite                  # 0 before the ServerHello
    uint8_t alert
    TrafficKey theirs               # of the handshake's traffic, once the suite is known
    TrafficKey ours
    uint8_t main_secret[48]


# Parse the complete records of `wire`. At HELLO_DONE `answer` has the bytes to send, and `records`
# the keys of the connection; bytes behind `consumed` are sealed with them. `scratch` has room for a
# record.
cdef HelloStatus hello_take(
    Hello* h, const Share* share, Keyring* ring, const uint8_t* wire, size_t n_wire,
    size_t* consumed, uint8_t* scratch,
    uint8_t* answer, size_t* n_answer, Records* records
) noexcept nogil

# Wipe the keys and the transcript.
cdef void hello_end(Hello* h, Keyring* ring) noexcept nogil
