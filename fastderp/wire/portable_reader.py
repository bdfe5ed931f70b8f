"""`message_reader` in plain Python, for platforms without compiled modules (PROTOCOL §2, §4).

Sans-I/O, for any thread, one connection each.
"""

from __future__ import annotations

from collections.abc import Callable

from fastderp.errors import ConnectionLost, ProtocolError
from fastderp.wire.messages import Message, ReceivedPacket
from fastderp.wire.protocol import (
    HEADER,
    HEADER_SIZE,
    KEY_SIZE,
    MAX_CLIENT_FRAME_SIZE,
    FrameType,
    NodePublic,
)

# Limit for cached key objects, 200 bytes each, which the packets of one source share.
_KEYS_LIMIT = 1024


class MessageReader:
    """Splits a stream into frames and frames into messages."""

    def __init__(self, on_frame: Callable[[int, bytes], Message | None]) -> None:
        """Begin a connection.

        `on_frame` is called with type and payload of each frame that is not a packet, in order
        with the packets; it returns the message to append, or None.
        """
        self._on_frame = on_frame
        self._keys: dict[bytes, NodePublic] = {}
        self._unread = bytearray()

    def feed(self, data: bytes | memoryview, messages: list[Message]) -> bool:
        """Append to `messages` those that `data` completes; return whether any frame was complete.

        Raises ProtocolError for a frame of more than 1 MiB, and the errors of `on_frame`; the
        list then has the messages before it, and the connection is unusable. PROTOCOL §4.
        """
        self._unread += data
        unread, at = self._unread, 0
        while len(unread) - at >= HEADER_SIZE:
            frame_type, length = HEADER.unpack_from(unread, at)
            if length > MAX_CLIENT_FRAME_SIZE:
                raise ProtocolError(f"frame of type {frame_type:#04x} with {length} bytes")
            end = at + HEADER_SIZE + length
            if end > len(unread):
                break
            message = self._message(frame_type, bytes(unread[at + HEADER_SIZE : end]))
            if message is not None:
                messages.append(message)
            at = end
        del unread[:at]
        return at > 0

    def end(self) -> None:
        """Note that the stream is over. Raises ConnectionLost inside a frame."""
        if self._unread:
            raise ConnectionLost("the connection ended inside a frame")

    def _message(self, frame_type: int, payload: bytes) -> Message | None:
        if frame_type != FrameType.RECV_PACKET or len(payload) < KEY_SIZE:
            return self._on_frame(frame_type, payload)
        return ReceivedPacket(self._key(payload[:KEY_SIZE]), payload[KEY_SIZE:])

    def _key(self, raw: bytes) -> NodePublic:
        key = self._keys.get(raw)
        if key is None:
            if len(self._keys) >= _KEYS_LIMIT:
                self._keys.clear()
            key = self._keys[raw] = NodePublic(raw)
        return key
