"""Parses the bytes that a relay sends into messages, for every read of a client (PROTOCOL §2, §4).

Sans-I/O, for any thread, one connection each. A read of many packets costs one call. It is
compiled, because parsing took half of the time to receive a packet: `python -m bench.client_rate
--only recv`.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject, PyTypeObject, Py_TYPE
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp

from fastderp.errors import ConnectionLost, ProtocolError
from fastderp.wire.messages import ReceivedPacket
from fastderp.wire.protocol import MAX_CLIENT_FRAME_SIZE, NodePublic

cdef enum:
    HEADER_SIZE = 5
    KEY_SIZE = 32
    RECV_PACKET = 0x05
    # Limit for cached key objects, 200 bytes each, which the packets of one source share.
    KEYS_LIMIT = 1024

cdef Py_ssize_t MAX_FRAME_SIZE = MAX_CLIENT_FRAME_SIZE
cdef tuple NO_ARGUMENTS = ()
# The fastest way to fill a frozen dataclass; packets arrive at 100,000 per second and more.
cdef object SOURCE = ReceivedPacket.__dict__["source"]
cdef object DATA = ReceivedPacket.__dict__["data"]


cdef object received_packet(object source, bytes data):
    packet = (<PyTypeObject*>ReceivedPacket).tp_new(ReceivedPacket, <PyObject*>NO_ARGUMENTS, NULL)
    Py_TYPE(SOURCE).tp_descr_set(SOURCE, packet, source)
    Py_TYPE(DATA).tp_descr_set(DATA, packet, data)
    return packet


cdef Py_ssize_t frame_size(const uint8_t* p, Py_ssize_t n) except -1:
    """Return the size of the frame that begins at p, header included; 0 for less than a header."""
    cdef uint32_t length
    if n < HEADER_SIZE:
        return 0
    length = <uint32_t>p[1] << 24 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 8 | p[4]
    if length > MAX_FRAME_SIZE:
        raise ProtocolError(f"frame of type {p[0]:#04x} with {length} bytes")
    return HEADER_SIZE + length


cdef class MessageReader:
    """Splits a stream into frames and frames into messages."""

    cdef object _on_frame
    cdef dict _keys
    cdef object _source  # of the latest packet
    cdef bytes _source_raw
    cdef bytearray _unread  # less than a whole frame

    def __init__(self, on_frame):
        """Begin a connection.

        `on_frame` is called with type and payload of each frame that is not a packet, in order with
        the packets; it returns the message to append, or None.
        """
        self._on_frame = on_frame
        self._keys = {}
        self._source = None
        self._source_raw = bytes(KEY_SIZE)
        self._unread = bytearray()

    def feed(self, data not None, list messages not None):
        """Append to `messages` those that `data` completes; return whether any frame was complete.

        Raises ProtocolError for a frame of more than 1 MiB, and the errors of `on_frame`; the
        list then has the messages before it, and the connection is unusable. PROTOCOL §4.
        """
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self._feed(<const uint8_t*>view.buf, view.len, messages)
        finally:
            PyBuffer_Release(&view)

    cdef bint _feed(self, const uint8_t* p, Py_ssize_t n, list messages) except -1:
        cdef Py_ssize_t at = 0, size
        if self._unread:
            at = self._complete(p, n, messages)
            if self._unread:
                return False
        while True:
            size = frame_size(p + at, n - at)
            if size == 0 or size > n - at:
                break
            self._take(p + at, size, messages)
            at += size
        self._unread += p[at:n]
        return at > 0

    def end(self):
        """Note that the stream is over. Raises ConnectionLost inside a frame."""
        if self._unread:
            raise ConnectionLost("the connection ended inside a frame")

    cdef Py_ssize_t _complete(self, const uint8_t* p, Py_ssize_t n, list messages) except -1:
        """Add what the incomplete frame lacks and take it once it is whole.

        Return how many bytes that took.
        """
        cdef Py_ssize_t at = 0, lacks, size
        while True:
            size = frame_size(self._unread, len(self._unread))
            if size == len(self._unread):
                self._take(self._unread, size, messages)
                self._unread.clear()
                return at
            lacks = min((size or HEADER_SIZE) - len(self._unread), n - at)
            if lacks == 0:
                return at
            self._unread += p[at:at + lacks]
            at += lacks

    cdef int _take(self, const uint8_t* p, Py_ssize_t size, list messages) except -1:
        """Append the message of a whole frame, if it has one."""
        cdef const uint8_t* payload = p + HEADER_SIZE
        cdef Py_ssize_t length = size - HEADER_SIZE
        if p[0] == RECV_PACKET and length >= KEY_SIZE:
            messages.append(self._packet(payload, length))
            return 0
        message = self._on_frame(p[0], payload[:length])
        if message is not None:
            messages.append(message)
        return 0

    cdef object _packet(self, const uint8_t* payload, Py_ssize_t length):
        if self._source is None or memcmp(PyBytes_AS_STRING(self._source_raw), payload, KEY_SIZE):
            self._source_raw = PyBytes_FromStringAndSize(<const char*>payload, KEY_SIZE)
            self._source = self._key(self._source_raw)
        return received_packet(
            self._source,
            PyBytes_FromStringAndSize(<const char*>payload + KEY_SIZE, length - KEY_SIZE),
        )

    cdef object _key(self, bytes raw):
        key = self._keys.get(raw)
        if key is None:
            if len(self._keys) >= KEYS_LIMIT:
                self._keys.clear()
            key = self._keys[raw] = NodePublic(raw)
        return key
