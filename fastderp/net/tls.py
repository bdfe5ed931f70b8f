"""A TLS connection as a pair of streams: OpenSSL's handshake, then the project's record layer.

Belongs to the event loop of the stream underneath, which may itself be TLS (to a proxy).
"""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

from fastderp.errors import ConnectionClosed, ConnectionLost, DialError
from fastderp.net.stream import Stream
from fastderp.tls.context import ClientContext
from fastderp.tls.errors import TlsError
from fastderp.tls.handshake import Handshake

# Ciphertext per read. A handshake's input is bounded, so it reads less.
_READ_SIZE = 128 << 10
_HANDSHAKE_READ_SIZE = 16 << 10


class Session(Protocol):
    """What is left of a handshake: a RecordLayer, or OpenSSL's object for TLS 1.2."""

    @property
    def eof(self) -> bool: ...
    def open(self, wire: bytes) -> bytes: ...
    def seal(self, plain: bytes) -> bytes: ...
    def close_notify(self) -> bytes: ...


class _Tls12Session:
    """TLS 1.2, where OpenSSL goes on doing the records."""

    def __init__(self, handshake: Handshake) -> None:
        self._handshake = handshake

    @property
    def eof(self) -> bool:
        return self._handshake.eof

    def open(self, wire: bytes) -> bytes:
        self._handshake.feed(wire)
        parts = []
        while part := self._handshake.read():
            parts.append(part)
        return b"".join(parts)

    def seal(self, plain: bytes) -> bytes:
        self._handshake.write(plain)
        return self._handshake.take_output()

    def close_notify(self) -> bytes:
        self._handshake.close_notify()
        return self._handshake.take_output()


class TlsStream:
    """The inside of a TLS connection. Is a Reader and a Writer; `connect` makes it."""

    def __init__(
        self, outside: Stream, version: str, peer_chain: list[bytes], session: Session
    ) -> None:
        """Used by `connect`."""
        self._outside = outside
        self._session = session
        self._closing = False
        # Data the relay sent right behind its part of the handshake.
        self._plain = session.open(b"")
        self.version = version
        """`TLSv1.2` or `TLSv1.3`."""
        self.peer_chain = peer_chain
        """The relay's certificates in DER, as it sent them."""

    @classmethod
    async def connect(
        cls,
        outside: Stream,
        context: ClientContext,
        server_name: str,
        *,
        cert_name: str | None = None,
    ) -> TlsStream:
        """Shake hands over `outside`. DialError says what failed; the stream is closed then.

        `cert_name` is expected in the certificate instead of `server_name`.
        """
        try:
            handshake = Handshake(context, server_name, cert_name=cert_name)
            await _shake_hands(handshake, outside)
            # Both go with OpenSSL's object, which `records` frees.
            version, chain = handshake.version or "", handshake.peer_chain
            session: Session = (
                handshake.records() if version == "TLSv1.3" else _Tls12Session(handshake)
            )
            return cls(outside, version, chain, session)
        except (ConnectionClosed, TlsError, ValueError) as error:
            outside.abort()
            raise DialError(f"TLS with {server_name}: {error}") from error
        except BaseException:
            outside.abort()
            raise

    @property
    def session(self) -> Session:
        """The keys: for who takes the connection over."""
        return self._session

    def take_unread(self) -> bytes:
        """Return what was opened ahead and not taken yet; it is not read again."""
        data, self._plain = self._plain, b""
        return data

    async def read(self, n: int, /) -> bytes:
        """Return up to `n` bytes, at least one, or b"" at the end. ConnectionLost when it broke."""
        while not self._plain and not self._session.eof:
            wire = await self._outside.read(_READ_SIZE)
            if not wire:
                break
            try:
                self._plain = self._session.open(wire)
            except TlsError as error:
                raise ConnectionLost(f"TLS: {error}") from error
        data, self._plain = self._plain[:n], self._plain[n:]
        return data

    def write(self, data: bytes, /) -> None:
        """Queue `data`, sealed. ConnectionLost when the connection broke."""
        try:
            self._outside.write(self._session.seal(data))
        except TlsError as error:
            raise ConnectionLost(f"TLS: {error}") from error

    async def drain(self) -> None:
        """Wait until there is room for more."""
        await self._outside.drain()

    def close(self) -> None:
        """Begin an orderly close: what is queued is still sent."""
        if not self._closing:
            self._closing = True
            with contextlib.suppress(ConnectionLost, TlsError):  # too late for a close_notify
                self._outside.write(self._session.close_notify())
        self._outside.close()

    def abort(self) -> None:
        """Close now; what is queued is lost."""
        self._closing = True
        self._outside.abort()

    async def wait_closed(self) -> None:
        """Wait for the end of `close`."""
        await self._outside.wait_closed()

    def get_extra_info(self, name: str, /) -> Any:
        """Return what the outside stream knows under `name`."""
        return self._outside.get_extra_info(name)


async def _shake_hands(handshake: Handshake, outside: Stream) -> None:
    done = False
    while not done:
        try:
            done = handshake.step()
        finally:
            # After a failure this is the alert that tells the relay.
            if output := handshake.take_output():
                outside.write(output)
        await outside.drain()
        if not done:
            wire = await outside.read(_HANDSHAKE_READ_SIZE)
            if not wire:
                raise ConnectionClosed("the connection was closed in the handshake")
            handshake.feed(wire)
