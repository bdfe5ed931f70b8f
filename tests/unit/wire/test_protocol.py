"""Frames, addresses and messages as PROTOCOL sections 1, 2 and 4 have them."""

from ipaddress import IPv4Address, IPv6Address

import pytest

from fastderp.wire.protocol import (
    HEADER,
    FrameType,
    Health,
    KeepAlive,
    NodePublic,
    PeerGone,
    PeerGoneReason,
    PeerPresent,
    PeerPresentFlags,
    Ping,
    Pong,
    ReceivedPacket,
    ServerRestarting,
    frame,
    parse_message,
    peer_gone_payload,
    peer_present_payload,
    restarting_payload,
)
from tests.wire import vectors

PEER = NodePublic(vectors.CLIENT_PUBLIC)
LOOPBACK = bytes(10) + b"\xff\xff\x7f\0\0\1"


@pytest.mark.parametrize(
    ("built", "wire"),
    [
        (frame(FrameType.KEEP_ALIVE), vectors.KEEP_ALIVE_FRAME),
        (frame(FrameType.PING, bytes(range(1, 9))), vectors.PING_FRAME),
        (frame(FrameType.PONG, bytes(range(1, 9))), vectors.PONG_FRAME),
        (
            frame(
                FrameType.PEER_PRESENT, peer_present_payload(PEER.raw, LOOPBACK, 48620, 1, b"ok")
            ),
            vectors.PEER_PRESENT_FRAME,
        ),
        (
            frame(FrameType.PEER_GONE, peer_gone_payload(PEER.raw, PeerGoneReason.NOT_HERE)),
            vectors.PEER_GONE_NOT_HERE_FRAME,
        ),
        (frame(FrameType.RESTARTING, restarting_payload(0.001, 0.002)), vectors.RESTARTING_FRAME),
    ],
)
def test_built_frames_are_the_bytes_of_the_wire(built: bytes, wire: bytes) -> None:
    assert built == wire


def test_header_is_a_type_and_a_big_endian_length() -> None:
    assert HEADER.pack(FrameType.SEND_PACKET, 1024) == bytes.fromhex("04 00000400")
    assert HEADER.unpack(bytes.fromhex("05 ffffffff")) == (FrameType.RECV_PACKET, 0xFFFFFFFF)


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


def test_public_key_has_the_three_text_forms() -> None:
    key = NodePublic(vectors.SERVER_PUBLIC)
    assert key.text == str(key) == "nodekey:" + vectors.SERVER_PUBLIC.hex()
    assert key.hex == vectors.SERVER_PUBLIC.hex()
    assert key.short == "[B6N8v]"
    assert NodePublic(bytes(32)).short == ""
    assert NodePublic(bytes(32)).is_zero and not key.is_zero


def test_public_key_text_is_read_in_either_case() -> None:
    key = NodePublic(vectors.SERVER_PUBLIC)
    assert NodePublic.from_text("nodekey:" + key.hex.upper()) == key
    assert NodePublic.from_hex(key.hex.upper()) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nodekey:",
        "ab" * 32,
        "NODEKEY:" + "ab" * 32,
        "privkey:" + "ab" * 32,
        "nodekey:" + "ab" * 31,
        "nodekey:" + "ab" * 32 + "a",
        "nodekey:" + "ab" * 31 + "zz",
        "nodekey:" + "ab" * 31 + " a",
        "nodekey:" + "ab" * 31 + "é1",
        "nodekey:" + "ab" * 32 + "\n",
    ],
)
def test_malformed_public_key_text_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="key") as caught:
        NodePublic.from_text(text)
    assert "abab" not in str(caught.value)


def test_public_keys_are_values() -> None:
    key = NodePublic(bytes(range(32)))
    assert {key: 1}[NodePublic(bytearray(range(32)))] == 1
    assert key != bytes(range(32))
    assert sorted([NodePublic(b"\2" * 32), key])[0] is key
    with pytest.raises(AttributeError, match="cannot be changed"):
        key.raw = bytes(32)
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        NodePublic(bytes(31))
