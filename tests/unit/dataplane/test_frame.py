"""The reception rules on bytes. PROTOCOL §4, §5."""

from __future__ import annotations

import struct

import pytest

from fastderp.wire.protocol import FrameType
from tests.kit.plane import DISCO
from tests.unit.dataplane.shims import frames

# Type -> sizes of the payload that the relay acts on, by role; a missing role may not send it.
ACTED_ON = {
    FrameType.SEND_PACKET: {"client": (32, 65568), "mesh": (32, 65568)},
    FrameType.PING: {"client": (8, 1000), "mesh": (8, 1000), "link": (8, 1000)},
    FrameType.NOTE_PREFERRED: {"client": (1, 1), "mesh": (1, 1)},
    FrameType.FORWARD_PACKET: {"mesh": (64, 65600)},
    FrameType.WATCH_CONNS: {"mesh": (0, 0)},
    FrameType.CLOSE_PEER: {"mesh": (32, 32)},
    FrameType.PEER_PRESENT: {"link": (32, 1024)},
    FrameType.PEER_GONE: {"link": (32, 1024)},
}


def header(frame_type: int, size: int) -> bytes:
    return struct.pack(">BI", frame_type, size)


@pytest.mark.parametrize("role", ["client", "mesh", "link"])
@pytest.mark.parametrize("frame_type", ACTED_ON)
def test_sizes_are_judged_by_the_header_alone(frame_type: FrameType, role: str) -> None:
    low, high = ACTED_ON[frame_type].get(role, (1, 0))
    for size in {
        0,
        1,
        7,
        8,
        31,
        32,
        33,
        63,
        64,
        1000,
        1001,
        1024,
        1025,
        65568,
        65569,
        65600,
        65601,
    }:
        status, total = frames.judge(header(frame_type, size), role)
        assert total == 5 + size
        if low <= size <= high:
            assert status == ("ready" if size == 0 else "partial")
        elif role == "link" or not ACTED_ON[frame_type].keys() & {"client", "mesh"}:
            limit = 1048576 if role == "link" else 65568
            assert status == ("skip" if size <= limit else "bad size")
        else:
            assert status in ("bad size", "not permitted")


@pytest.mark.parametrize("n", range(38))
def test_a_frame_cut_anywhere_is_partial_until_it_is_whole(n: int) -> None:
    packet = header(FrameType.SEND_PACKET, 32) + bytes(32)
    expected = ("ready", 37) if n >= 37 else ("partial", 37 if n >= 5 else 5)
    assert frames.judge((packet + b"next")[:n], "client") == expected


@pytest.mark.parametrize("size", [2**31 - 1, 2**31, 2**32 - 1])
def test_a_size_near_the_end_of_its_range_is_no_frame(size: int) -> None:
    for role in ("client", "mesh", "link"):
        for frame_type in range(256):
            status, total = frames.judge(header(frame_type, size), role)
            assert status in ("bad size", "not permitted")
            assert total == 5 + size


def test_disco_is_recognised_by_its_magic_and_smallest_size() -> None:
    def packet(data: bytes) -> bytes:
        return header(FrameType.RECV_PACKET, 32 + len(data)) + bytes(32) + data

    assert frames.carries_disco(packet(DISCO))
    assert not frames.carries_disco(packet(DISCO[:61]))
    assert not frames.carries_disco(packet(b"X" + DISCO[1:]))
    assert not frames.carries_disco(header(FrameType.RECV_PACKET, 3) + b"old")


def test_the_data_of_a_packet_is_what_follows_its_keys() -> None:
    assert frames.data_size(header(FrameType.RECV_PACKET, 40) + bytes(40)) == 8
    assert frames.data_size(header(FrameType.FORWARD_PACKET, 72) + bytes(72)) == 8
    assert frames.data_size(header(FrameType.RECV_PACKET, 3) + b"old") == 0
