"""A TLS 1.3 client's handshake at minimal cost to the client; see hello.pxd."""

import secrets
import struct

from libc.stdint cimport uint8_t, uint16_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset, strlen

from fastderp.tls.aead cimport (
    AEAD_HEADER, AEAD_TAG, Expanded, Keyring, aead_open, aead_seal,
    key_expanded, keyring_forget, suite_of, traffic_key_derive,
)
from fastderp.tls.record cimport (
    RECORD_OK, RECORD_WIRE_MAX, Records, record_init, record_secret_size,
)
from fastderp.tls.hkdf cimport HASH_MAX, expand_label, hash_of, hmac, secret_next
from fastderp.tls.openssl cimport EVP_PKEY, EVP_PKEY_CTX, NID_X25519, crypto

from fastderp.tls.record import SUITES
from fastderp.util.net import host_bytes, is_address

cdef enum:
    MESSAGE_HEADER = 4
    TYPE_CHANGE = 20
    TYPE_ALERT = 21
    TYPE_HANDSHAKE = 22
    TYPE_DATA = 23
    SERVER_HELLO = 2
    FINISHED = 20
    RANDOM = 32
    SHARED = 32
    EXT_VERSIONS = 0x2B
    EXT_KEY_SHARE = 0x33
    TLS_13 = 0x0304
    X25519 = 0x1D

# ECDSA with P-256, RSA-PSS, Ed25519 and RSA cover the certificates of all relays.
SIGNATURES = (0x0403, 0x0804, 0x0807, 0x0805, 0x0503, 0x0401)


def client_hello(str server_name not None, suites, bytes public_key not None):
    unknown = [suite for suite in suites if suite not in SUITES]
    if unknown:
        raise ValueError(f"unknown TLS 1.3 suites: {', '.join(unknown)}; use {', '.join(SUITES)}")
    extensions = [
        (10, vector(2, struct.pack("!H", X25519))),
        (13, vector(2, struct.pack(f"!{len(SIGNATURES)}H", *SIGNATURES))),
        (EXT_VERSIONS, vector(1, struct.pack("!H", TLS_13))),
        (EXT_KEY_SHARE, vector(2, struct.pack("!H", X25519) + vector(2, public_key))),
    ]
    if not is_address(server_name):
        extensions.insert(0, (0, vector(2, b"\0" + vector(2, host_bytes(server_name)))))
    body = b"".join([
        b"\3\3", secrets.token_bytes(RANDOM),
        vector(1, secrets.token_bytes(32)),  # a session id, for middleboxes (RFC 8446 D.4)
        vector(2, b"".join([struct.pack("!H", SUITES[suite]) for suite in suites])),
        vector(1, b"\0"),
        vector(2, b"".join([
            struct.pack("!H", number) + vector(2, data) for number, data in extensions
        ])),
    ])
    return b"\1" + vector(3, body)


def vector(int n_length, bytes data not None):
    """Return `data` after its length in n_length bytes."""
    return len(data).to_bytes(n_length, "big") + data


# Secrets (RFC 8446 §7.1).

cdef bint expand(size_t n_hash, const uint8_t* secret, const char* label,
                 const uint8_t* context, size_t n_context, uint8_t* out) noexcept nogil:
    """Write one hash of output; `out` may be `secret`."""
    return expand_label(n_hash, secret, label, strlen(label), context, n_context, out, n_hash)


cdef bint agree(EVP_PKEY* own, const uint8_t* theirs, uint8_t* shared) noexcept nogil:
    cdef EVP_PKEY* peer = crypto.EVP_PKEY_new_raw_public_key(NID_X25519, NULL, theirs, SHARED)
    cdef EVP_PKEY_CTX* context = crypto.EVP_PKEY_CTX_new(own, NULL)
    cdef size_t n = SHARED
    cdef bint ok = (
        peer is not NULL and context is not NULL and crypto.EVP_PKEY_derive_init(context) == 1
        and crypto.EVP_PKEY_derive_set_peer(context, peer) == 1
        and crypto.EVP_PKEY_derive(context, shared, &n) == 1)
    crypto.EVP_PKEY_CTX_free(context)
    crypto.EVP_PKEY_free(peer)
    return ok


cdef bint secrets_begin(Hello* h, const uint8_t* shared) noexcept nogil:
    """Derive the handshake traffic keys and the main secret from the key agreement."""
    cdef uint8_t zeros[HASH_MAX]
    cdef uint8_t secret[HASH_MAX]
    cdef uint8_t transcript_hash[HASH_MAX]
    cdef size_t n = record_secret_size(h.suite)
    memset(zeros, 0, sizeof(zeros))
    secret_next(n, NULL, zeros, n, secret)
    secret_next(n, secret, shared, SHARED, secret)
    hash_of(n, h.transcript, h.n_transcript, transcript_hash)
    secret_next(n, secret, zeros, n, h.main_secret)
    return (expand(n, secret, b"c hs traffic", transcript_hash, n, h.ours.secret)
            and expand(n, secret, b"s hs traffic", transcript_hash, n, h.theirs.secret)
            and traffic_key_derive(&h.ours, suite_of(h.suite))
            and traffic_key_derive(&h.theirs, suite_of(h.suite)))


cdef bint seal(Hello* h, Keyring* ring, const uint8_t* message, size_t n, uint8_t* answer,
               size_t* n_answer) noexcept nogil:
    """Append a message to the answer as one record."""
    cdef uint8_t* record = answer + n_answer[0]
    cdef Expanded* expanded = key_expanded(ring, &h.ours, suite_of(h.suite), True)
    record[0] = TYPE_DATA
    record[1] = record[2] = 3
    record[3] = 0
    record[4] = <uint8_t>(n + 1 + AEAD_TAG)
    memcpy(record + AEAD_HEADER, message, n)
    record[AEAD_HEADER + n] = TYPE_HANDSHAKE
    n_answer[0] += AEAD_HEADER + n + 1 + AEAD_TAG
    return expanded is not NULL and aead_seal(expanded, &h.ours, record, <int>(n + 1))


cdef bint unseal(Hello* h, Keyring* ring, const uint8_t* record, size_t n_record,
                 uint8_t* content, size_t* n, uint8_t* kind) noexcept nogil:
    cdef Expanded* expanded = key_expanded(ring, &h.theirs, suite_of(h.suite), False)
    if n_record <= AEAD_HEADER + AEAD_TAG or expanded is NULL:
        return False
    n[0] = n_record - AEAD_HEADER - AEAD_TAG
    if not aead_open(expanded, &h.theirs, record, content, <int>n[0]):
        return False
    while n[0] and content[n[0] - 1] == 0:
        n[0] -= 1                   # padding
    if n[0] == 0:
        return False
    n[0] -= 1
    kind[0] = content[n[0]]
    return True


cdef bint secrets_end(Hello* h, Keyring* ring, uint8_t* answer, size_t* n_answer,
                      Records* records) noexcept nogil:
    """Answer the server's Finished with ours, and derive the keys of the connection."""
    cdef uint8_t client_secret[HASH_MAX]
    cdef uint8_t server_secret[HASH_MAX]
    cdef uint8_t transcript_hash[HASH_MAX]
    cdef uint8_t finished_secret[HASH_MAX]
    cdef uint8_t finished[MESSAGE_HEADER + HASH_MAX]
    cdef size_t n = record_secret_size(h.suite)
    memcpy(answer, b"\x14\3\3\0\1\1", 6)
    n_answer[0] = 6
    finished[0] = FINISHED
    finished[1] = finished[2] = 0
    finished[3] = <uint8_t>n
    hash_of(n, h.transcript, h.n_parsed, transcript_hash)
    if not expand(n, h.ours.secret, b"finished", NULL, 0, finished_secret):
        return False
    hmac(n, finished_secret, transcript_hash, n, finished + MESSAGE_HEADER)
    return (expand(n, h.main_secret, b"c ap traffic", transcript_hash, n, client_secret)
            and expand(n, h.main_secret, b"s ap traffic", transcript_hash, n, server_secret)
            and seal(h, ring, finished, MESSAGE_HEADER + n, answer, n_answer)
            and record_init(records, h.suite, True, server_secret, client_secret) == RECORD_OK)


# Messages.

cdef size_t number(const uint8_t* p, int n) noexcept nogil:
    cdef size_t value = 0
    cdef int i
    for i in range(n):
        value = value << 8 | p[i]
    return value


cdef bint transcript_add(Hello* h, const uint8_t* data, size_t n) noexcept nogil:
    if h.transcript is NULL:
        h.transcript = <uint8_t*>malloc(TRANSCRIPT_MAX)
    if h.transcript is NULL or h.n_transcript + n > TRANSCRIPT_MAX:
        return False
    memcpy(h.transcript + h.n_transcript, data, n)
    h.n_transcript += n
    return True


cdef HelloStatus server_hello(Hello* h, const Share* share, const uint8_t* p,
                              size_t n) noexcept nogil:
    """Parse the ServerHello, alone in its record, and derive the handshake keys."""
    cdef uint8_t shared[SHARED]
    cdef size_t at = MESSAGE_HEADER + 2 + RANDOM
    cdef size_t end
    cdef size_t size
    cdef const uint8_t* theirs = NULL
    cdef bint is_new = False
    if (not transcript_add(h, share.client_hello, share.n_client_hello)
            or not transcript_add(h, p, n)):
        return HELLO_NO_MEMORY
    if n < at + 1 or p[0] != SERVER_HELLO or MESSAGE_HEADER + number(p + 1, 3) != n:
        return HELLO_BROKEN
    at += 1 + p[at]                 # the session id
    if n < at + 5:
        return HELLO_OLD            # TLS 1.3 requires extensions
    h.suite = <uint16_t>number(p + at, 2)
    end = at + 5 + number(p + at + 3, 2)
    at += 5
    if end != n:
        return HELLO_BROKEN
    while at + 4 <= end:
        size = number(p + at + 2, 2)
        if at + 4 + size > end:
            return HELLO_BROKEN
        if number(p + at, 2) == EXT_VERSIONS and size == 2:
            is_new = number(p + at + 4, 2) == TLS_13
        elif (number(p + at, 2) == EXT_KEY_SHARE and size == 4 + SHARED
              and number(p + at + 4, 2) == X25519):
            theirs = p + at + 8
        at += 4 + size
    if not is_new:
        return HELLO_OLD
    h.n_parsed = h.n_transcript
    if theirs is NULL or record_secret_size(h.suite) == 0:
        return HELLO_BROKEN
    if not agree(share.own, theirs, shared) or not secrets_begin(h, shared):
        return HELLO_BROKEN
    return HELLO_MORE


cdef bint finished_is_there(Hello* h) noexcept nogil:
    """Walk the complete messages; return True at the server's Finished."""
    cdef const uint8_t* p
    cdef size_t n
    while h.n_transcript - h.n_parsed >= MESSAGE_HEADER:
        p = h.transcript + h.n_parsed
        n = MESSAGE_HEADER + number(p + 1, 3)
        if h.n_transcript - h.n_parsed < n:
            return False
        h.n_parsed += n
        if p[0] == FINISHED:
            return True
    return False


cdef HelloStatus record_take(Hello* h, const Share* share, Keyring* ring, const uint8_t* record,
                             size_t n_record, uint8_t* scratch) noexcept nogil:
    cdef uint8_t kind = record[0]
    cdef const uint8_t* content = record + AEAD_HEADER
    cdef size_t n = n_record - AEAD_HEADER
    if kind == TYPE_CHANGE:
        return HELLO_MORE
    if kind == TYPE_HANDSHAKE and h.n_transcript == 0:
        return server_hello(h, share, content, n)
    if kind == TYPE_DATA and h.suite:
        if not unseal(h, ring, record, n_record, scratch, &n, &kind):
            return HELLO_BROKEN
        content = scratch
        if kind == TYPE_HANDSHAKE:
            return HELLO_MORE if transcript_add(h, content, n) else HELLO_NO_MEMORY
    if kind == TYPE_ALERT and n == 2:
        h.alert = content[1]
        return HELLO_ALERT
    return HELLO_BROKEN


cdef HelloStatus hello_take(
    Hello* h, const Share* share, Keyring* ring, const uint8_t* wire, size_t n_wire,
    size_t* consumed, uint8_t* scratch, uint8_t* answer, size_t* n_answer, Records* records
) noexcept nogil:
    cdef HelloStatus status = HELLO_MORE
    cdef size_t n
    consumed[0] = 0
    while status == HELLO_MORE:
        if n_wire - consumed[0] < AEAD_HEADER:
            return HELLO_MORE
        n = AEAD_HEADER + number(wire + consumed[0] + 3, 2)
        if n > RECORD_WIRE_MAX:
            return HELLO_BROKEN
        if n_wire - consumed[0] < n:
            return HELLO_MORE
        status = record_take(h, share, ring, wire + consumed[0], n, scratch)
        consumed[0] += n
        if status == HELLO_MORE and h.suite and finished_is_there(h):
            return HELLO_DONE if secrets_end(h, ring, answer, n_answer, records) else HELLO_BROKEN
    return status


cdef void hello_end(Hello* h, Keyring* ring) noexcept nogil:
    free(h.transcript)
    if h.suite:
        keyring_forget(ring, &h.theirs, False)
        keyring_forget(ring, &h.ours, True)
    crypto.OPENSSL_cleanse(h, sizeof(Hello))
