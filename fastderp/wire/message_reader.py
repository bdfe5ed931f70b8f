"""From the bytes that a relay sends to messages: what a client does with every read (PROTOCOL §2, §4).

Sans-I/O, for any thread, one connection each. A read of many packets costs one call.
"""

from __future__ import annotations

from collections.abc import Callable

from fastderp.errors import ConnectionLost, ProtocolError
from fastderp.wire.protocol import (
    HEADER,
    HEADER_SIZE,
    KEY_SIZE,
    MAX_CLIENT_FRAME_SIZE,
    FrameType,
    Message,
    NodePublic,
    ReceivedPacket,
)

# Keys that are kept as objects, so that the packets of one source share one. About 200 bytes each.
_KEYS_LIMIT = 1024

_RECV_PACKET = int(FrameType.RECV_PACKET)
_new_packet = object.__new__
# A frozen dataclass has no faster way to be filled, and packets come by the hundred thousand.
_set_source = ReceivedPacket.__dict__["source"].__set__
_set_data = ReceivedPacket.__dict__["data"].__set__


class MessageReader:
    """Splits a stream into frames and frames into messages."""

    __slots__ = ("_keys", "_on_frame", "_unread")

    def __init__(self, on_frame: Callable[[int, bytes], Message | None]) -> None:
        """Begin a connection.

        `on_frame` is called with type and payload of each frame that is no packet, in order with the packets; it returns the
        message to hand on, or None to hand on nothing.
        """
        self._on_frame = on_frame
        self._keys: dict[bytes, NodePublic] = {}
        self._unread = b""

    def feed(self, data: bytes, messages: list[Message]) -> bool:
        """Append the messages that `data` completes to `messages`; return whether a frame was completed.

        Raises ProtocolError for a frame of more than 1 MiB, and what `on_frame` raises; the messages before it are in the list
        then, and the connection is of no more use. PROTOCOL §4.
        """
        unread = self._unread
        if unread:
            data = unread + data
        keys, append, unpack = self._keys, messages.append, HEADER.unpack_from
        at, end = 0, len(data)
        while end - at >= HEADER_SIZE:
            frame_type, length = unpack(data, at)
            if length > MAX_CLIENT_FRAME_SIZE:
                raise ProtocolError(f"frame of type {frame_type:#04x} with {length} bytes")
            payload_at = at + HEADER_SIZE
            next_at = payload_at + length
            if next_at > end:
                break
            if frame_type == _RECV_PACKET and length >= KEY_SIZE:
                data_at = payload_at + KEY_SIZE
                raw = data[payload_at:data_at]
                packet: ReceivedPacket = _new_packet(ReceivedPacket)
                _set_source(packet, keys.get(raw) or self._key(raw))
                _set_data(packet, data[data_at:next_at])
                append(packet)
            else:
                message = self._on_frame(frame_type, data[payload_at:next_at])
                if message is not None:
                    append(message)
            at = next_at
        self._unread = data[at:]
        return at > 0

    def end(self) -> None:
        """Note that the stream is over. Raises ConnectionLost inside a frame."""
        if self._unread:
            raise ConnectionLost("the connection ended inside a frame")

    def _key(self, raw: bytes) -> NodePublic:
        if len(self._keys) >= _KEYS_LIMIT:
            self._keys.clear()
        key = self._keys[raw] = NodePublic(raw)
        return key
