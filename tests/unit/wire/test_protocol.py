"""Frames and addresses as PROTOCOL sections 1 and 2 have them."""

import pytest

from fastderp.wire.protocol import (
    HEADER,
    FrameType,
    NodePublic,
    PeerGoneReason,
    frame,
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
