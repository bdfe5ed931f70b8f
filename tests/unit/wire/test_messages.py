"""Messages of the relay as PROTOCOL sections 2 and 4 have them."""

from ipaddress import IPv4Address, IPv6Address

import pytest

from fastderp.wire.messages import (
    Health,
    KeepAlive,
    PeerGone,
    PeerPresent,
    Ping,
    Pong,
    ReceivedPacket,
    ServerRestarting,
    parse_message,
)
from fastderp.wire.protocol import FrameType, NodePublic, PeerGoneReason, PeerPresentFlags
from tests.wire import vectors

PEER = NodePublic(vectors.CLIENT_PUBLIC)
LOOPBACK = bytes(10) + b"\xff\xff\x7f\0\0\1"


@pytest.mark.parametrize(
    ("frame_type", "payload", "message"),
    [
        (FrameType.RECV_PACKET, PEER.raw + b"data", ReceivedPacket(PEER, b"data")),
        (FrameType.RECV_PACKET, PEER.raw, ReceivedPacket(PEER, b"")),
        (FrameType.KEEP_ALIVE, b"", KeepAlive()),
        (FrameType.PEER_GONE, PEER.raw, PeerGone(PEER, PeerGoneReason.DISCONNECTED)),
        (FrameType.PEER_GONE, PEER.raw + b"\1later", PeerGone(PEER, PeerGoneReason.NOT_HERE)),
        (FrameType.PEER_GONE, PEER.raw + b"\x77", PeerGone(PEER, 0x77)),
        (FrameType.PEER_PRESENT, PEER.raw, PeerPresent(PEER)),
        (
            FrameType.PEER_PRESENT,
            PEER.raw + LOOPBACK + b"\0\x50",
            PeerPresent(PEER, IPv4Address("127.0.0.1"), 80),
        ),
        (
            FrameType.PEER_PRESENT,
            PEER.raw + IPv6Address("2001:db8::1").packed + b"\0\x50\x0e",
            PeerPresent(
                PEER,
                IPv6Address("2001:db8::1"),
                80,
                PeerPresentFlags.MESH_PEER | PeerPresentFlags.PROBER | PeerPresentFlags.NOT_IDEAL,
            ),
        ),
        (FrameType.PEER_PRESENT, PEER.raw + bytes(19), PeerPresent(PEER, None, 0)),
        (FrameType.PEER_PRESENT, PEER.raw + bytes(20), PeerPresent(PEER, None, 0)),
        (
            FrameType.PEER_PRESENT,
            PEER.raw + bytes(19) + b"\x02oklater",
            PeerPresent(PEER, app_name="ok"),
        ),
        # A truncated name, or other bytes after the flags.
        (FrameType.PEER_PRESENT, PEER.raw + bytes(19) + b"\x09later", PeerPresent(PEER)),
        # Names that no client may have.
        (FrameType.PEER_PRESENT, PEER.raw + bytes(19) + b"\x05\x1b[31m", PeerPresent(PEER)),
        (FrameType.PEER_PRESENT, PEER.raw + bytes(19) + b"\x02\xc3\xa9", PeerPresent(PEER)),
        (FrameType.PEER_PRESENT, PEER.raw + bytes(19) + b"\x21" + b"x" * 33, PeerPresent(PEER)),
        (FrameType.PING, b"12345678later", Ping(b"12345678")),
        (FrameType.PONG, b"12345678", Pong(b"12345678")),
        (FrameType.HEALTH, b"two of you", Health("two of you")),
        (FrameType.HEALTH, b"", Health("")),
        (FrameType.HEALTH, b"\xff", Health("\ufffd")),
        (FrameType.RESTARTING, vectors.RESTARTING_FRAME[5:], ServerRestarting(0.001, 0.002)),
    ],
)
def test_messages_of_every_release_are_parsed(
    frame_type: int, payload: bytes, message: object
) -> None:
    assert parse_message(frame_type, payload) == message


@pytest.mark.parametrize(
    ("frame_type", "payload"),
    [
        (FrameType.RECV_PACKET, bytes(31)),
        (FrameType.PEER_GONE, bytes(31)),
        (FrameType.PEER_PRESENT, bytes(31)),
        (FrameType.PING, bytes(7)),
        (FrameType.PONG, bytes(7)),
        (FrameType.RESTARTING, bytes(7)),
        (FrameType.SERVER_KEY, bytes(40)),
        (FrameType.SEND_PACKET, bytes(40)),
        (0x16, b""),
        (0xFF, b"from the future"),
    ],
)
def test_short_and_unknown_frames_are_skipped(frame_type: int, payload: bytes) -> None:
    assert parse_message(frame_type, payload) is None
