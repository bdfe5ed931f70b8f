"""DERP inside a WebSocket, for networks that pass no other traffic (PROTOCOL §9.3, §13).

RFC 6455 itself is the `websockets` library's sans-I/O protocol. Belongs to the event loop of the
stream underneath. Import it only for a WebSocket: the library adds about 40 ms to a start.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus, InvalidURI
from websockets.frames import CloseCode
from websockets.protocol import CONNECTING, OPEN
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from fastderp.errors import ConnectionLost, DialError
from fastderp.net.delivery import READ_SIZE
from fastderp.net.stream import Stream
from fastderp.net.upgrade import USER_AGENT, host_header, refusal
from fastderp.net.websocket_library import library_log, payload_of
from fastderp.wire.protocol import HEADER_SIZE, MAX_CLIENT_FRAME_SIZE

# derper closes on messages of more than 32 KiB.
MESSAGE_SIZE = 16 << 10
# A relay may put a whole frame into one message; other relays than ours also several.
MESSAGE_LIMIT = 2 * (HEADER_SIZE + MAX_CLIENT_FRAME_SIZE)
DERP: Final[Subprotocol] = Subprotocol("derp")
_ORDERLY_CLOSES = (CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY, CloseCode.NO_STATUS_RCVD)


class WebSocketStream:
    """The bytes in the binary messages of a WebSocket, whose boundaries have no meaning.

    Is a Reader and a Writer; `open` makes it.
    """

    def __init__(self, outside: Stream, protocol: ClientProtocol) -> None:
        """Used by `open`."""
        self._outside = outside
        self._protocol = protocol
        self._payload = b""
        # Whether the input has ended.
        self._over = False

    @classmethod
    async def open(cls, outside: Stream, *, host: str, path: str, https: bool) -> WebSocketStream:
        """Do the opening handshake over `outside` and return the stream inside the WebSocket.

        `host` is for the Host header, `https` is whether `outside` is TLS. Raises DialError when
        the relay refuses, ConnectionLost when the connection breaks; the caller then closes
        `outside`. PROTOCOL §9.3.
        """
        try:
            uri = parse_uri(f"{'wss' if https else 'ws'}://{host_header(host)}{path}")
        except (InvalidURI, ValueError) as error:
            raise DialError(f"not a WebSocket URL: {error}") from None
        protocol = ClientProtocol(
            uri, subprotocols=[DERP], max_size=MESSAGE_LIMIT, logger=library_log
        )
        request = protocol.connect()
        request.headers["User-Agent"] = USER_AGENT
        protocol.send_request(request)
        stream = cls(outside, protocol)
        await stream._shake_hands()
        return stream

    async def read(self, n: int, /) -> bytes:
        """Return up to `n` bytes, at least one, or b"" at the end.

        Raises ConnectionLost when the connection breaks or the relay violates the protocol.
        """
        while not self._payload and not self._over:
            await self._receive()
        if not self._payload:
            self._check_end()
        data, self._payload = self._payload[:n], self._payload[n:]
        return data

    def write(self, data: bytes, /) -> None:
        """Queue `data` in messages. Raises ConnectionLost if the connection broke or is closing."""
        if self._protocol.state is not OPEN:
            raise ConnectionLost("writing failed: the WebSocket is closing")
        for start in range(0, len(data), MESSAGE_SIZE):
            self._protocol.send_binary(data[start : start + MESSAGE_SIZE])
        self._flush()

    async def drain(self) -> None:
        """Wait until there is room for more."""
        await self._outside.drain()

    def close(self) -> None:
        """Begin an orderly close, which still sends the queue."""
        if self._protocol.state is OPEN:
            self._protocol.send_close(CloseCode.NORMAL_CLOSURE)
            with suppress(ConnectionLost):  # the connection may be broken already
                self._flush()
        self._outside.close()

    def abort(self) -> None:
        """Close now and discard the queue."""
        self._outside.abort()

    async def wait_closed(self) -> None:
        """Wait for the end of `close`."""
        await self._outside.wait_closed()

    def get_extra_info(self, name: str, /) -> Any:
        """Return the outside stream's information under `name`."""
        return self._outside.get_extra_info(name)

    async def _shake_hands(self) -> None:
        self._flush()
        await self._outside.drain()
        while self._protocol.handshake_exc is None and self._protocol.state is not OPEN:
            await self._receive()
        failure = self._protocol.handshake_exc
        if isinstance(failure, InvalidStatus):
            response = failure.response
            raise refusal(
                f"{response.status_code} {response.reason_phrase}", bytes(response.body or b"")
            )
        if failure is not None:
            raise DialError(f"no WebSocket: {failure}")
        if self._protocol.subprotocol != DERP:
            raise DialError("no WebSocket for DERP: the relay did not choose the subprotocol")

    async def _receive(self) -> None:
        """Process the relay's next bytes and send the answers that they require."""
        if wire := await self._outside.read(READ_SIZE):
            self._protocol.receive_data(wire)
        else:
            self._protocol.receive_eof()
            self._over = True
        self._payload += payload_of(self._protocol.events_received(), self._protocol)
        if self._protocol.state not in (CONNECTING, OPEN):
            self._over = True
        if self._flush():
            await self._outside.drain()

    def _flush(self) -> bool:
        """Write the pending output of the protocol, if any."""
        output = b"".join(self._protocol.data_to_send())
        if output:
            self._outside.write(output)
        return bool(output)

    def _check_end(self) -> None:
        """Raise ConnectionLost unless the end was orderly.

        A missing close frame is orderly, as without a WebSocket.
        """
        why = self._protocol.parser_exc
        if why is not None and not isinstance(why, EOFError):
            raise ConnectionLost(f"WebSocket: {why}")
        close = self._protocol.close_rcvd or self._protocol.close_sent
        if close is not None and close.code not in _ORDERLY_CLOSES:
            raise ConnectionLost(f"the WebSocket was closed with {close}")
