# HMAC and the derivations of TLS 1.3 (RFC 2104, RFC 5869, RFC 8446 §7.1) from libcrypto's SHA-256
# and SHA-384. A call of OpenSSL 3's own HMAC takes longer than the hashing: it searches providers
# and allocates contexts. No state, no GIL; any thread.

from libc.stdint cimport uint8_t


cdef enum:
    HASH_MAX = 48                # bytes of the longest hash
    LABEL_MAX = 32               # bytes of the longest label


# Write the hash of `data`. In each function `hash_size` selects the hash: 32 or 48 bytes.
cdef void hash_of(size_t hash_size, const uint8_t* data, size_t n, uint8_t* out) noexcept nogil

# Write an HMAC under a key of one hash.
cdef void hmac(
    size_t hash_size, const uint8_t* key, const uint8_t* data, size_t n, uint8_t* out
) noexcept nogil

# Write n_out bytes, up to one hash; `out` may be `secret`. `label` is without its prefix "tls13 ",
# `context` empty or one hash. False when a length is not as here.
cdef bint expand_label(
    size_t hash_size, const uint8_t* secret, const char* label, size_t n_label,
    const uint8_t* context, size_t n_context, uint8_t* out, size_t n_out
) noexcept nogil

# Write the next secret of the key schedule, one hash: HKDF-Extract of n_input bytes of input, after
# the secret before it; NULL for the first one. `out` may be `previous`.
cdef void secret_next(
    size_t hash_size, const uint8_t* previous, const uint8_t* input, size_t n_input, uint8_t* out
) noexcept nogil
