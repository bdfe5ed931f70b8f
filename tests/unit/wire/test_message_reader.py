"""From bytes to messages, however the bytes are cut, compiled and portable (PROTOCOL §2, §4)."""

import gc
import random
import sys

import pytest

from fastderp.errors import ConnectionLost, ProtocolError
from fastderp.wire import message_reader, portable_reader
from fastderp.wire.messages import Health, KeepAlive, Message, ReceivedPacket, parse_message
from fastderp.wire.protocol import FrameType, NodePublic, frame

READERS = (message_reader.MessageReader, portable_reader.MessageReader)
both = pytest.mark.parametrize("reader_type", READERS, ids=["compiled", "portable"])
ReaderType = type[message_reader.MessageReader] | type[portable_reader.MessageReader]

PEER = NodePublic(b"\x11" * 32)
OTHER = NodePublic(b"\x22" * 32)

STREAM = b"".join(
    [
        frame(FrameType.RECV_PACKET, PEER.raw, b"one"),
        frame(FrameType.RECV_PACKET, PEER.raw),
        frame(FrameType.HEALTH, b"two of you"),
        frame(FrameType.RECV_PACKET, OTHER.raw, bytes(65536)),
        frame(FrameType.KEEP_ALIVE),
        frame(FrameType.RECV_PACKET, bytes(31)),
        frame(0x7F, bytes(70_000)),
        frame(FrameType.RECV_PACKET, PEER.raw, b"last"),
    ]
)
MESSAGES: list[Message] = [
    ReceivedPacket(PEER, b"one"),
    ReceivedPacket(PEER, b""),
    Health("two of you"),
    ReceivedPacket(OTHER, bytes(65536)),
    KeepAlive(),
    ReceivedPacket(PEER, b"last"),
]


@both
def test_messages_are_the_same_however_the_stream_is_cut(reader_type: ReaderType) -> None:
    cuts = random.Random(7)
    for _ in range(200):
        reader, messages, at = reader_type(parse_message), list[Message](), 0
        while at < len(STREAM):
            size = cuts.choice([1, 4, 5, 36, 37, 38, 1400, 65536, 200_000])
            reader.feed(STREAM[at : at + size], messages)
            at += size
        reader.end()
        assert messages == MESSAGES


@both
def test_a_frame_of_one_byte_at_a_time_is_complete_with_its_last(reader_type: ReaderType) -> None:
    reader, messages = reader_type(parse_message), list[Message]()
    whole = frame(FrameType.RECV_PACKET, PEER.raw, b"data")
    assert [reader.feed(bytes([byte]), messages) for byte in whole[:-1]] == [False] * 40
    assert reader.feed(whole[-1:], messages)
    assert messages == [ReceivedPacket(PEER, b"data")]


@both
def test_the_largest_frame_passes_and_a_larger_one_ends_the_stream_behind_what_came_before(
    reader_type: ReaderType,
) -> None:
    reader, messages = reader_type(lambda *_: None), list[Message]()
    reader.feed(frame(0x7F, bytes(1 << 20)), messages)
    reader.end()
    with pytest.raises(ProtocolError, match="type 0x05 with 1048577 bytes"):
        reader.feed(STREAM[:40] + bytes.fromhex("05 00100001"), messages)
    assert messages == [ReceivedPacket(PEER, b"one")]


@both
def test_what_the_callback_raises_comes_behind_the_messages_before_it(
    reader_type: ReaderType,
) -> None:
    def refuse(frame_type: int, payload: bytes) -> None:
        raise ProtocolError(f"{frame_type}: {payload!r}")

    reader, messages = reader_type(refuse), list[Message]()
    with pytest.raises(ProtocolError, match="20: b'two of you'"):
        reader.feed(STREAM, messages)
    assert messages == MESSAGES[:2]


@both
def test_a_stream_that_ends_inside_a_frame_was_lost(reader_type: ReaderType) -> None:
    reader = reader_type(parse_message)
    reader.feed(STREAM[:-1], [])
    with pytest.raises(ConnectionLost, match="inside a frame"):
        reader.end()


@both
def test_packets_of_one_source_share_its_key_and_are_ordinary_packets(
    reader_type: ReaderType,
) -> None:
    reader, messages = reader_type(parse_message), list[Message]()
    reader.feed(STREAM, messages)
    first, second, _, other, _, last = messages
    assert isinstance(first, ReceivedPacket) and isinstance(second, ReceivedPacket)
    assert isinstance(last, ReceivedPacket) and isinstance(other, ReceivedPacket)
    assert first.source is second.source is last.source is not other.source
    assert repr(first) == repr(ReceivedPacket(PEER, b"one")) and hash(first) == hash(messages[0])


@both
def test_nothing_is_left_of_many_sources_and_packets(reader_type: ReaderType) -> None:
    reader = reader_type(parse_message)
    packets = [
        frame(FrameType.RECV_PACKET, number.to_bytes(32, "big"), bytes(100))
        for number in range(5000)
    ]
    data = b"".join(packets)
    sizes = []
    for _ in range(6):
        reader.feed(data, [])
        gc.collect()
        sizes.append(sys.getallocatedblocks())
    assert sizes[-1] - sizes[1] < 100
