# The ciphers of TLS 1.3 (RFC 8446 §5.2, §7): the traffic keys of one direction of a connection, and keyrings, in which a
# thread keeps those it used last expanded. An expanded key takes a kilobyte and a tenth of a microsecond to make: so a
# thread has a fixed number of them, and sessions none. A TrafficKey belongs to whoever owns that direction, a Keyring to
# one thread or one lock. No function here needs the GIL.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastderp.tls.openssl cimport EVP_CIPHER, EVP_CIPHER_CTX, EVP_MD

cdef enum:
    AEAD_HEADER = 5              # of a record: authenticated, not encrypted
    AEAD_TAG = 16

cdef enum SuiteNumber:
    SUITE_AES_128_GCM = 0x1301
    SUITE_AES_256_GCM = 0x1302
    SUITE_CHACHA20_POLY1305 = 0x1303

cdef struct Suite:
    const EVP_CIPHER* cipher
    const EVP_MD* hash
    uint8_t key_size
    uint8_t secret_size

cdef struct TrafficKey:
    uint64_t sequence            # number of the next record under this key
    uint8_t secret[48]           # traffic secret the next generation is derived from
    uint8_t key[32]              # as long as the suite's; zeros behind it
    uint8_t iv[12]

cdef struct Expanded:            # one place of a keyring
    EVP_CIPHER_CTX* context      # NULL until used
    const Suite* suite
    uint8_t key[32]              # whose context it is
    bint sealing

cdef struct Keyring:
    Expanded* places
    uint32_t n_places            # power of two, at least 2

# NULL for a suite that is not ours.
cdef const Suite* suite_of(uint16_t number) noexcept nogil

# A keyring in memory of its own, empty; False without memory. keyring_clear forgets every key and keeps that memory.
cdef bint keyring_init(Keyring* ring, uint32_t n_places) noexcept nogil
cdef void keyring_clear(Keyring* ring) noexcept nogil
cdef void keyring_free(Keyring* ring) noexcept nogil

# Forget one key, if the ring has it.
cdef void keyring_forget(Keyring* ring, const TrafficKey* key, bint sealing) noexcept nogil

# Set key, IV and number from the secret; go on to the next generation (RFC 8446 §7.2). False: libcrypto failed.
cdef bint traffic_key_derive(TrafficKey* key, const Suite* suite) noexcept nogil
cdef bint traffic_key_advance(TrafficKey* key, const Suite* suite) noexcept nogil

# Decrypt one whole record into `inner`; False leaves zeros there. Check `expanded` for NULL, which is no memory.
cdef EVP_CIPHER_CTX* key_expanded(Keyring* ring, const TrafficKey* key, const Suite* suite, bint sealing) noexcept nogil
cdef bint aead_open(
    EVP_CIPHER_CTX* expanded, TrafficKey* key, const uint8_t* record, uint8_t* inner, int n_inner
) noexcept nogil

# Encrypt the inner plaintext at record + AEAD_HEADER where it is and write the tag behind it.
cdef bint aead_seal(EVP_CIPHER_CTX* expanded, TrafficKey* key, uint8_t* record, int n_inner) noexcept nogil
