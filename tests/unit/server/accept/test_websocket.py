"""The WebSocket channel: payload and answers for any bytes in any pieces."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fastderp.server.accept.websocket import FRAMES_PER_READ, MESSAGE_LIMIT_BYTES, WebSocket
from fastderp.server.net.stream import READ_BYTES
from fastderp.tls.channel import Plain
from tests.kit.websocket import BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT, message


class FakeStream:
    """Records the sent bytes; `full` simulates a peer that does not read."""

    def __init__(self) -> None:
        self.sent = b""
        self.full = False
        self.paused = False
        self.read_bytes = READ_BYTES

    def send(self, data: bytes) -> bool:
        self.sent += data
        return not self.full

    def pause(self) -> None:
        self.paused = True


def make() -> tuple[WebSocket, FakeStream, Counter[str]]:
    stream, failures = FakeStream(), Counter[str]()
    return WebSocket(Plain(), stream, failures), stream, failures  # type: ignore[arg-type]


def unmasked(first: int, data: bytes) -> bytes:
    return message(data, first, masked=False)


def test_payload_comes_out_as_it_arrives_not_when_the_message_ends() -> None:
    channel, stream, _ = make()
    assert channel.open(message(b"one", BINARY)) == b"one"
    assert (
        channel.open(message(b"two", CONTINUATION) + message(b"three", FIN | CONTINUATION))
        == b"twothree"
    )
    assert stream.sent == b"" and not channel.eof


def test_the_relay_writes_unmasked_binary_messages() -> None:
    channel, _, _ = make()
    assert channel.seal(b"hello") == unmasked(FIN | BINARY, b"hello")
    assert channel.seal(b"") == b""


def test_pongs_that_the_peer_does_not_read_stop_the_reading() -> None:
    channel, stream, _ = make()
    channel.open(message(b"1", FIN | PING))
    assert stream.sent == unmasked(FIN | PONG, b"1") and not stream.paused
    stream.full = True
    channel.open(message(b"2", FIN | PING))
    assert stream.paused


def test_after_a_close_frame_nothing_is_read_or_written() -> None:
    channel, stream, failures = make()
    assert (
        channel.open(message(b"last", FIN | BINARY) + message(b"\x03\xe8", FIN | CLOSE)) == b"last"
    )
    assert channel.eof and stream.sent == unmasked(FIN | CLOSE, b"\x03\xe8")
    assert (
        channel.open(message(b"more", FIN | BINARY))
        == channel.seal(b"more")
        == channel.close_notify()
        == b""
    )
    assert not failures


def test_payload_before_a_text_message_still_counts_and_nothing_after_it() -> None:
    channel, stream, failures = make()
    sent = (
        message(b"good", FIN | BINARY)
        + message(b"bad", FIN | TEXT)
        + message(b"late", FIN | BINARY)
    )
    assert channel.open(sent) == b"good"
    assert channel.eof and stream.sent[2:4] == (1003).to_bytes(2)
    assert failures == {"1003": 1}


def test_our_close_is_sent_once_and_ends_the_answers_to_pings() -> None:
    channel, stream, failures = make()
    assert channel.close_notify() == unmasked(FIN | CLOSE, b"\x03\xe8")
    assert channel.close_notify() == b""
    assert channel.open(message(b"x", FIN | PING)) == stream.sent == b""
    assert channel.eof and not failures


def test_tiny_frames_are_read_in_small_pieces_until_they_grow() -> None:
    channel, stream, _ = make()
    tiny, large = message(b"", FIN | PING), message(bytes(1400))
    channel.open(tiny * (READ_BYTES // len(tiny)))
    assert stream.read_bytes // len(tiny) <= 2 * FRAMES_PER_READ
    channel.open(large)
    assert stream.read_bytes < READ_BYTES // 4, (
        "one large frame does not buy a whole read of tiny ones"
    )
    for _ in range(8):
        channel.open(large)
    assert stream.read_bytes == READ_BYTES


def test_bytes_of_an_incomplete_message_are_available() -> None:
    channel, _, _ = make()
    channel.open(message(bytes(1000))[:900])
    assert 880 <= channel.held_bytes <= 900
    channel.open(message(bytes(1000))[900:])
    assert channel.held_bytes == 0


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_messages_in_any_pieces_give_the_same_bytes(
    messages: list[bytes], data: st.DataObject
) -> None:
    channel, _, _ = make()
    wire = b"".join(map(message, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    assert b"".join(map(channel.open, pieces)) == b"".join(messages)
    assert not channel.eof


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_random_bytes_never_raise_and_hold_bounded_memory(pieces: list[bytes]) -> None:
    channel, _, _ = make()
    for piece in pieces:
        channel.open(piece)
        assert channel.held_bytes <= MESSAGE_LIMIT_BYTES + 14
    channel.close_notify()
    assert channel.eof
