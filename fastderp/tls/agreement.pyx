"""Keys of NaCl boxes by the X25519 of the crypto library; agreement.pyi describes the interface.

A relay agrees on one key per login, always with the same private key. AWS-LC takes three quarters
of the time of libsodium for it. The key of the box is HSalsa20 of the agreed secret (Bernstein,
"Cryptography in NaCl", 2009, §5 and §8).
"""

from libc.stdint cimport uint8_t, uint32_t
from cpython.bytes cimport PyBytes_FromStringAndSize

from fastderp.tls.openssl cimport EVP_PKEY, EVP_PKEY_CTX, NID_X25519, crypto

cdef enum:
    KEY = 32
    DOUBLE_ROUNDS = 10

# The words of "expand 32-byte k".
cdef uint32_t[4] SIGMA = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574]


cdef inline void quarter_round(uint32_t* x, int a, int b, int c, int d) noexcept nogil:
    x[b] ^= rotated(x[a] + x[d], 7)
    x[c] ^= rotated(x[b] + x[a], 9)
    x[d] ^= rotated(x[c] + x[b], 13)
    x[a] ^= rotated(x[d] + x[c], 18)


cdef inline uint32_t rotated(uint32_t word, int n) noexcept nogil:
    return word << n | word >> (32 - n)


cdef inline uint32_t word_of(const uint8_t* p) noexcept nogil:
    return <uint32_t>p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24


cdef inline void word_put(uint8_t* p, uint32_t word) noexcept nogil:
    p[0] = word & 0xFF
    p[1] = word >> 8 & 0xFF
    p[2] = word >> 16 & 0xFF
    p[3] = word >> 24


cdef void hsalsa20(const uint8_t* secret, uint8_t* key) noexcept nogil:
    """Write HSalsa20 of the secret and 16 zero bytes."""
    cdef uint32_t[16] x
    cdef int i
    cdef int _i
    for i in range(4):
        x[1 + i] = word_of(secret + 4 * i)
        x[6 + i] = 0
        x[11 + i] = word_of(secret + 16 + 4 * i)
        x[5 * i] = SIGMA[i]
    for _i in range(DOUBLE_ROUNDS):
        quarter_round(x, 0, 4, 8, 12)
        quarter_round(x, 5, 9, 13, 1)
        quarter_round(x, 10, 14, 2, 6)
        quarter_round(x, 15, 3, 7, 11)
        quarter_round(x, 0, 1, 2, 3)
        quarter_round(x, 5, 6, 7, 4)
        quarter_round(x, 10, 11, 8, 9)
        quarter_round(x, 15, 12, 13, 14)
    for i in range(4):
        word_put(key + 4 * i, x[5 * i])
        word_put(key + 16 + 4 * i, x[6 + i])
    crypto.OPENSSL_cleanse(x, sizeof(x))


cdef class Agreement:
    """See agreement.pyi."""

    cdef EVP_PKEY* own
    cdef EVP_PKEY_CTX* context

    def __cinit__(self, bytes private not None):
        if len(private) != KEY:
            raise ValueError(f"a private key has {KEY} bytes, not {len(private)}")
        self.own = crypto.EVP_PKEY_new_raw_private_key(NID_X25519, NULL, private, KEY)
        if self.own is not NULL:
            self.context = crypto.EVP_PKEY_CTX_new(self.own, NULL)
        if self.context is NULL or crypto.EVP_PKEY_derive_init(self.context) != 1:
            raise MemoryError

    def __dealloc__(self):
        crypto.EVP_PKEY_CTX_free(self.context)
        crypto.EVP_PKEY_free(self.own)

    def shared_key(self, bytes public not None):
        cdef uint8_t[KEY] secret
        cdef uint8_t[KEY] key
        cdef size_t n = KEY
        cdef EVP_PKEY* peer
        cdef const uint8_t* raw = public
        cdef bint agreed
        if len(public) != KEY:
            raise ValueError(f"a public key has {KEY} bytes, not {len(public)}")
        with nogil:
            peer = crypto.EVP_PKEY_new_raw_public_key(NID_X25519, NULL, raw, KEY)
            agreed = (
                peer is not NULL
                and crypto.EVP_PKEY_derive_set_peer(self.context, peer) == 1
                and crypto.EVP_PKEY_derive(self.context, secret, &n) == 1)
            crypto.EVP_PKEY_free(peer)
            if agreed:
                hsalsa20(secret, key)
            else:
                crypto.ERR_clear_error()
            crypto.OPENSSL_cleanse(secret, KEY)
        if peer is NULL:
            raise MemoryError
        shared = PyBytes_FromStringAndSize(<char*>key, KEY) if agreed else None
        crypto.OPENSSL_cleanse(key, KEY)
        return shared
