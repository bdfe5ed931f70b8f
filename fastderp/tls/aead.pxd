# The ciphers of TLS 1.3 (RFC 8446 §5.2, §7): the traffic keys of one direction of a connection, and
# keyrings, in which a thread keeps the keys it has used last in expanded form. An expanded key
# takes a kilobyte and is made in 0.1 µs, so a thread has a fixed number of them and sessions have
# none. A TrafficKey belongs to the owner of its direction, a Keyring to a thread or to a lock. No
# function here needs the GIL.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastderp.tls.openssl cimport EVP_AEAD, EVP_AEAD_CTX, EVP_CIPHER, EVP_CIPHER_CTX


cdef enum:
    AEAD_HEADER = 5              # bytes of a record's header: authenticated, not encrypted
    AEAD_TAG = 16


cdef enum SuiteNumber:
    SUITE_AES_128_GCM = 0x1301
    SUITE_AES_256_GCM = 0x1302
    SUITE_CHACHA20_POLY1305 = 0x1303


cdef struct Suite:
    const EVP_CIPHER* cipher
    const EVP_AEAD* aead         # NULL where `cipher` is as fast, and in OpenSSL
    uint8_t key_size
    uint8_t secret_size          # bytes of its hash, too


cdef struct TrafficKey:
    uint64_t sequence            # number of the next record under this key
    uint8_t secret[48]           # traffic secret from which the next generation is derived
    uint8_t key[32]              # as long as the suite's, then zeros
    uint8_t iv[12]


cdef struct Expanded:            # one place of a keyring
    EVP_CIPHER_CTX* context      # NULL until used, and while `aead` is in use
    EVP_AEAD_CTX* aead           # NULL unless the suite has an `aead`
    const Suite* suite
    uint8_t key[32]              # the key that the context has expanded
    bint sealing


cdef struct Keyring:
    Expanded* places
    uint32_t n_places            # power of two, at least 2


# NULL for any other number than a SuiteNumber.
cdef const Suite* suite_of(uint16_t number) noexcept nogil

# Make an empty keyring and allocate its memory; False when that fails. keyring_clear removes every
# key and keeps the memory.
cdef bint keyring_init(Keyring* ring, uint32_t n_places) noexcept nogil
cdef void keyring_clear(Keyring* ring) noexcept nogil
cdef void keyring_free(Keyring* ring) noexcept nogil

# Remove one key, if the ring has it.
cdef void keyring_forget(Keyring* ring, const TrafficKey* key, bint sealing) noexcept nogil

# Set key, IV and number from the secret; advance to the next generation (RFC 8446 §7.2). False when
# libcrypto fails.
cdef bint traffic_key_derive(TrafficKey* key, const Suite* suite) noexcept nogil
cdef bint traffic_key_advance(TrafficKey* key, const Suite* suite) noexcept nogil

# Return the place of a key, whose context is the ring's or expanded anew. NULL without memory.
cdef Expanded* key_expanded(
    Keyring* ring, const TrafficKey* key, const Suite* suite, bint sealing
) noexcept nogil

# Decrypt one whole record into `inner`; False leaves zeros there.
cdef bint aead_open(
    Expanded* expanded, TrafficKey* key, const uint8_t* record, uint8_t* inner, int n_inner
) noexcept nogil

# Encrypt the inner plaintext at record + AEAD_HEADER in place and write the tag after it.
cdef bint aead_seal(
    Expanded* expanded, TrafficKey* key, uint8_t* record, int n_inner
) noexcept nogil
