"""The messages that a relay sends to a logged-in client (PROTOCOL §2, §4).

Pure functions and values for any thread. A relay imports this module for mesh links only.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

from fastderp.wire.login import ServerInfo, is_app_name
from fastderp.wire.protocol import (
    KEY_SIZE,
    PEER_GONE_REASON_END,
    PEER_PRESENT_PORT_END,
    PING_SIZE,
    RESTARTING,
    FrameType,
    NodePublic,
    PeerGoneReason,
    PeerPresentFlags,
)


@dataclass(frozen=True, slots=True)
class ReceivedPacket:
    """A packet that the client `source` sent, with `data` of 0 to MAX_PACKET_SIZE bytes.

    PROTOCOL §2, §4.
    """

    source: NodePublic
    data: bytes


@dataclass(frozen=True, slots=True)
class PeerGone:
    """A sender or a destination of this client's packets is not reachable, or no longer reachable.

    PROTOCOL §6.4, §6.7.

    A watcher gets one for every client that leaves (§7.2).

    Args:
        key: the peer's.
        reason: a PeerGoneReason, or a number for an unknown reason.
    """

    key: NodePublic
    reason: PeerGoneReason | int


@dataclass(frozen=True, slots=True)
class PeerPresent:
    """A client is connected to the relay; only watchers get this message. PROTOCOL §2, §7.2.

    Args:
        key: the client's.
        ip, port: its address; None and 0 when the relay does not know it or is too old to send it.
        flags: the kind of client.
        app_name: name of the client's program; "" when the client or the relay does not send it.
    """

    key: NodePublic
    ip: IPv4Address | IPv6Address | None = None
    port: int = 0
    flags: PeerPresentFlags = PeerPresentFlags(0)
    app_name: str = ""


@dataclass(frozen=True, slots=True)
class Ping:
    """A request to answer with a Pong of the same 8 bytes of `data`. PROTOCOL §2."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a Ping of the same 8 bytes of `data`. PROTOCOL §2."""

    data: bytes


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """An empty message that the relay sends about once a minute. PROTOCOL §6.6."""


@dataclass(frozen=True, slots=True)
class Health:
    """A `problem` of this connection that the relay reports; an empty text means its end.

    PROTOCOL §4.
    """

    problem: str


@dataclass(frozen=True, slots=True)
class ServerRestarting:
    """Advice before a restart.

    Reconnect after `reconnect_in_s` seconds, and keep trying for `try_for_s` seconds. PROTOCOL §4.
    """

    reconnect_in_s: float
    try_for_s: float


Message: TypeAlias = (
    ServerInfo
    | ReceivedPacket
    | PeerGone
    | PeerPresent
    | Ping
    | Pong
    | KeepAlive
    | Health
    | ServerRestarting
)
"""A message from the relay to a logged-in client; `Client.recv` returns one. PROTOCOL §4."""


def parse_message(frame_type: int, payload: bytes) -> Message | None:
    """Return the message of a frame from the relay, or None for a frame to skip (PROTOCOL §4).

    Frames to skip are of unknown types, of the handshake, of types that only clients send, or
    too short for their type. Longer frames are valid: later versions append fields.
    ServerInfo is sealed, so `login.open_server_info` reads it.
    """
    match frame_type:
        case FrameType.RECV_PACKET if len(payload) >= KEY_SIZE:
            return ReceivedPacket(NodePublic(payload[:KEY_SIZE]), payload[KEY_SIZE:])
        case FrameType.KEEP_ALIVE:
            return KeepAlive()
        case FrameType.PEER_GONE if len(payload) >= KEY_SIZE:
            return _parse_peer_gone(payload)
        case FrameType.PEER_PRESENT if len(payload) >= KEY_SIZE:
            return _parse_peer_present(payload)
        case FrameType.PING if len(payload) >= PING_SIZE:
            return Ping(payload[:PING_SIZE])
        case FrameType.PONG if len(payload) >= PING_SIZE:
            return Pong(payload[:PING_SIZE])
        case FrameType.HEALTH:
            return Health(payload.decode("utf-8", "replace"))
        case FrameType.RESTARTING if len(payload) >= RESTARTING.size:
            reconnect_in_ms, try_for_ms = RESTARTING.unpack_from(payload)
            return ServerRestarting(reconnect_in_ms / 1000, try_for_ms / 1000)
    return None


def _parse_peer_gone(payload: bytes) -> PeerGone:
    has_reason = len(payload) >= PEER_GONE_REASON_END
    code = payload[KEY_SIZE] if has_reason else PeerGoneReason.DISCONNECTED
    try:
        reason: PeerGoneReason | int = PeerGoneReason(code)
    except ValueError:
        reason = code
    return PeerGone(NodePublic(payload[:KEY_SIZE]), reason)


def _parse_peer_present(payload: bytes) -> PeerPresent:
    """Read the 32, 50, 51 or more bytes that relays of different versions send."""
    key = NodePublic(payload[:KEY_SIZE])
    if len(payload) < PEER_PRESENT_PORT_END:
        return PeerPresent(key)
    address = IPv6Address(payload[KEY_SIZE : KEY_SIZE + 16])
    port = int.from_bytes(payload[KEY_SIZE + 16 : PEER_PRESENT_PORT_END], "big")
    rest = payload[PEER_PRESENT_PORT_END:]
    flags = rest[0] if rest else 0
    length = rest[1] if len(rest) > 1 else 0
    app_name = rest[2 : 2 + length].decode("latin-1")
    if len(app_name) < length or not is_app_name(app_name):
        # A truncated name, or one that a relay accepts from no client, is not shown.
        app_name = ""
    ip = None if address.is_unspecified else address.ipv4_mapped or address
    return PeerPresent(key, ip, port, PeerPresentFlags(flags), app_name)
