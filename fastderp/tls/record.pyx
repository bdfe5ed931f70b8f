"""TLS 1.3 records, opened and sealed in batches with the keys of a handshake (RFC 8446 §5).

aead.pyx does the cryptography; this module frames, numbers, rekeys and refuses. record.pxd gives
the owner thread of each field. It takes no locks: to seal, the caller holds the output lock.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, _PyBytes_Resize
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.string cimport memcpy, memset

from fastderp.tls.aead cimport (
    AEAD_HEADER, AEAD_TAG, Expanded, SUITE_AES_128_GCM, SUITE_AES_256_GCM, SUITE_CHACHA20_POLY1305,
    Suite, aead_open, aead_seal, key_expanded, keyring_clear, keyring_forget, suite_of,
    traffic_key_advance, traffic_key_derive,
)
from fastderp.tls.openssl cimport crypto

from fastderp.tls.errors import TlsError


cdef extern from *:
    """
    #define fastderp_or(bits, more) __atomic_fetch_or(bits, more, __ATOMIC_RELEASE)
    #define fastderp_load(value) __atomic_load_n(value, __ATOMIC_RELAXED)
    #define fastderp_take(bits) __atomic_exchange_n(bits, 0, __ATOMIC_ACQUIRE)
    """
    uint32_t fastderp_or(uint32_t*, uint32_t) noexcept nogil
    uint32_t fastderp_load(uint32_t*) noexcept nogil
    uint32_t fastderp_take(uint32_t*) noexcept nogil


cdef enum:
    INNER_MAX = RECORD_PLAIN_MAX + 1          # content, content type and padding (RFC 8446 §5.4)
    KEY_UPDATE_WIRE = RECORD_OVERHEAD + 5
    ALERT_WIRE = RECORD_OVERHEAD + 2

    TYPE_ALERT = 21
    TYPE_HANDSHAKE = 22
    TYPE_DATA = 23

    MESSAGE_TICKET = 4
    MESSAGE_KEY_UPDATE = 24
    TICKET_MAX = 132000                       # largest session ticket (RFC 8446 §4.6.1), rounded up

    ALERT_CLOSE_NOTIFY = 0
    ALERT_USER_CANCELED = 90

    # AES-GCM is safe for 2^24.5 records of full size (RFC 8446 §5.5); change keys long before.
    REKEY_RECORDS = 1 << 22
    BARREN_MAX = 32                           # records in a row without data: more than peers send
    UPDATES_MAX = 32                          # KeyUpdates; 64 data records under a key allow one


cdef size_t record_secret_size(uint16_t suite) noexcept nogil:
    cdef const Suite* s = suite_of(suite)
    return s.secret_size if s is not NULL else 0


cdef bint key_update(Records* r, Keyring* ring, TrafficKey* key, bint sealing) noexcept nogil:
    """Advance one direction to its next generation, as a KeyUpdate demands."""
    keyring_forget(ring, key, sealing)
    return traffic_key_advance(key, suite_of(r.suite))


cdef bint seal_one(Records* r, Keyring* ring, uint8_t* record, int n_inner) noexcept nogil:
    """Make a record of the inner plaintext at record + AEAD_HEADER; False ends the connection."""
    cdef const Suite* suite = suite_of(r.suite)
    cdef Expanded* expanded = NULL
    cdef int n_sealed = n_inner + AEAD_TAG
    if suite is not NULL:
        expanded = key_expanded(ring, &r.tx, suite, True)
    if expanded is NULL:
        return False
    record[0] = TYPE_DATA
    record[1] = 3
    record[2] = 3
    record[3] = n_sealed >> 8
    record[4] = n_sealed & 0xFF
    return aead_seal(expanded, &r.tx, record, n_inner)


cdef RecordStatus record_open(
    Records* r, Keyring* ring, const uint8_t* wire, size_t n_wire, uint8_t* plain, size_t plain_cap,
    size_t* consumed, size_t* produced
) noexcept nogil:
    cdef size_t n_left = n_wire    # more than there can be
    return record_open_some(r, ring, wire, n_wire, plain, plain_cap, &n_left, consumed, produced)


cdef RecordStatus record_open_some(
    Records* r, Keyring* ring, const uint8_t* wire, size_t n_wire, uint8_t* plain, size_t plain_cap,
    size_t* n_left, size_t* consumed, size_t* produced
) noexcept nogil:
    cdef RecordStatus status = RECORD_OK
    cdef size_t n_record, n_plain
    cdef uint64_t sequence
    cdef ReadState before
    consumed[0] = 0
    produced[0] = 0
    while n_left[0]:
        status = record_ahead(
            wire + consumed[0], n_wire - consumed[0], plain_cap - produced[0], &n_record
        )
        if status != RECORD_OK or n_record == 0:
            break
        before = r.reading
        sequence = r.rx.sequence
        status = record_open_one(
            r, ring, wire + consumed[0], n_record, plain + produced[0], &n_plain
        )
        if status != RECORD_OK:
            r.reading = before
            r.rx.sequence = sequence
            break
        consumed[0] += n_record
        produced[0] += n_plain
        n_left[0] -= 1
    return status


cdef RecordStatus record_ahead(
    const uint8_t* wire, size_t n_wire, size_t n_room, size_t* n_record
) noexcept nogil:
    """Return the next record's size from its header; 0 while it is incomplete or does not fit."""
    cdef size_t n_sealed
    n_record[0] = 0
    if n_wire < AEAD_HEADER:
        return RECORD_OK
    if wire[0] != TYPE_DATA:
        return RECORD_UNEXPECTED
    n_sealed = (<size_t>wire[3] << 8) | wire[4]
    if n_sealed > INNER_MAX + AEAD_TAG:
        return RECORD_OVERFLOW
    if n_sealed <= AEAD_TAG:
        return RECORD_DECODE
    if n_sealed + AEAD_HEADER <= n_wire and n_sealed - AEAD_TAG <= n_room:
        n_record[0] = n_sealed + AEAD_HEADER
    return RECORD_OK


cdef RecordStatus record_open_one(
    Records* r, Keyring* ring, const uint8_t* record, size_t n_record, uint8_t* plain,
    size_t* n_plain
) noexcept nogil:
    """Open one complete record; n_plain is the application data it left in `plain`."""
    cdef const Suite* suite = suite_of(r.suite)
    cdef Expanded* expanded = NULL
    cdef size_t n = n_record - AEAD_HEADER - AEAD_TAG
    n_plain[0] = 0
    if suite is not NULL:
        expanded = key_expanded(ring, &r.rx, suite, False)
    if expanded is NULL:
        return RECORD_NO_MEMORY
    if not aead_open(expanded, &r.rx, record, plain, <int>n):
        return RECORD_BAD_MAC
    if r.rx.sequence == REKEY_RECORDS:
        fastderp_or(&r.duty, DUTY_ASK)
    while n > 0 and plain[n - 1] == 0:
        n -= 1
    if n == 0:
        return RECORD_UNEXPECTED
    n -= 1
    if plain[n] == TYPE_DATA:
        n_plain[0] = n
        return data_taken(r, n)
    if plain[n] == TYPE_HANDSHAKE:
        return handshake_taken(r, ring, plain, n)
    if plain[n] == TYPE_ALERT:
        return alert_taken(r, plain, n)
    return RECORD_UNEXPECTED


cdef bint message_incomplete(const Records* r) noexcept nogil:
    return r.reading.n_message > 0 or r.reading.skip_bytes > 0


cdef RecordStatus data_taken(Records* r, size_t n) noexcept nogil:
    if message_incomplete(r):
        return RECORD_UNEXPECTED
    if n == 0:
        return barren_taken(r)
    r.reading.n_barren = 0
    if r.reading.n_updates > 0 and r.rx.sequence & 63 == 0:
        r.reading.n_updates -= 1
    return RECORD_OK


cdef RecordStatus barren_taken(Records* r) noexcept nogil:
    r.reading.n_barren += 1
    return RECORD_STORM if r.reading.n_barren > BARREN_MAX else RECORD_OK


cdef RecordStatus alert_taken(Records* r, const uint8_t* alert, size_t n) noexcept nogil:
    if message_incomplete(r):
        return RECORD_UNEXPECTED
    if n != 2:
        return RECORD_DECODE
    if alert[1] == ALERT_CLOSE_NOTIFY:
        return RECORD_CLOSE_NOTIFY
    if alert[1] == ALERT_USER_CANCELED:
        return barren_taken(r)
    r.rx_alert = alert[1]
    return RECORD_ALERT


cdef RecordStatus handshake_taken(
    Records* r, Keyring* ring, const uint8_t* data, size_t n
) noexcept nogil:
    """Read the handshake messages of one record; a message may continue in the next one."""
    # First of all: a KeyUpdate cannot be undone, so that it is refused before it is taken.
    cdef RecordStatus status = barren_taken(r)
    cdef size_t at = 0, n_skip
    if n == 0:
        return RECORD_UNEXPECTED
    if status != RECORD_OK:
        return status
    while at < n:
        if r.reading.skip_bytes > 0:
            n_skip = min(<size_t>r.reading.skip_bytes, n - at)
            r.reading.skip_bytes -= <uint32_t>n_skip
            at += n_skip
            continue
        r.reading.message[r.reading.n_message] = data[at]
        r.reading.n_message += 1
        at += 1
        status = RECORD_OK
        if r.reading.n_message == 4:
            status = message_begun(r)
        elif r.reading.n_message == 5:
            # The key changes after it, so nothing may follow in its record (RFC 8446 §5.1).
            status = key_update_taken(r, ring) if at == n else RECORD_UNEXPECTED
        if status != RECORD_OK:
            return status
    return RECORD_OK


cdef RecordStatus message_begun(Records* r) noexcept nogil:
    """Judge a message's type and length: KeyUpdate waits for its byte, a ticket is skipped."""
    cdef uint32_t n_body = (
        (<uint32_t>r.reading.message[1] << 16) | (<uint32_t>r.reading.message[2] << 8)
        | r.reading.message[3]
    )
    if r.reading.message[0] == MESSAGE_KEY_UPDATE:
        return RECORD_OK if n_body == 1 else RECORD_DECODE
    if r.reading.message[0] == MESSAGE_TICKET and r.is_client:
        r.reading.n_message = 0
        r.reading.skip_bytes = n_body
        return RECORD_OK if n_body <= TICKET_MAX else RECORD_DECODE
    return RECORD_UNEXPECTED


cdef RecordStatus key_update_taken(Records* r, Keyring* ring) noexcept nogil:
    r.reading.n_message = 0
    if r.reading.message[4] > 1:
        return RECORD_DECODE
    r.reading.n_updates += 1
    if r.reading.n_updates > UPDATES_MAX:
        return RECORD_STORM
    if r.reading.message[4] == 1:
        fastderp_or(&r.duty, DUTY_ANSWER)
    return RECORD_OK if key_update(r, ring, &r.rx, False) else RECORD_NO_MEMORY


cdef size_t record_sealed_size(size_t n_plain) noexcept nogil:
    cdef size_t n_records = (n_plain + RECORD_PLAIN_MAX - 1) // RECORD_PLAIN_MAX
    return n_plain + RECORD_OVERHEAD * n_records + KEY_UPDATE_WIRE


cdef RecordStatus record_seal(
    Records* r, Keyring* ring, const iovec* iov, int n_iov, uint8_t* wire, size_t wire_cap,
    size_t* produced
) noexcept nogil:
    cdef RecordStatus status = RECORD_OK
    cdef size_t n_left = iov_size(iov, n_iov)
    cdef size_t n, offset = 0
    produced[0] = 0
    if wire_cap < record_sealed_size(n_left):
        return RECORD_NO_ROOM
    if fastderp_load(&r.duty) != 0 or r.tx.sequence >= REKEY_RECORDS:
        status = key_update_send(r, ring, wire, produced)
    while n_left > 0 and status == RECORD_OK:
        n = min(n_left, <size_t>RECORD_PLAIN_MAX)
        iov_gather(&iov, &offset, wire + produced[0] + AEAD_HEADER, n)
        wire[produced[0] + AEAD_HEADER + n] = TYPE_DATA
        if not seal_one(r, ring, wire + produced[0], <int>n + 1):
            status = RECORD_NO_MEMORY
            break
        produced[0] += n + RECORD_OVERHEAD
        n_left -= n
    return status


cdef size_t iov_size(const iovec* iov, int n_iov) noexcept nogil:
    cdef size_t n = 0
    cdef int i
    for i in range(n_iov):
        n += iov[i].iov_len
    return n


cdef void iov_gather(const iovec** iov, size_t* offset, uint8_t* out, size_t n) noexcept nogil:
    """Copy the next n bytes and advance `iov` and `offset` past them."""
    cdef size_t n_part
    while n > 0:
        n_part = min(n, iov[0].iov_len - offset[0])
        memcpy(out, <const uint8_t*>iov[0].iov_base + offset[0], n_part)
        out += n_part
        n -= n_part
        offset[0] += n_part
        if offset[0] == iov[0].iov_len:
            iov[0] += 1
            offset[0] = 0


cdef RecordStatus key_update_send(
    Records* r, Keyring* ring, uint8_t* wire, size_t* produced
) noexcept nogil:
    """Seal a KeyUpdate with the old key and advance it. Answers any number of requests at once."""
    cdef uint32_t duty = fastderp_take(&r.duty)
    cdef uint8_t[5] message
    message[0] = MESSAGE_KEY_UPDATE
    message[1] = message[2] = 0
    message[3] = 1
    message[4] = 1 if duty & DUTY_ASK else 0
    if not seal_small(r, ring, TYPE_HANDSHAKE, message, 5, wire, produced):
        return RECORD_NO_MEMORY
    return RECORD_OK if key_update(r, ring, &r.tx, True) else RECORD_NO_MEMORY


cdef RecordStatus record_seal_alert(
    Records* r, Keyring* ring, uint8_t level, uint8_t description, uint8_t* wire, size_t wire_cap,
    size_t* produced
) noexcept nogil:
    cdef uint8_t[2] alert
    produced[0] = 0
    if wire_cap < ALERT_WIRE:
        return RECORD_NO_ROOM
    alert[0] = level
    alert[1] = description
    if not seal_small(r, ring, TYPE_ALERT, alert, 2, wire, produced):
        return RECORD_NO_MEMORY
    return RECORD_OK


cdef bint seal_small(
    Records* r, Keyring* ring, uint8_t content_type, const uint8_t* content, int n, uint8_t* wire,
    size_t* produced
) noexcept nogil:
    """Seal one short record that is not application data."""
    memcpy(wire + AEAD_HEADER, content, n)
    wire[AEAD_HEADER + n] = content_type
    if not seal_one(r, ring, wire, n + 1):
        return False
    produced[0] += n + RECORD_OVERHEAD
    return True


cdef RecordStatus record_init(
    Records* r, uint16_t suite, bint is_client, const uint8_t* rx_secret, const uint8_t* tx_secret
) noexcept nogil:
    cdef const Suite* s = suite_of(suite)
    memset(r, 0, sizeof(Records))
    if s is NULL:
        return RECORD_UNEXPECTED
    r.suite = suite
    r.is_client = is_client
    memcpy(r.rx.secret, rx_secret, s.secret_size)
    memcpy(r.tx.secret, tx_secret, s.secret_size)
    if traffic_key_derive(&r.rx, s) and traffic_key_derive(&r.tx, s):
        return RECORD_OK
    record_wipe(r, NULL)
    return RECORD_NO_MEMORY


cdef void record_wipe(Records* r, Keyring* ring) noexcept nogil:
    if ring is not NULL:
        keyring_forget(ring, &r.rx, False)
        keyring_forget(ring, &r.tx, True)
    crypto.OPENSSL_cleanse(r, sizeof(Records))


include "record_status.pxi"

SUITES = {
    "TLS_AES_128_GCM_SHA256": SUITE_AES_128_GCM,
    "TLS_AES_256_GCM_SHA384": SUITE_AES_256_GCM,
    "TLS_CHACHA20_POLY1305_SHA256": SUITE_CHACHA20_POLY1305,
}


include "record_layer.pxi"
