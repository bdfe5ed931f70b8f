"""Channels turn the bytes of a TCP connection into plain bytes and back: Plain, Tls12, RecordLayer.

Clients and servers use them. A channel has one owner at a time: two threads must not share it.
"""

from __future__ import annotations

from typing import Final, Protocol

from fastderp.tls.errors import TlsError
from fastderp.tls.handshake import Handshake

# OpenSSL returns the data of one record at a time (RFC 5246 §6.2.1).
_RECORD_PLAIN_MAX = 1 << 14


class Channel(Protocol):
    """Turns wire bytes into plain bytes and back.

    Methods raise TlsError when the peer violates the protocol. Bytes that arrived in good order
    before the violation are returned first; `failure` is set then.
    """

    @property
    def eof(self) -> bool:
        """Whether the peer has announced the end of its output."""

    @property
    def failure(self) -> TlsError | None:
        """The violation that has ended the input; the next `open` raises it."""

    @property
    def held_bytes(self) -> int:
        """The memory of bytes that are not complete yet."""

    def open(self, wire: bytes | memoryview) -> bytes:
        """Take bytes from the wire; return the plain bytes that are complete."""

    def seal(self, plain: bytes) -> bytes:
        """Return the wire bytes for `plain`."""

    def close_notify(self) -> bytes:
        """Return the wire bytes that announce the end of our output; an alert after a failure."""


class Plain:
    """No TLS: wire bytes are plain bytes. The end of the TCP stream announces the end of output."""

    # The channel itself never announces an end.
    eof: Final = False
    failure: Final = None
    held_bytes: Final = 0

    def open(self, wire: bytes | memoryview) -> bytes:
        """Return `wire`."""
        return bytes(wire)

    def seal(self, plain: bytes) -> bytes:
        """Return `plain`."""
        return plain

    def close_notify(self) -> bytes:
        """Return nothing."""
        return b""


class Tls12:
    """TLS 1.2 through the OpenSSL object that has made the handshake."""

    # OpenSSL's own buffers belong to the memory of its object.
    held_bytes: Final = 0

    def __init__(self, handshake: Handshake) -> None:
        """Take over a finished handshake."""
        self._handshake = handshake
        self.failure: TlsError | None = None
        """The violation that has ended the input; the next `open` raises it."""

    @property
    def eof(self) -> bool:
        """Whether the peer has sent its close_notify."""
        return self._handshake.eof

    def open(self, wire: bytes | memoryview) -> bytes:
        """Decrypt; an attempt to renegotiate is a TlsError."""
        if self.failure is not None:
            raise self.failure
        self._handshake.feed(wire)
        pieces = []
        try:
            while piece := self._handshake.read(_RECORD_PLAIN_MAX):
                pieces.append(piece)
        except TlsError as error:
            self.failure = error
            if not pieces:
                raise
        return b"".join(pieces)

    def seal(self, plain: bytes) -> bytes:
        """Encrypt. Raises a failure of the input: OpenSSL ends both directions."""
        if self.failure is not None:
            raise self.failure
        self._handshake.write(plain)
        return self._handshake.take_output()

    def close_notify(self) -> bytes:
        """Return the closing alert; after a failure that of OpenSSL."""
        if self.failure is None:
            self._handshake.close_notify()
        return self._handshake.take_output()


def channel_of(handshake: Handshake) -> Channel:
    """Return the channel of a finished handshake: Tls12, or a RecordLayer for TLS 1.3.

    The latter frees OpenSSL's object. The caller must send untaken output of the handshake first.
    Raises TlsError.
    """
    return handshake.records() if handshake.version == "TLSv1.3" else Tls12(handshake)


def close_notify(channel: Channel) -> bytes:
    """Return the wire bytes that end our output in order; none when the channel is broken."""
    try:
        return channel.close_notify()
    except TlsError:
        return b""
