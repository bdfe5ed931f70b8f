# TLS 1.3 records (RFC 8446 §5), opened and sealed in batches with the keys of a finished handshake.
# One Records per session. The rx side belongs to the thread that reads the session, the tx side to
# the holder of the session's output lock. Both touch only `duty`, atomically. No function needs the
# GIL.

from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from fastderp.tls.aead cimport Expanded, Keyring, TrafficKey


cdef enum:
    RECORD_PLAIN_MAX = 16384
    RECORD_OVERHEAD = 22                  # header 5, inner content type 1, tag 16
    RECORD_WIRE_MAX = 16384 + 256 + 5     # largest length a peer may announce (RFC 8446 §5.2)
    NO_ALERT = 255


cdef enum RecordStatus:
    RECORD_OK = 0
    RECORD_CLOSE_NOTIFY      # the peer closed its direction in order
    RECORD_ALERT             # the peer sent another alert: Records.rx_alert
    RECORD_BAD_MAC           # sealed with other keys, or changed, reordered, replayed
    RECORD_OVERFLOW          # announces more than RFC 8446 §5.2 permits
    RECORD_UNEXPECTED        # a type or message that has no place after the handshake
    RECORD_DECODE            # malformed alert, KeyUpdate or record length
    RECORD_STORM             # too many KeyUpdates or empty records
    RECORD_NO_ROOM           # the caller's output buffer is too small; nothing was done
    RECORD_NO_MEMORY         # libcrypto could not allocate or work


# What the records opened so far have left behind; a refused record changes nothing of it.
cdef struct ReadState:
    uint8_t message[5]       # start of an incomplete handshake message
    uint8_t n_message        # bytes of it
    uint8_t n_barren         # records in a row that carried no application data
    uint8_t n_updates        # KeyUpdates that exceed the allowance per data record
    uint32_t skip_bytes      # rest of a NewSessionTicket body


cdef struct Records:
    TrafficKey rx            # reading thread only, as `reading` and `rx_alert`
    TrafficKey tx            # under the output lock only
    uint16_t suite           # SuiteNumber; 0 once wiped. Constant between
    uint8_t is_client        # constant; only a client may be sent NewSessionTicket
    uint8_t rx_alert         # description of the alert of a RECORD_ALERT
    ReadState reading
    uint32_t duty            # DUTY_* bits: set by the reader, taken by the next seal


cdef enum:
    DUTY_ANSWER = 1          # the peer requested a change of our sending key
    DUTY_ASK = 2             # the peer's key has sealed many records: request a change


# Prepare `r` with the two application traffic secrets of a finished handshake. `suite` is a
# SuiteNumber; the secrets are as long as its hash (32 or 48 bytes).
cdef RecordStatus record_init(
    Records* r, uint16_t suite, bint is_client, const uint8_t* rx_secret, const uint8_t* tx_secret
) noexcept nogil

# Return the bytes of a traffic secret of this suite; 0 for any other number than a SuiteNumber.
cdef size_t record_secret_size(uint16_t suite) noexcept nogil

# Functions that open and seal take the keyring of the calling thread.

# Open every complete record of wire[0:n_wire] into plain, one after the other. Stops at a record
# that is incomplete or whose inner plaintext (content, content type, padding) does not fit.
# consumed and produced are valid for every status and cover only records that were good: the record
# that ends the connection is left, and opening it again returns the same status.
# plain must not overlap wire. With plain_cap >= n_wire every record fits.
cdef RecordStatus record_open(
    Records* r, Keyring* ring, const uint8_t* wire, size_t n_wire, uint8_t* plain, size_t plain_cap,
    size_t* consumed, size_t* produced
) noexcept nogil

# Open up to *n_left records, which are counted down; otherwise as record_open.
cdef RecordStatus record_open_some(
    Records* r, Keyring* ring, const uint8_t* wire, size_t n_wire, uint8_t* plain, size_t plain_cap,
    size_t* n_left, size_t* consumed, size_t* produced
) noexcept nogil

# Return an upper bound of what record_seal writes for n_plain bytes, KeyUpdate included.
cdef size_t record_sealed_size(size_t n_plain) noexcept nogil

# Join the iovecs into records of up to 16 KiB and seal them into wire, behind a KeyUpdate when one
# is due. After any status but RECORD_OK and RECORD_NO_ROOM the connection must be closed: record
# numbers may be spent.
cdef RecordStatus record_seal(
    Records* r, Keyring* ring, const iovec* iov, int n_iov, uint8_t* wire, size_t wire_cap,
    size_t* produced
) noexcept nogil

# Seal one alert (24 bytes of wire).
cdef RecordStatus record_seal_alert(
    Records* r, Keyring* ring, uint8_t level, uint8_t description, uint8_t* wire, size_t wire_cap,
    size_t* produced
) noexcept nogil

# Overwrite every key, in the keyring too unless that is NULL. Safe to repeat. Another thread's
# keyring keeps the key until it needs the place.
cdef void record_wipe(Records* r, Keyring* ring) noexcept nogil

# Return a short phrase for logs and exceptions.
cdef const char* record_status_text(RecordStatus status) noexcept nogil

# Return the alert description (RFC 8446 §6) for the peer after a failed record_open.
# NO_ALERT for none.
cdef uint8_t record_status_alert(RecordStatus status) noexcept nogil


cdef class RecordLayer:
    cdef Records c
    cdef Keyring ring
    cdef Expanded[2] places  # the ring's
    cdef bytes _pending
    cdef RecordStatus _status  # of the record that ended the input; RECORD_OK before
    cdef void _wipe(self) noexcept
    cdef bytes _open(self, const uint8_t* wire, size_t n_wire)
    cdef bytes _seal(self, void* data, size_t n)
    cdef RecordStatus _open_some(
        self, const uint8_t* wire, size_t n_wire, PyObject* plain, size_t* n_opened, size_t* n_plain
    ) noexcept
    cdef object _error(self, RecordStatus status)
    cdef bytes _alert(self, uint8_t level, uint8_t description)
    cdef int _alive(self) except -1
    cdef int _check(self, RecordStatus status) except -1

    # Move the keys into `into`. Raises TlsError when they have been moved away before.
    cdef int take(self, Records* into) except -1


# Make a RecordLayer from derived secrets; `pending` is ciphertext that was read and not opened.
cdef RecordLayer record_layer_new(
    uint16_t suite, bint is_client, const uint8_t* rx_secret, const uint8_t* tx_secret,
    bytes pending,
)

# Make a RecordLayer of keys in use, which are moved out of `records`.
cdef RecordLayer record_layer_of(Records* records, bytes pending)
