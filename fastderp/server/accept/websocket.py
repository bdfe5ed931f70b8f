"""DERP over WebSocket: the opening handshake, and a channel of binary messages. PROTOCOL §9.3.

RFC 6455 itself is the `websockets` library's sans-I/O protocol. Loop thread only; such sessions
always cross a bridge. Import this module with the first WebSocket: the library takes 5 MiB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from websockets.datastructures import Headers
from websockets.frames import CloseCode
from websockets.http11 import Request as OpeningRequest
from websockets.protocol import OPEN, SERVER, Protocol
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from fastderp.net.websocket_library import library_log, payload_of
from fastderp.server.accept.message_channel import MessageChannel
from fastderp.server.http.message import Request, Response, text_error
from fastderp.server.net.stream import READ_BYTES, Stream
from fastderp.tls.channel import Channel
from fastderp.tls.errors import TlsError
from fastderp.wire.protocol import HEADER_SIZE, MAX_FORWARD_PACKET_SIZE

# Two of the longest packets, four times derper's limit. Incomplete frames are kept, so each client
# can use this much memory.
MESSAGE_LIMIT_BYTES = 2 * (HEADER_SIZE + MAX_FORWARD_PACKET_SIZE)

# The cost of a frame on the loop is nearly independent of its size: input of many small frames is
# read in small pieces, so that other clients are served in between.
FRAMES_PER_READ = 64
LEAST_READ_BYTES = 512


@dataclass(slots=True, frozen=True)
class Opening:
    """An accepted opening handshake: the answer, and whether DERP was agreed on."""

    response: bytes
    derp: bool


def accept(request: Request) -> Opening | Response:
    """Judge the opening handshake of a WebSocket.

    Return the opening, or the response that refuses it.
    """
    if request.version != "1.1":
        return _refusal(426, "the opening handshake needs HTTP/1.1")
    if request.method != "GET":
        return _refusal(405, "the opening handshake is a GET")
    handshake = ServerProtocol(select_subprotocol=_derp_among, logger=library_log)
    response = handshake.accept(OpeningRequest(request.target, Headers(request.headers)))
    if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
        return _refusal(response.status_code, str(handshake.handshake_exc))
    return Opening(response.serialize(), handshake.subprotocol is not None)


def _derp_among(handshake: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return next((name for name in offered if name.lower() == "derp"), None)


def _refusal(status: int, reason: str) -> Response:
    """Return the answer to an opening handshake that breaks the rules.

    The answer's headers show the right form.
    """
    response = text_error(status, f"no WebSocket: {reason}")
    advice = {
        400: (("Sec-WebSocket-Version", "13"),),
        405: (("Allow", "GET"),),
        426: (("Connection", "Upgrade"), ("Upgrade", "websocket")),
    }
    response.headers += advice.get(status, ())
    return response


class WebSocket(MessageChannel):
    """A Channel on top of another: the payload of binary messages is the plain bytes.

    It answers pings and the closing handshake. A client that violates the protocol gets the close
    code and is not read again: `eof` is true from then on, as after an orderly close.
    """

    __slots__ = (
        "_below",
        "_close_code",
        "_failures",
        "_owes_replies",
        "_protocol",
        "_stream",
        "violation",
    )

    def __init__(self, below: Channel, stream: Stream, failures: Counter[str]) -> None:
        """Begin after an accepted opening handshake.

        Args:
            below: the connection's previous channel.
            stream: sends the answers.
            failures: counts protocol violations by close code.
        """
        self._protocol = Protocol(SERVER, max_size=MESSAGE_LIMIT_BYTES, logger=library_log)
        self._below = below
        self._stream = stream
        self._failures = failures
        self._owes_replies = False
        self.violation: str = ""
        # The code of an orderly close by the relay.
        self._close_code = CloseCode.NORMAL_CLOSURE

    @property
    def eof(self) -> bool:
        """Whether the input has ended: by a close frame of either side, or by the channel below."""
        return self._protocol.state is not OPEN or self._below.eof

    @property
    def failure(self) -> TlsError | None:
        """The violation of TLS that has ended the input."""
        return self._below.failure

    @property
    def owes_replies(self) -> bool:
        """Whether answers to the client's pings are unsent; it is not read before they are sent."""
        self._owes_replies = self._owes_replies and not self._stream.flushed
        return self._owes_replies

    @property
    def held_bytes(self) -> int:
        """The number of bytes of an incomplete frame."""
        return len(self._protocol.reader.buffer)

    @property
    def has_more(self) -> bool:
        """Whether the channel below has left wire bytes."""
        return self._below.has_more

    def open(self, wire: bytes | memoryview) -> bytes:
        """Open the channel below and the frames in it."""
        return self.unwrap(self._below.open(wire))

    def open_next(self, wire: bytes | memoryview) -> bytes:
        """Open the next bytes of the channel below and the frames in them."""
        return self.unwrap(self._below.open_next(wire))

    def unwrap(self, data: bytes) -> bytes:
        """Parse plain bytes of the channel below.

        Answer control frames and return the complete payload.
        """
        if self._protocol.state is not OPEN:
            return b""
        self._protocol.receive_data(data)
        events = self._protocol.events_received()
        self._pace(len(data), len(events))
        payload = payload_of(events, self._protocol)
        if self._protocol.state is not OPEN:
            self._count_failure()
        replies = self._to_send()
        if replies and not self._stream.send(self._below.seal(replies)):
            # Stop reading from a peer that does not read our pongs; the owner resumes the drained
            # stream.
            self._owes_replies = True
            self._stream.pause()
        return payload

    def seal(self, plain: bytes) -> bytes:
        """Return a binary message; b"" once the WebSocket is closing."""
        if not plain or self._protocol.state is not OPEN:
            return b""
        self._protocol.send_binary(plain)
        return self._below.seal(self._to_send())

    def close_notify(self) -> bytes:
        """Return a close frame, unless one was sent, and the close_notify of the channel below."""
        closing = b""
        if self._protocol.state is OPEN and self._below.failure is None:
            self._protocol.send_close(self._close_code)
            closing = self._below.seal(self._to_send())
        return closing + self._below.close_notify()

    def refuse_memory(self) -> bytes:
        """Close because a message takes too much memory (1013), and count it."""
        return self._fail(CloseCode.TRY_AGAIN_LATER, "no memory left for a long message")

    def refuse_protocol(self) -> bytes:
        """Close because DERP was not agreed on (1008), and count it."""
        return self._fail(CloseCode.POLICY_VIOLATION, "the subprotocol must be derp")

    def leave(self) -> None:
        """Announce that the relay goes away (1001) when it closes the channel."""
        self._close_code = CloseCode.GOING_AWAY

    def _fail(self, code: CloseCode, reason: str) -> bytes:
        self._protocol.fail(code, reason)
        self._count_failure()
        return self._below.seal(self._to_send())

    def _pace(self, n_bytes: int, n_frames: int) -> None:
        """Size the next read for FRAMES_PER_READ frames like these.

        Grow by up to a factor of two.
        """
        wanted = FRAMES_PER_READ * n_bytes // max(1, n_frames)
        self._stream.read_bytes = max(
            LEAST_READ_BYTES, min(wanted, 2 * self._stream.read_bytes, READ_BYTES)
        )

    def _to_send(self) -> bytes:
        return b"".join(self._protocol.data_to_send())

    def _count_failure(self) -> None:
        """Count a close that does not echo the client's."""
        sent = self._protocol.close_sent
        if sent is not None and sent is not self._protocol.close_rcvd:
            self._failures[str(int(sent.code))] += 1
            self.violation = f"{int(sent.code)} {sent.reason}".rstrip()
