"""Channels turn the bytes of a TCP connection into plain bytes and back: Plain, Tls12, RecordLayer.

Clients and servers use them. A channel has one owner at a time: two threads must not share it.
"""

from __future__ import annotations

import contextlib
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

    def open_next(self, wire: bytes | memoryview) -> bytes:
        """Do the same, but leave what could fail and so prevent an answer to the returned bytes."""

    @property
    def has_more(self) -> bool:
        """Whether `open_next` has left wire bytes; it returns them for b""."""

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
    has_more: Final = False

    def open(self, wire: bytes | memoryview) -> bytes:
        """Return `wire`."""
        return bytes(wire)

    open_next = open

    def seal(self, plain: bytes) -> bytes:
        """Return `plain`."""
        return plain

    def close_notify(self) -> bytes:
        """Return nothing."""
        return b""


class Tls12:
    """TLS 1.2 through the OpenSSL object that has made the handshake.

    OpenSSL sends nothing more but an alert once it has read a record that breaks the protocol.
    """

    def __init__(self, handshake: Handshake) -> None:
        """Take over a finished handshake."""
        self._handshake = handshake
        self.failure: TlsError | None = None
        """The violation that has ended the input; the next `open` raises it."""
        self.has_more: bool = False
        """Whether `open_next` has left records; it opens the next one for b""."""

    @property
    def eof(self) -> bool:
        """Whether the peer has sent its close_notify."""
        return self._handshake.eof

    @property
    def held_bytes(self) -> int:
        """The memory of unread records; OpenSSL's own buffers belong to that of its object."""
        return self._handshake.unread_bytes

    def open(self, wire: bytes | memoryview) -> bytes:
        """Decrypt; an attempt to renegotiate is a TlsError."""
        pieces = [self.open_next(wire)]
        while self.has_more:
            with contextlib.suppress(TlsError):  # `failure` keeps it
                pieces.append(self.open_next(b""))
        return b"".join(pieces)

    def open_next(self, wire: bytes | memoryview) -> bytes:
        """Decrypt one record of data."""
        if self.failure is not None:
            raise self.failure
        self.has_more = False
        self._handshake.feed(wire)
        try:
            plain = self._handshake.read(_RECORD_PLAIN_MAX)
        except TlsError as error:
            self.failure = error
            raise
        self.has_more = bool(plain) and self._handshake.unread_bytes > 0
        return plain

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
