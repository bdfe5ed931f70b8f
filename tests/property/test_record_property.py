"""The record layer with a stream in any pieces, any inner plaintext and random bytes."""

import os
import random
from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fastderp.tls.errors import TlsError
from fastderp.tls.record import RecordLayer
from tests.kit.records import ALERT, DATA, HANDSHAKE, KEY_UPDATE, SUITES, Direction, secret_size

AES = "TLS_AES_128_GCM_SHA256"
SECRET = bytes(range(32))
FUZZ_INPUTS = 20_000

suites = st.sampled_from(list(SUITES))
chunks = st.lists(st.binary(max_size=200) | st.integers(1, 40_000).map(os.urandom), max_size=6)
# All kinds of records that a peer can seal; likely shapes are more frequent.
inner_records = st.lists(
    st.tuples(
        st.sampled_from([DATA, DATA, HANDSHAKE, ALERT, 0, 20, 255]) | st.integers(0, 255),
        st.sampled_from([b"", KEY_UPDATE, KEY_UPDATE[:2], bytes([4, 0, 0, 3]), b"\1\0", b"\2\50"])
        | st.binary(max_size=60),
        st.integers(0, 20),
    ),
    max_size=8,
)


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    """Return the pieces of `data` between the places."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return (data[start:end] for start, end in pairwise(edges))


@given(suites, chunks, st.lists(st.integers(0, 1 << 30), max_size=10))
def test_records_of_one_layer_open_in_another_in_any_pieces(
    suite: str, data: list[bytes], places: list[int]
) -> None:
    one, other = os.urandom(secret_size(suite)), os.urandom(secret_size(suite))
    sender, receiver = RecordLayer(suite, one, other), RecordLayer(suite, other, one)
    wire = b"".join(sender.seal(chunk) for chunk in data)
    assert b"".join(receiver.open(piece) for piece in cut(wire, places)) == b"".join(data)
    assert receiver.pending == b""


@given(inner_records, st.booleans())
def test_only_data_of_well_formed_records_is_released(
    records: list[tuple[int, bytes, int]], client: bool
) -> None:
    peer, layer = Direction(AES, SECRET), RecordLayer(AES, SECRET, SECRET, client=client)
    for kind, content, padding in records:
        wire = peer.seal(content, kind, padding)
        if inner := (content + bytes([kind])).rstrip(b"\0"):  # a type of 0 is padding
            kind, content = inner[-1], inner[:-1]
        try:
            released = layer.open(wire)
        except TlsError:
            return
        assert released == (content if kind == DATA else b"")
        if layer.eof:
            return
        assert kind in {DATA, HANDSHAKE, ALERT}
        if kind == HANDSHAKE and KEY_UPDATE in content:
            return  # the other implementation follows keys only through whole messages


@given(st.binary(min_size=1, max_size=300), st.integers(0, 1 << 20), st.integers(1, 255))
def test_a_change_of_any_byte_is_refused(data: bytes, at: int, change: int) -> None:
    wire = bytearray(Direction(AES, SECRET).seal(data))
    wire[at % len(wire)] ^= change
    layer = RecordLayer(AES, SECRET, SECRET)
    try:
        assert layer.open(bytes(wire)) == b""  # a larger length: the record is not complete
        layer.open(bytes(17_000))
    except TlsError:
        return
    raise AssertionError("a changed record was accepted")


def test_random_and_mutated_input_is_refused() -> None:
    choose = random.Random(20_260)
    layer, wire = RecordLayer(AES, SECRET, SECRET), b""
    for turn in range(FUZZ_INPUTS):
        if turn % 20 == 0:
            layer = RecordLayer(AES, SECRET, SECRET, client=bool(turn & 32))
            wire = Direction(AES, SECRET).seal(
                choose.randbytes(choose.randrange(80)), choose.choice((DATA, HANDSHAKE, ALERT))
            )
        try:
            assert layer.open(mutated(wire, choose)) == b""
        except TlsError:
            layer = RecordLayer(AES, SECRET, SECRET, client=bool(turn & 32))


def mutated(wire: bytes, choose: random.Random) -> bytes:
    """Return random bytes or a mutation of `wire`."""
    kind = choose.randrange(4)
    if kind == 0:
        return choose.randbytes(choose.randrange(60))
    if kind == 1:
        changed = bytearray(wire)
        for _ in range(choose.randrange(1, 4)):
            changed[choose.randrange(len(changed))] ^= choose.randrange(1, 256)
        return bytes(changed) if bytes(changed) != wire else b""
    if kind == 2:
        return wire[choose.randrange(1, len(wire)) :]
    return bytes([DATA, 3, 3]) + choose.randbytes(2) + wire
