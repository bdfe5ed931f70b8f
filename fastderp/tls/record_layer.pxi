# Included by record.pyx: its Python interface, RecordLayer.

cdef PyObject* bytes_new(size_t n) except NULL:
    """Return n bytes without content that the caller owns, for _PyBytes_Resize."""
    cdef bytes data = PyBytes_FromStringAndSize(NULL, n)
    Py_INCREF(data)
    return <PyObject*>data


cdef bytes bytes_of(const uint8_t* data, size_t n):
    return PyBytes_FromStringAndSize(<const char*>data, n)


cdef class RecordLayer:
    """See record.pyi."""

    def __cinit__(self):
        self.ring.places = self.places
        self.ring.n_places = 2

    def __init__(
        self, suite, bytes read_secret not None, bytes write_secret not None, *, bint client=False,
        uint64_t read_sequence=0, uint64_t write_sequence=0, bytes pending not None=b"",
    ):
        cdef uint16_t number = SUITES.get(suite, 0) if isinstance(suite, str) else suite
        cdef size_t n = record_secret_size(number)
        if n == 0:
            raise ValueError(f"not a TLS 1.3 suite of ours: {suite!r}")
        if <size_t>len(read_secret) != n or <size_t>len(write_secret) != n:
            raise ValueError(f"traffic secrets of this suite have {n} bytes")
        self._wipe()
        self._check(record_init(&self.c, number, client, read_secret, write_secret))
        self.c.rx.sequence = read_sequence
        self.c.tx.sequence = write_sequence
        self._pending = pending
        self._status = RECORD_OK

    def __dealloc__(self):
        self._wipe()

    cdef void _wipe(self) noexcept:
        keyring_clear(&self.ring)
        record_wipe(&self.c, NULL)

    @property
    def suite(self):
        for name, number in SUITES.items():
            if number == self.c.suite:
                return name
        return ""

    @property
    def pending(self):
        return self._pending

    @property
    def held_bytes(self):
        return len(self._pending)

    @property
    def eof(self):
        return self._status == RECORD_CLOSE_NOTIFY

    @property
    def failure(self):
        return None if self._status == RECORD_OK or self.eof else self._error(self._status)

    @property
    def has_more(self):
        return False

    def open_next(self, data=b""):
        return self.open(data)

    def open(self, data=b""):
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self._open(<const uint8_t*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef bytes _open(self, const uint8_t* wire, size_t n_wire):
        cdef size_t n_pending = len(self._pending)
        cdef size_t at = 0, n_opened = 0, n_plain = 0
        cdef RecordStatus status = self._status
        cdef bytes first = self._pending
        cdef PyObject* plain  # owned, and not shared until returned
        self._alive()
        if status == RECORD_CLOSE_NOTIFY or n_pending + n_wire == 0:
            return b""
        self._check(status)
        plain = bytes_new(n_pending + n_wire)
        try:
            if n_pending:
                # With this much more, its first record is complete. The rest needs no copy.
                at = min(n_wire, <size_t>RECORD_WIRE_MAX)
                first += bytes_of(wire, at)
                status = self._open_some(first, n_pending + at, plain, &n_opened, &n_plain)
            if n_opened < n_pending:
                self._pending = first[n_opened:]
            else:
                at = n_opened - n_pending
                if status == RECORD_OK:
                    status = self._open_some(wire + at, n_wire - at, plain, &n_opened, &n_plain)
                    at += n_opened
                self._pending = bytes_of(wire + at, n_wire - at)
            self._status = status
            if n_plain == 0 and status != RECORD_CLOSE_NOTIFY:
                self._check(status)
            _PyBytes_Resize(&plain, n_plain)
            return <bytes>plain
        finally:
            Py_XDECREF(plain)

    cdef RecordStatus _open_some(
        self, const uint8_t* wire, size_t n_wire, PyObject* plain, size_t* n_opened, size_t* n_plain
    ) noexcept:
        """Open the whole records of `wire`, behind the plaintext that is there."""
        cdef uint8_t* target = <uint8_t*>PyBytes_AS_STRING(<object>plain) + n_plain[0]
        cdef size_t produced = 0
        cdef RecordStatus status
        with nogil:
            status = record_open(
                &self.c, &self.ring, wire, n_wire, target, n_wire, n_opened, &produced
            )
        n_plain[0] += produced
        return status

    def seal(self, data not None):
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self._seal(view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef bytes _seal(self, void* data, size_t n):
        cdef size_t cap = record_sealed_size(n), produced = 0
        cdef PyObject* wire  # owned, and not shared until returned
        cdef uint8_t* target
        cdef iovec part
        cdef RecordStatus status
        self._alive()
        part.iov_base = data
        part.iov_len = n
        wire = bytes_new(cap)
        try:
            target = <uint8_t*>PyBytes_AS_STRING(<object>wire)
            with nogil:
                status = record_seal(&self.c, &self.ring, &part, 1, target, cap, &produced)
            self._check(status)
            _PyBytes_Resize(&wire, produced)
            return <bytes>wire
        finally:
            Py_XDECREF(wire)

    def close_notify(self):
        cdef uint8_t description = record_status_alert(self._status)
        if self._status == RECORD_OK or self._status == RECORD_CLOSE_NOTIFY:
            return self._alert(1, ALERT_CLOSE_NOTIFY)
        return b"" if description == NO_ALERT else self._alert(2, description)

    def alert(self, uint8_t description):
        return self._alert(2, description)

    def ask_key_update(self):
        self._alive()
        fastderp_or(&self.c.duty, DUTY_ASK)

    cdef bytes _alert(self, uint8_t level, uint8_t description):
        cdef uint8_t[ALERT_WIRE] wire
        cdef size_t produced = 0
        self._alive()
        self._check(record_seal_alert(
            &self.c, &self.ring, level, description, wire, sizeof(wire), &produced
        ))
        return wire[:produced]

    cdef int _alive(self) except -1:
        if self.c.suite == 0:
            raise TlsError("moved", "the keys of this record layer were moved or wiped")
        return 0

    cdef int _check(self, RecordStatus status) except -1:
        if status != RECORD_OK:
            raise self._error(status)
        return 0

    cdef object _error(self, RecordStatus status):
        cdef str text = record_status_text(status).decode()
        if status == RECORD_ALERT:
            text = f"{text}: {self.c.rx_alert}"
        return TlsError(_CAUSE[status], text)

    cdef int take(self, Records* into) except -1:
        self._alive()
        memcpy(into, &self.c, sizeof(Records))
        self._wipe()
        return 0


cdef RecordLayer record_layer_new(
    uint16_t suite, bint is_client, const uint8_t* rx_secret, const uint8_t* tx_secret,
    bytes pending,
):
    cdef RecordLayer layer = RecordLayer.__new__(RecordLayer)
    layer._check(record_init(&layer.c, suite, is_client, rx_secret, tx_secret))
    layer._pending = pending
    return layer


cdef RecordLayer record_layer_of(Records* records, bytes pending):
    cdef RecordLayer layer = RecordLayer.__new__(RecordLayer)
    memcpy(&layer.c, records, sizeof(Records))
    crypto.OPENSSL_cleanse(records, sizeof(Records))
    layer._pending = pending
    return layer
