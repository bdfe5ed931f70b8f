"""The ciphers of TLS 1.3, by libcrypto: see aead.pxd."""

from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from fastderp.tls.hkdf cimport expand_label
from fastderp.tls.openssl cimport EVP_CTRL_AEAD_GET_TAG, EVP_CTRL_AEAD_SET_TAG, crypto
from fastderp.tls.sys cimport PTHREAD_ONCE_INIT, pthread_once, pthread_once_t


# Constant after suites_fetch; the index is the suite's number - SUITE_AES_128_GCM.
cdef Suite[3] suites
cdef pthread_once_t suites_fetched = PTHREAD_ONCE_INIT


cdef const EVP_CIPHER* cipher_named(const char* name, const EVP_CIPHER* otherwise) noexcept nogil:
    """Fetch a cipher once: OpenSSL 3 would search its providers for each new context."""
    cdef const EVP_CIPHER* cipher = NULL
    if crypto.EVP_CIPHER_fetch is not NULL:
        cipher = crypto.EVP_CIPHER_fetch(NULL, name, NULL)
    return cipher if cipher is not NULL else otherwise


cdef void suites_fetch() noexcept nogil:
    suites[0] = Suite(cipher_named("AES-128-GCM", crypto.EVP_aes_128_gcm()), NULL, 16, 32)
    suites[1] = Suite(cipher_named("AES-256-GCM", crypto.EVP_aes_256_gcm()), NULL, 32, 48)
    suites[2] = Suite(
        cipher_named("ChaCha20-Poly1305", crypto.EVP_chacha20_poly1305()), NULL, 32, 32
    )
    # AWS-LC has its fast ChaCha20-Poly1305 only here. AES is no slower by EVP_Cipher*.
    if crypto.EVP_aead_chacha20_poly1305 is not NULL and crypto.EVP_AEAD_CTX_seal is not NULL:
        suites[2].aead = crypto.EVP_aead_chacha20_poly1305()


cdef const Suite* suite_of(uint16_t number) noexcept nogil:
    if number < SUITE_AES_128_GCM or number > SUITE_CHACHA20_POLY1305:
        return NULL
    # Not before: OpenSSL 3 takes 0.4 MiB for its ciphers, which a relay without TLS does not need.
    pthread_once(&suites_fetched, suites_fetch)
    return &suites[number - SUITE_AES_128_GCM]


# Traffic keys


cdef bint traffic_expand(
    const Suite* suite, const uint8_t* secret, const char* label, size_t n_label, uint8_t* out,
    size_t n_out
) noexcept nogil:
    return expand_label(suite.secret_size, secret, label, n_label, NULL, 0, out, n_out)


cdef bint traffic_key_derive(TrafficKey* key, const Suite* suite) noexcept nogil:
    key.sequence = 0
    return (
        traffic_expand(suite, key.secret, "key", 3, key.key, suite.key_size)
        and traffic_expand(suite, key.secret, "iv", 2, key.iv, 12)
    )


cdef bint traffic_key_advance(TrafficKey* key, const Suite* suite) noexcept nogil:
    if not traffic_expand(suite, key.secret, "traffic upd", 11, key.secret, suite.secret_size):
        return False
    return traffic_key_derive(key, suite)


# Keyrings


cdef bint keyring_init(Keyring* ring, uint32_t n_places) noexcept nogil:
    ring.places = <Expanded*>calloc(n_places, sizeof(Expanded))
    ring.n_places = n_places
    return ring.places is not NULL


cdef void keyring_clear(Keyring* ring) noexcept nogil:
    cdef uint32_t i
    for i in range(ring.n_places):
        place_clear(&ring.places[i])


cdef void keyring_free(Keyring* ring) noexcept nogil:
    if ring.places is not NULL:
        keyring_clear(ring)
        free(ring.places)
        ring.places = NULL


cdef void place_clear(Expanded* place) noexcept nogil:
    if place.aead is not NULL:
        crypto.EVP_AEAD_CTX_free(place.aead)
    elif place.context is not NULL:
        crypto.EVP_CIPHER_CTX_free(place.context)
    else:
        return
    crypto.OPENSSL_cleanse(place, sizeof(Expanded))


cdef inline Expanded* place_of(Keyring* ring, const TrafficKey* key, bint sealing) noexcept nogil:
    # Keys are random. The two directions of a connection never share a place.
    cdef uint32_t bits
    memcpy(&bits, key.key, sizeof(bits))
    return &ring.places[(2 * bits + sealing) & (ring.n_places - 1)]


cdef inline bint place_has(
    const Expanded* place, const TrafficKey* key, const Suite* suite, bint sealing
) noexcept nogil:
    return (
        place.suite is suite and place.sealing == sealing
        and memcmp(place.key, key.key, sizeof(place.key)) == 0
    )


cdef void keyring_forget(Keyring* ring, const TrafficKey* key, bint sealing) noexcept nogil:
    cdef Expanded* place = place_of(ring, key, sealing)
    if place_has(place, key, place.suite, sealing):
        place_clear(place)


cdef Expanded* key_expanded(
    Keyring* ring, const TrafficKey* key, const Suite* suite, bint sealing
) noexcept nogil:
    cdef Expanded* place = place_of(ring, key, sealing)
    if place_has(place, key, suite, sealing):
        return place
    if not context_expand(place, key, suite, sealing):
        place_clear(place)
        return NULL
    place.suite = suite
    place.sealing = sealing
    memcpy(place.key, key.key, sizeof(place.key))
    return place


cdef bint context_expand(
    Expanded* place, const TrafficKey* key, const Suite* suite, bint sealing
) noexcept nogil:
    """Expand a key into a place; reuse the EVP_CIPHER_CTX if the place has allocated it."""
    cdef const EVP_CIPHER* cipher = NULL    # NULL keeps the cipher that the context has
    if suite.aead is not NULL:
        place_clear(place)
        place.aead = crypto.EVP_AEAD_CTX_new(suite.aead, key.key, suite.key_size, AEAD_TAG)
        return place.aead is not NULL
    if place.aead is not NULL:
        place_clear(place)
    if place.context is NULL:
        place.context = crypto.EVP_CIPHER_CTX_new()
        if place.context is NULL:
            return False
    if place.suite is not suite:
        cipher = suite.cipher
    return crypto.EVP_CipherInit_ex(place.context, cipher, NULL, key.key, key.iv, sealing) == 1


# Records


cdef void nonce_make(const TrafficKey* key, uint8_t* nonce) noexcept nogil:
    cdef uint64_t sequence = key.sequence
    cdef int i
    memcpy(nonce, key.iv, 12)
    for i in range(8):
        nonce[11 - i] ^= <uint8_t>(sequence >> (8 * i))


cdef bint aead_open(
    Expanded* expanded, TrafficKey* key, const uint8_t* record, uint8_t* inner, int n_inner
) noexcept nogil:
    cdef uint8_t[12] nonce
    cdef size_t n_out = 0
    cdef bint opened
    nonce_make(key, nonce)
    if expanded.aead is not NULL:
        opened = crypto.EVP_AEAD_CTX_open(
            expanded.aead, inner, &n_out, n_inner, nonce, sizeof(nonce), record + AEAD_HEADER,
            n_inner + AEAD_TAG, record, AEAD_HEADER) == 1
    else:
        opened = cipher_open(expanded.context, nonce, record, inner, n_inner)
    if opened:
        key.sequence += 1
        return True
    memset(inner, 0, n_inner)  # unauthenticated plaintext must not be used
    crypto.ERR_clear_error()   # the error queue is the thread's
    return False


cdef bint cipher_open(
    EVP_CIPHER_CTX* context, const uint8_t* nonce, const uint8_t* record, uint8_t* inner,
    int n_inner
) noexcept nogil:
    cdef const uint8_t* sealed = record + AEAD_HEADER
    cdef int n = 0
    return (
        crypto.EVP_CipherInit_ex(context, NULL, NULL, NULL, nonce, 0) == 1
        and crypto.EVP_CipherUpdate(context, NULL, &n, record, AEAD_HEADER) == 1
        and crypto.EVP_CipherUpdate(context, inner, &n, sealed, n_inner) == 1
        and n == n_inner
        and crypto.EVP_CIPHER_CTX_ctrl(
            context, EVP_CTRL_AEAD_SET_TAG, AEAD_TAG, <void*>(sealed + n_inner)) == 1
        and crypto.EVP_CipherFinal_ex(context, inner + n_inner, &n) == 1
    )


cdef bint aead_seal(
    Expanded* expanded, TrafficKey* key, uint8_t* record, int n_inner
) noexcept nogil:
    cdef uint8_t[12] nonce
    cdef uint8_t* inner = record + AEAD_HEADER
    cdef size_t n_out = 0
    nonce_make(key, nonce)
    key.sequence += 1  # advanced even when sealing fails, so that no nonce is used twice
    if expanded.aead is not NULL:
        return crypto.EVP_AEAD_CTX_seal(
            expanded.aead, inner, &n_out, n_inner + AEAD_TAG, nonce, sizeof(nonce), inner, n_inner,
            record, AEAD_HEADER) == 1
    return cipher_seal(expanded.context, nonce, record, n_inner)


cdef bint cipher_seal(
    EVP_CIPHER_CTX* context, const uint8_t* nonce, uint8_t* record, int n_inner
) noexcept nogil:
    cdef uint8_t* inner = record + AEAD_HEADER
    cdef int n = 0
    return (
        crypto.EVP_CipherInit_ex(context, NULL, NULL, NULL, nonce, 1) == 1
        and crypto.EVP_CipherUpdate(context, NULL, &n, record, AEAD_HEADER) == 1
        and crypto.EVP_CipherUpdate(context, inner, &n, inner, n_inner) == 1
        and n == n_inner
        and crypto.EVP_CipherFinal_ex(context, inner + n_inner, &n) == 1
        and crypto.EVP_CIPHER_CTX_ctrl(
            context, EVP_CTRL_AEAD_GET_TAG, AEAD_TAG, inner + n_inner) == 1
    )
