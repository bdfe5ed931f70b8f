"""HMAC and the derivations of TLS 1.3: see hkdf.pxd."""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from fastderp.tls.openssl cimport SHA256_CTX, SHA512_CTX, crypto

cdef enum:
    SHA256_SIZE = 32
    SHA256_BLOCK = 64
    SHA384_BLOCK = 128
    # The larger of OpenSSL's two contexts has 216 bytes, AWS-LC's 224.
    STATE_WORDS = 32


cdef struct Hashing:
    uint64_t[STATE_WORDS] state  # a SHA256_CTX, or the SHA512_CTX of SHA-384


cdef void hash_begin(Hashing* h, size_t hash_size) noexcept nogil:
    if hash_size == SHA256_SIZE:
        crypto.SHA256_Init(<SHA256_CTX*>h.state)
    else:
        crypto.SHA384_Init(<SHA512_CTX*>h.state)


cdef void hash_add(Hashing* h, size_t hash_size, const uint8_t* data, size_t n) noexcept nogil:
    if hash_size == SHA256_SIZE:
        crypto.SHA256_Update(<SHA256_CTX*>h.state, data, n)
    else:
        crypto.SHA384_Update(<SHA512_CTX*>h.state, data, n)


cdef void hash_end(Hashing* h, size_t hash_size, uint8_t* out) noexcept nogil:
    """Write the hash and wipe the state."""
    if hash_size == SHA256_SIZE:
        crypto.SHA256_Final(out, <SHA256_CTX*>h.state)
    else:
        crypto.SHA384_Final(out, <SHA512_CTX*>h.state)
    crypto.OPENSSL_cleanse(h, sizeof(Hashing))


cdef void hash_of(size_t hash_size, const uint8_t* data, size_t n, uint8_t* out) noexcept nogil:
    cdef Hashing h
    hash_begin(&h, hash_size)
    hash_add(&h, hash_size, data, n)
    hash_end(&h, hash_size, out)


cdef void hmac(
    size_t hash_size, const uint8_t* key, const uint8_t* data, size_t n, uint8_t* out
) noexcept nogil:
    cdef size_t i, block = SHA256_BLOCK if hash_size == SHA256_SIZE else SHA384_BLOCK
    cdef uint8_t[SHA384_BLOCK] pad
    cdef uint8_t[HASH_MAX] inner
    cdef Hashing h
    memset(pad, 0x36, sizeof(pad))
    for i in range(hash_size):
        pad[i] ^= key[i]
    hash_begin(&h, hash_size)
    hash_add(&h, hash_size, pad, block)
    hash_add(&h, hash_size, data, n)
    hash_end(&h, hash_size, inner)
    for i in range(block):
        pad[i] ^= 0x36 ^ 0x5C
    hash_begin(&h, hash_size)
    hash_add(&h, hash_size, pad, block)
    hash_add(&h, hash_size, inner, hash_size)
    hash_end(&h, hash_size, out)
    crypto.OPENSSL_cleanse(pad, sizeof(pad))


cdef bint expand_label(
    size_t hash_size, const uint8_t* secret, const char* label, size_t n_label,
    const uint8_t* context, size_t n_context, uint8_t* out, size_t n_out
) noexcept nogil:
    # The struct HkdfLabel, then HKDF's block counter, which is 1 for up to one hash of output.
    cdef uint8_t[3 + 6 + LABEL_MAX + 1 + HASH_MAX + 1] info
    cdef uint8_t[HASH_MAX] block
    cdef size_t at = 9
    if n_label > LABEL_MAX or n_context > hash_size or n_out > hash_size:
        return False
    info[0] = 0
    info[1] = <uint8_t>n_out
    info[2] = <uint8_t>(6 + n_label)
    memcpy(&info[3], b"tls13 ", 6)
    memcpy(&info[at], label, n_label)
    at += n_label
    info[at] = <uint8_t>n_context
    at += 1
    if n_context:
        memcpy(&info[at], context, n_context)
        at += n_context
    info[at] = 1
    hmac(hash_size, secret, info, at + 1, block)
    memcpy(out, block, n_out)
    crypto.OPENSSL_cleanse(block, sizeof(block))
    return True


cdef void secret_next(
    size_t hash_size, const uint8_t* previous, const uint8_t* input, size_t n_input, uint8_t* out
) noexcept nogil:
    cdef uint8_t[HASH_MAX] nothing, salt
    memset(salt, 0, sizeof(salt))
    if previous is not NULL:
        hash_of(hash_size, NULL, 0, nothing)
        expand_label(hash_size, previous, b"derived", 7, nothing, hash_size, salt, hash_size)
    hmac(hash_size, salt, input, n_input, out)
    crypto.OPENSSL_cleanse(salt, sizeof(salt))
