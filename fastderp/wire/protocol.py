"""The DERP wire: frame types, limits, client addresses and payloads (PROTOCOL §1, §2).

Pure functions and values for any thread. It imports no other fastderp module and no slow one.
Integers on the wire are unsigned and big-endian.
"""

from __future__ import annotations

import base64
import binascii
import struct
from enum import IntEnum, IntFlag
from typing import Final

PROTOCOL_VERSION: Final = 2
"""The version that relays and clients announce. PROTOCOL §2."""
MAGIC: Final = b"DERP\xf0\x9f\x94\x91"
KEEPALIVE_S: Final = 60.0

KEY_SIZE: Final = 32
NONCE_SIZE: Final = 24
HEADER_SIZE: Final = 5
PING_SIZE: Final = 8

MAX_PACKET_SIZE: Final = 65536
"""Maximum of data bytes in one packet, without the keys in its frame. PROTOCOL §2."""
MAX_SEND_PACKET_SIZE: Final = KEY_SIZE + MAX_PACKET_SIZE
MAX_FORWARD_PACKET_SIZE: Final = 2 * KEY_SIZE + MAX_PACKET_SIZE
MIN_SERVER_KEY_SIZE: Final = len(MAGIC) + KEY_SIZE
MAX_SERVER_KEY_SIZE: Final = 1024
MIN_CLIENT_INFO_SIZE: Final = KEY_SIZE + NONCE_SIZE
MAX_CLIENT_INFO_SIZE: Final = 256 << 10
MIN_SERVER_INFO_SIZE: Final = NONCE_SIZE
MAX_SERVER_INFO_SIZE: Final = NONCE_SIZE + (1 << 20)
MAX_APP_NAME_BYTES: Final = 32
"""Bytes of a client's AppName, printable ASCII. PROTOCOL §22."""
# A client closes on a longer frame of any type.
MAX_CLIENT_FRAME_SIZE: Final = 1 << 20

HEADER: Final = struct.Struct(">BI")
_PORT_FLAGS_LENGTH: Final = struct.Struct(">HBB")
RESTARTING: Final = struct.Struct(">II")

PEER_GONE_REASON_END: Final = KEY_SIZE + 1
PEER_PRESENT_PORT_END: Final = KEY_SIZE + 16 + 2


class FrameType(IntEnum):
    """First byte of a frame.

    Each is followed by the payload's length (4 bytes) and this payload:
    """

    SERVER_KEY = 0x01  # relay → client: magic 8 ‖ server key 32 ‖ future bytes
    CLIENT_INFO = 0x02  # client → relay: client key 32 ‖ nonce 24 ‖ box(JSON)
    SERVER_INFO = 0x03  # relay → client: nonce 24 ‖ box(JSON)
    SEND_PACKET = 0x04  # client → relay: destination key 32 ‖ data 0..65536
    RECV_PACKET = 0x05  # relay → client: source key 32 ‖ data 0..65536
    KEEP_ALIVE = 0x06  # relay → client: empty
    NOTE_PREFERRED = 0x07  # client → relay: 1 byte, non-zero = this relay is my home
    PEER_GONE = 0x08  # relay → client: peer key 32 ‖ reason 1
    # relay → watcher: peer key 32 ‖ IPv6 or 4-in-6 address 16 ‖ port 2 ‖ flags 1 ‖ name length 1
    # ‖ AppName 0..32; older relays end after the flags, the port or the key
    PEER_PRESENT = 0x09
    FORWARD_PACKET = 0x0A  # mesh peer → relay: source key 32 ‖ destination key 32 ‖ data 0..65536
    WATCH_CONNS = 0x10  # mesh peer → relay: empty
    CLOSE_PEER = 0x11  # mesh peer → relay: peer key 32
    PING = 0x12  # both ways: 8 opaque bytes ‖ future bytes
    PONG = 0x13  # both ways: the ping's 8 bytes
    HEALTH = 0x14  # relay → client: UTF-8 problem text; empty = healthy again
    RESTARTING = 0x15  # relay → client: reconnect in, ms 4 ‖ keep trying for, ms 4


class PeerGoneReason(IntEnum):
    """The reason why a peer cannot be reached.

    Unknown values are plain integers. PROTOCOL §2.
    """

    DISCONNECTED = 0x00  # it left the region
    NOT_HERE = 0x01  # the relay has no route to it
    MESH_LINK_BROKEN = 0xF0  # a watcher reports it when its link broke; it is never sent


class PeerPresentFlags(IntFlag):
    """The properties of a client in PeerPresent; 0 from a relay without them. PROTOCOL §2."""

    REGULAR = 1  # none of the others
    MESH_PEER = 2
    PROBER = 4
    NOT_IDEAL = 8  # connected to another node of its region than it prefers


class NodePublic:
    """A client's or a relay's public key: its address.

    Immutable, hashable, ordered by bytes. PROTOCOL §1.

    `raw` is the 32 bytes of the wire. Two keys are equal when their bytes are.
    """

    __slots__ = ("raw",)

    raw: bytes

    def __init__(self, raw: bytes | bytearray | memoryview) -> None:
        """Take `raw`, the 32 bytes of the wire.

        Raises ValueError for any other length, TypeError for any other type.
        """
        object.__setattr__(self, "raw", key_bytes("a public key", raw))

    @classmethod
    def from_text(cls, text: str) -> NodePublic:
        """Parse a `text` of `nodekey:` and 64 hex digits of either case.

        Raises ValueError that names the fault and never quotes the text.
        """
        return cls(parse_key_text(text, "nodekey:"))

    @classmethod
    def from_hex(cls, text: str) -> NodePublic:
        """Parse a `text` of 64 hex digits of either case, the form of the Derp-Public-Key header.

        ValueError as in `from_text`.
        """
        return cls(parse_key_text(text, ""))

    @property
    def text(self) -> str:
        """The typed form: `nodekey:` and 64 lower-case hex digits."""
        return "nodekey:" + self.raw.hex()

    @property
    def hex(self) -> str:
        """The untyped form: 64 lower-case hex digits."""
        return self.raw.hex()

    @property
    def short(self) -> str:
        """The form for logs: five base64 characters in brackets; empty for the zero key."""
        return "" if self.is_zero else f"[{base64.b64encode(self.raw[:6]).decode()[:5]}]"

    @property
    def is_zero(self) -> bool:
        """Whether this is the all-zero key, which has no private key."""
        return not any(self.raw)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a key cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a key cannot be changed")

    def __reduce__(self) -> tuple[type[NodePublic], tuple[bytes]]:
        return NodePublic, (self.raw,)

    def __eq__(self, other: object) -> bool:
        return self.raw == other.raw if isinstance(other, NodePublic) else NotImplemented

    def __lt__(self, other: NodePublic) -> bool:
        return self.raw < other.raw if isinstance(other, NodePublic) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.raw)

    def __bytes__(self) -> bytes:
        return self.raw

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"NodePublic.from_text({self.text!r})"


def key_bytes(kind: str, raw: object) -> bytes:
    """Return the 32 bytes of a key of this kind.

    Raises ValueError for any other length, TypeError for anything but bytes, without the value,
    which may be a secret.
    """
    if type(raw) is not bytes:
        if not isinstance(raw, bytes | bytearray | memoryview):
            remedy = "; from_text reads a key's text" if isinstance(raw, str) else ""
            raise TypeError(f"{kind} is made from bytes, not from {type(raw).__name__}{remedy}")
        raw = bytes(raw)
    if len(raw) != KEY_SIZE:
        raise ValueError(f"{kind} has {KEY_SIZE} bytes, not {len(raw)}")
    return raw


def parse_key_text(text: str, prefix: str) -> bytes:
    """Return the 32 bytes of `prefix` followed by 64 hex digits of either case.

    Raises ValueError that names the fault without the text, which may be a secret, and TypeError
    for anything but a text.
    """
    if not isinstance(text, str):
        raise TypeError(f"the text of a key is a str, not {type(text).__name__}")
    if not text.startswith(prefix):
        raise ValueError(f"a key of this kind starts with {prefix!r}")
    digits = text[len(prefix) :]
    if len(digits) != 2 * KEY_SIZE:
        raise ValueError(f"a key has {2 * KEY_SIZE} hex digits, not {len(digits)}")
    try:
        return binascii.unhexlify(digits)
    except ValueError:
        # The original error is suppressed: it could show the digits.
        raise ValueError("a key has hex digits only") from None


def frame(frame_type: int, *parts: bytes) -> bytes:
    """Return one whole frame whose payload is `parts` joined."""
    payload = b"".join(parts)
    return HEADER.pack(frame_type, len(payload)) + payload


def peer_gone_payload(key: bytes, reason: int) -> bytes:
    """Return the 33 bytes of a PeerGone for the 32-byte `key`."""
    return key + bytes((reason,))


def peer_present_payload(
    key: bytes, ip: bytes, port: int, flags: int, app_name: bytes = b""
) -> bytes:
    """Return the 52 bytes of a PeerPresent and the AppName after them. PROTOCOL §22.

    `ip` is 16 bytes, IPv4 as ::ffff:a.b.c.d; 16 zero bytes and port 0 for an unknown address.
    `app_name` has up to MAX_APP_NAME_BYTES bytes.
    """
    return key + ip + _PORT_FLAGS_LENGTH.pack(port, flags, len(app_name)) + app_name


def restarting_payload(reconnect_in_s: float, try_for_s: float) -> bytes:
    """Return the 8 bytes of a Restarting frame; both times in seconds, kept to the millisecond."""
    return RESTARTING.pack(round(reconnect_in_s * 1000), round(try_for_s * 1000))
