"""The plain side of a TLS connection as a stream, for the asyncio client and the mesh.

Belongs to the event loop of the stream outside, which may itself be TLS (to a proxy).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from fastderp.errors import ConnectionClosed, ConnectionLost, DialError
from fastderp.net.delivery import Receiver
from fastderp.net.stream import Stream
from fastderp.tls.client import ClientContext, Handshake, channel_of
from fastderp.tls.errors import TlsError

if TYPE_CHECKING:
    from fastderp.tls.channel import Channel

# Bytes of ciphertext per read. A handshake reads less, because its input is bounded.
_READ_SIZE = 128 << 10
_HANDSHAKE_READ_SIZE = 16 << 10


class TlsStream:
    """The plain side of a TLS connection: a Reader and a Writer, made by `connect`."""

    def __init__(
        self,
        outside: Stream,
        version: str,
        cipher: str,
        peer_chain: list[bytes],
        channel: Channel,
    ) -> None:
        """Use `connect` instead."""
        self._outside = outside
        self._channel = channel
        self._closing = False
        self._receiver: Receiver | None = None
        # The relay may send data directly after its part of the handshake.
        self._plain = channel.open(b"")
        self.version = version
        """`TLSv1.2` or `TLSv1.3`."""
        self.cipher = cipher
        """OpenSSL's name of the suite."""
        self.peer_chain = peer_chain
        """The relay's certificates in DER, in the order in which it sent them."""

    @classmethod
    async def connect(
        cls,
        outside: Stream,
        context: ClientContext,
        server_name: str,
        *,
        cert_name: str | None = None,
    ) -> TlsStream:
        """Do the TLS handshake over `outside`.

        `cert_name` is expected in the certificate instead of `server_name`. Raises DialError that
        names the failed step; the stream is closed then.
        """
        try:
            handshake = Handshake(context, server_name, cert_name=cert_name)
            await _shake_hands(handshake, outside)
            # `channel_of` frees OpenSSL's object, and these with it.
            version, cipher = handshake.version or "", handshake.cipher or ""
            chain = handshake.peer_chain
            return cls(outside, version, cipher, chain, channel_of(handshake))
        except (ConnectionClosed, TlsError, ValueError) as error:
            outside.abort()
            raise DialError(f"TLS with {server_name}: {error}") from error
        except BaseException:
            outside.abort()
            raise

    @property
    def channel(self) -> Channel:
        """The channel with the keys, for the next owner of the connection."""
        return self._channel

    def take_unread(self) -> bytes:
        """Remove and return the plain data that was opened ahead."""
        data, self._plain = self._plain, b""
        return data

    async def read(self, n: int, /) -> bytes:
        """Return up to `n` bytes, at least one; b"" at the end. Raises ConnectionLost."""
        while not self._plain and not self._channel.eof:
            if (failure := self._channel.failure) is not None:
                raise _lost(failure)
            wire = await self._outside.read(_READ_SIZE)
            if not wire:
                break
            try:
                self._plain = self._channel.open(wire)
            except TlsError as error:
                raise _lost(error) from error
        data, self._plain = self._plain[:n], self._plain[n:]
        return data

    def deliver_to(self, receiver: Receiver, /) -> None:
        """Call `receiver` with what was opened and not read yet, and with all that follows."""
        self._receiver = receiver
        if self._plain:
            receiver.received(self.take_unread())
        self._check_end()
        self._outside.deliver_to(self)

    def pause_reading(self) -> None:
        """Stop reading. The receiver may get some more bytes."""
        self._outside.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._outside.resume_reading()

    def received(self, wire: bytes | memoryview, /) -> None:
        """Open what the stream outside delivers."""
        try:
            plain = self._channel.open(wire)
        except TlsError:
            plain = b""  # the channel keeps its failure
        if plain and self._receiver is not None:
            self._receiver.received(plain)
        self._check_end()

    def ended(self, error: Exception | None, /) -> None:
        """Pass on the end of the stream outside."""
        self._end_delivery(error)

    def _check_end(self) -> None:
        """End the delivery when the channel has ended."""
        if (failure := self._channel.failure) is not None:
            self._end_delivery(_lost(failure))
        elif self._channel.eof:
            self._end_delivery(None)

    def _end_delivery(self, error: Exception | None) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.ended(error)

    def write(self, data: bytes, /) -> None:
        """Queue `data`, sealed. Raises ConnectionLost when the connection broke."""
        try:
            self._outside.write(self._channel.seal(data))
        except TlsError as error:
            raise _lost(error) from error

    async def drain(self) -> None:
        """Wait until there is room for more."""
        await self._outside.drain()

    def close(self) -> None:
        """Begin an orderly close, which still sends queued data."""
        if not self._closing:
            self._closing = True
            with contextlib.suppress(ConnectionLost, TlsError):  # too late for a close_notify
                self._outside.write(self._channel.close_notify())
        self._outside.close()

    def abort(self) -> None:
        """Close now and discard queued data."""
        self._closing = True
        self._outside.abort()

    async def wait_closed(self) -> None:
        """Wait for the end of `close`."""
        await self._outside.wait_closed()

    def get_extra_info(self, name: str, /) -> Any:
        """Return the outside stream's information under `name`."""
        return self._outside.get_extra_info(name)


def _lost(error: TlsError) -> ConnectionLost:
    lost = ConnectionLost(f"TLS: {error}")
    lost.__cause__ = error
    return lost


async def _shake_hands(handshake: Handshake, outside: Stream) -> None:
    done = False
    while not done:
        try:
            done = handshake.step()
        finally:
            # After a failure, the output is the alert for the relay.
            if output := handshake.take_output():
                outside.write(output)
        await outside.drain()
        if not done:
            wire = await outside.read(_HANDSHAKE_READ_SIZE)
            if not wire:
                raise ConnectionClosed("the connection was closed during the handshake")
            handshake.feed(wire)
