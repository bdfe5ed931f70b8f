"""Parses the bytes that a relay sends into messages, for every read of a client (PROTOCOL §2, §4).

Sans-I/O, for any thread, one connection each. A read of many packets costs one call. Compiled,
since half of what receiving a packet cost was here: `python -m bench.client_rate --only recv`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject, PyTypeObject, Py_TYPE
from libc.stdint cimport uint8_t
from libc.string cimport memcmp

from fastderp.errors import ConnectionLost, ProtocolError
from fastderp.wire.protocol import MAX_CLIENT_FRAME_SIZE, NodePublic, ReceivedPacket

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


cdef class MessageReader:
    """Splits a stream into frames and frames into messages."""

    cdef object _on_frame
    cdef dict _keys
    cdef object _source  # of the latest packet
    cdef bytes _source_raw
    cdef bytes _unread

    def __init__(self, on_frame):
        """Begin a connection.

        `on_frame` is called with type and payload of each frame that is no packet, in order with
        the packets; it returns the message to hand on, or None to hand on nothing.
        """
        self._on_frame = on_frame
        self._keys = {}
        self._source = None
        self._source_raw = bytes(KEY_SIZE)
        self._unread = b""

    def feed(self, bytes data not None, list messages not None):
        """Append the messages that `data` completes to `messages`; return whether a frame was.

        Raises ProtocolError for a frame of more than 1 MiB, and the errors of `on_frame`; the
        list then has the messages before it, and the connection is unusable. PROTOCOL §4.
        """
        if PyBytes_GET_SIZE(self._unread):
            data = self._unread + data
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef Py_ssize_t at = 0, end = PyBytes_GET_SIZE(data), length, payload_at
        while end - at >= HEADER_SIZE:
            length = (<Py_ssize_t>p[at + 1] << 24 | <Py_ssize_t>p[at + 2] << 16
                      | <Py_ssize_t>p[at + 3] << 8 | p[at + 4])
            if length > MAX_FRAME_SIZE:
                raise ProtocolError(f"frame of type {p[at]:#04x} with {length} bytes")
            payload_at = at + HEADER_SIZE
            if length > end - payload_at:
                break
            if p[at] == RECV_PACKET and length >= KEY_SIZE:
                messages.append(self._packet(p + payload_at, length))
            else:
                message = self._on_frame(
                    p[at], PyBytes_FromStringAndSize(<const char*>p + payload_at, length)
                )
                if message is not None:
                    messages.append(message)
            at = payload_at + length
        self._unread = data[at:]
        return at > 0

    def end(self):
        """Note that the stream is over. Raises ConnectionLost inside a frame."""
        if self._unread:
            raise ConnectionLost("the connection ended inside a frame")

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
