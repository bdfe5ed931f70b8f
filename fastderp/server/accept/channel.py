"""What lies between a connection's bytes on the wire and its plain bytes: nothing, TLS 1.3 records, or OpenSSL for TLS 1.2.

All offer `open`, `seal` and `close_notify`; `websocket.WebSocket` goes on top of any of them. Loop thread only.
"""

from __future__ import annotations

from typing import Protocol

from fastderp.tls.errors import TlsError
from fastderp.tls.handshake import Handshake


class Channel(Protocol):
    """Turns wire bytes into plain bytes and back. Methods raise TlsError when the peer breaks the rules."""

    @property
    def eof(self) -> bool:
        """Whether the peer has announced the end of its input."""

    def open(self, wire: bytes) -> bytes:
        """Take bytes from the wire; return the plain bytes complete so far."""

    def seal(self, plain: bytes) -> bytes:
        """Return the wire bytes for `plain`."""

    def close_notify(self) -> bytes:
        """Return the wire bytes that announce the end of output."""


class Clear:
    """No TLS: wire bytes are plain bytes."""

    @property
    def eof(self) -> bool:
        """Never: the end of the TCP stream says it."""
        return False

    def open(self, wire: bytes) -> bytes:
        """Return `wire`."""
        return wire

    def seal(self, plain: bytes) -> bytes:
        """Return `plain`."""
        return plain

    def close_notify(self) -> bytes:
        """Return nothing: the end of the TCP stream says it."""
        return b""


class Tls12:
    """TLS 1.2 through the OpenSSL object that made the handshake."""

    def __init__(self, handshake: Handshake) -> None:
        """Take over a finished handshake."""
        self._ssl = handshake

    @property
    def eof(self) -> bool:
        """Whether the peer has sent its close_notify."""
        return self._ssl.eof

    def open(self, wire: bytes) -> bytes:
        """Decrypt; a renegotiation attempt is a TlsError."""
        self._ssl.feed(wire)
        pieces = []
        while piece := self._ssl.read(16384):
            pieces.append(piece)
        return b"".join(pieces)

    def seal(self, plain: bytes) -> bytes:
        """Encrypt."""
        self._ssl.write(plain)
        return self._ssl.take_output()

    def close_notify(self) -> bytes:
        """Build the closing alert."""
        self._ssl.close_notify()
        return self._ssl.take_output()


def farewell(channel: Channel) -> bytes:
    """Return the wire bytes that end our output in order; nothing when the channel is past saying anything."""
    try:
        return channel.close_notify()
    except TlsError:
        return b""
