"""A ClientHello is complete by its lengths, in any pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastderp.server.accept.client_hello import (
    HELLO_LIMIT_BYTES,
    RAW_LIMIT_BYTES,
    ClientHelloReader,
)
from fastderp.tls.errors import TlsError


def message(n_body: int, kind: int = 1) -> bytes:
    return bytes([kind]) + n_body.to_bytes(3, "big") + bytes(n_body)


def records(data: bytes, cuts: list[int]) -> bytes:
    edges = [0, *sorted({cut % len(data) for cut in cuts} - {0}), len(data)]
    pieces = [data[begin:end] for begin, end in itertools.pairwise(edges)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)


@given(st.integers(1, 3000), st.lists(st.integers(0, 4000), max_size=5), st.integers(1, 4000))
def test_a_hello_is_complete_with_its_last_byte_in_any_records(
    n_body: int, cuts: list[int], n_piece: int
) -> None:
    reader = ClientHelloReader()
    wire = records(message(n_body), cuts)
    for at in range(0, len(wire) - 1, n_piece):
        reader.feed(wire[at : min(at + n_piece, len(wire) - 1)])
        assert not reader.is_complete
    reader.feed(wire[-1:])
    assert reader.is_complete and reader.is_hello
    assert len(reader) == len(wire)
    assert reader.take() == wire
    assert len(reader) == 0


def test_a_hello_of_the_largest_size_is_read_and_a_larger_one_refused_at_its_header() -> None:
    reader = ClientHelloReader()
    reader.feed(records(message(HELLO_LIMIT_BYTES - 4), []))
    assert reader.is_complete
    reader = ClientHelloReader()
    with pytest.raises(TlsError, match="ClientHello of 115004 bytes") as caught:
        reader.feed(b"\x16\x03\x01\x40\x00" + message(115_000)[:4])
    assert caught.value.cause == "flood"


@pytest.mark.parametrize(
    "wire",
    [
        b"GET / HTTP/1.1\r\n",
        b"SSH-2.0-OpenSSH",
        b"\x80\x7f\x01\x03\x01",  # SSLv2
        b"\x16\x02\x00\x00\x10",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x40\x01",
        b"\x16\x03\x01\x00\x04" + message(0, kind=2),
    ],
)
def test_a_malformed_client_hello_is_refused_at_once(wire: bytes) -> None:
    reader = ClientHelloReader()
    reader.feed(wire)
    assert reader.is_complete and not reader.is_hello


def test_a_hello_in_the_smallest_records_holds_bounded_bytes() -> None:
    reader = ClientHelloReader()
    one = b"\x16\x03\x01\x00\x01"
    with pytest.raises(TlsError, match="bytes before the handshake"):
        for byte in message(HELLO_LIMIT_BYTES - 4):
            reader.feed(one + bytes([byte]))
    assert len(reader) <= RAW_LIMIT_BYTES + 6
