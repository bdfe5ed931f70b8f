"""Collects a client's first bytes until they hold a whole ClientHello. RFC 8446 §4.1.2, §5.1.

Sans I/O. It parses lengths only. OpenSSL's objects are too large to hold an incomplete ClientHello.
"""

from __future__ import annotations

from struct import Struct

from fastderp.tls.errors import TlsError

# Real ClientHellos take 0.3 to 2 KiB, including post-quantum key shares and encrypted server names.
HELLO_LIMIT_BYTES = 16 * 1024
# This adds record headers and the data that clients send after the ClientHello.
RAW_LIMIT_BYTES = HELLO_LIMIT_BYTES + 4096

# The answer to a ClientHello that is too long: fatal, illegal_parameter, as OpenSSL does.
TOO_LONG_ALERT = b"\x15\x03\x01\x00\x02\x02\x2f"

_RECORD = Struct(">BBBH")  # type, version, length
_RECORD_LIMIT = 16384
_MESSAGE_HEADER = 4
_HANDSHAKE = 22
_CLIENT_HELLO = 1


class ClientHelloReader:
    """Collects bytes until OpenSSL can either answer or refuse them.

    `is_complete` is True from then on. `is_hello` is False for bytes that are no ClientHello.
    """

    __slots__ = ("_at", "_head", "_n_message", "_raw", "is_complete", "is_hello")

    def __init__(self) -> None:
        self._raw = bytearray()
        # The offset of the first incomplete record; how many bytes of the message the previous
        # records hold, and its first bytes.
        self._at = 0
        self._n_message = 0
        self._head = b""
        self.is_complete: bool = False
        self.is_hello: bool = True

    def __len__(self) -> int:
        return len(self._raw)

    def feed(self, data: bytes) -> None:
        """Add bytes. Raises TlsError "flood" above RAW_LIMIT_BYTES."""
        self._raw += data
        if len(self._raw) > RAW_LIMIT_BYTES:
            raise TlsError("flood", f"more than {RAW_LIMIT_BYTES} bytes before the handshake")
        while not self.is_complete and self._read_record():
            pass

    def take(self) -> bytes:
        """Remove and return all bytes so far."""
        raw = bytes(self._raw)
        self._raw.clear()
        return raw

    def _read_record(self) -> bool:
        """Parse the next record; return whether it was complete and another may follow."""
        raw, at = self._raw, self._at
        begin = at + _RECORD.size
        if len(raw) < begin:
            return False
        record_type, major, _, n_record = _RECORD.unpack_from(raw, at)
        if record_type != _HANDSHAKE or major != 3 or not 0 < n_record <= _RECORD_LIMIT:
            return self._end(is_hello=False)
        end = begin + n_record
        head = self._head
        if len(head) < _MESSAGE_HEADER:
            head += raw[begin : min(end, begin + _MESSAGE_HEADER - len(head))]
        n_wanted = _RECORD_LIMIT
        if len(head) == _MESSAGE_HEADER:
            if head[0] != _CLIENT_HELLO:
                return self._end(is_hello=False)
            n_wanted = _MESSAGE_HEADER + int.from_bytes(head[1:], "big")
            if n_wanted > HELLO_LIMIT_BYTES:
                raise TlsError(
                    "flood", f"a ClientHello of {n_wanted} bytes, more than {HELLO_LIMIT_BYTES}"
                )
        if len(raw) < end:
            return False
        self._at, self._head = end, head
        self._n_message += n_record
        return self._end(is_hello=True) if self._n_message >= n_wanted else True

    def _end(self, *, is_hello: bool) -> bool:
        self.is_complete = True
        self.is_hello = is_hello
        return False
