"""STUN for clients: the request byte for byte, and valid answers.

PROTOCOL §11, §16 lines 55 and 56.
"""

import ipaddress
import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastderp.client.stun import binding_request, parse_response
from fastderp.errors import ProtocolError
from tests.kit.stun_reference import binding_response, transaction_id

# PROTOCOL §20: a request seen from 127.0.0.1:56360, and its answer.
REQUEST = bytes.fromhex(
    "000100142112a44295b1f1b5eca41dcc023531e2802200087461696c6e6f6465802800045e26399e"
)
ANSWER = bytes.fromhex("0101000c2112a44295b1f1b5eca41dcc023531e2002000080001fd3a5e12a443")
TXID = REQUEST[8:20]

# RFC 5769 §2.2 and §2.3: answers of another server, with SOFTWARE in front, MESSAGE-INTEGRITY and
# FINGERPRINT behind.
RFC_TXID = bytes.fromhex("b7e7a701bc34d686fa87dfae")
RFC_IPV4_ANSWER = bytes.fromhex(
    "0101003c2112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000080001a147e112a643"
    "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7"
    "80280004c07d4c96"
)
RFC_IPV6_ANSWER = bytes.fromhex(
    "010100482112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
    "00080014a382954e4be67bf11784c97c8292c275bfe3ed41"
    "80280004c8fb0b4c"
)


def answer(*attributes: str, n_cut: int = 0) -> bytes:
    """Build an answer of these attributes, in hex; the header's length is right before the cut."""
    body = bytes.fromhex("".join(attributes))
    return (
        bytes.fromhex("0101") + len(body).to_bytes(2) + bytes.fromhex("2112a442") + TXID + body
    )[: -n_cut or None]


XORED = "002000080001fd3a5e12a443"  # 127.0.0.1:56360
MAPPED = "000100080001dc287f000001"  # the same, shown as it is
OTHER = "000100080001000101020304"  # 1.2.3.4:1
SOFTWARE = "8022000161000000"


def test_the_request_is_the_published_one() -> None:
    assert binding_request(TXID) == REQUEST


def test_software_is_the_first_attribute_of_a_request() -> None:
    request = binding_request(os.urandom(12))
    assert request[20:32] == bytes.fromhex("80220008") + b"tailnode"


@given(st.binary(min_size=12, max_size=12))
def test_every_request_is_one_to_the_relay(txid: bytes) -> None:
    assert transaction_id(binding_request(txid)) == txid


@pytest.mark.parametrize("size", [0, 11, 13])
def test_a_transaction_id_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="12 bytes"):
        binding_request(bytes(size))


def test_the_published_answer_is_understood() -> None:
    assert parse_response(ANSWER) == (TXID, "127.0.0.1", 56360)


@pytest.mark.parametrize("port", [1, 254, 257, 0x2112, 65535])
@pytest.mark.parametrize("address", ["1.2.3.4", "255.255.255.255", "2001:db8::1:2", "fe80::1"])
def test_answers_of_the_relay_are_understood(address: str, port: int) -> None:
    datagram = binding_response(TXID, ipaddress.ip_address(address).packed, port)
    assert parse_response(datagram) == (TXID, address, port)


def test_an_ipv4_address_inside_an_ipv6_one_is_taken_out() -> None:
    datagram = binding_response(TXID, ipaddress.ip_address("::ffff:1.2.3.4").packed, 257)
    assert len(datagram) == 44 and parse_response(datagram) == (TXID, "1.2.3.4", 257)


@pytest.mark.parametrize(
    ("datagram", "address"),
    [(RFC_IPV4_ANSWER, "192.0.2.1"), (RFC_IPV6_ANSWER, "2001:db8:1234:5678:11:2233:4455:6677")],
    ids=["IPv4", "IPv6"],
)
def test_answers_of_other_servers_are_understood(datagram: bytes, address: str) -> None:
    assert int.from_bytes(datagram[-4:]) == zlib.crc32(datagram[:-8]) ^ 0x5354554E, (
        "the vector is as published"
    )
    assert parse_response(datagram) == (RFC_TXID, address, 32853)


@pytest.mark.parametrize(
    "datagram",
    [
        pytest.param(answer(MAPPED), id="MAPPED-ADDRESS alone"),
        pytest.param(answer(OTHER, SOFTWARE, XORED), id="XOR-MAPPED-ADDRESS is preferred"),
        pytest.param(answer(OTHER, "8020" + XORED[4:]), id="under its old number too"),
        pytest.param(answer(XORED, "002000080001" + "0" * 12), id="of two the first"),
        pytest.param(answer(XORED) + b"behind", id="bytes behind it"),
        pytest.param(answer(XORED, "8022000161"), id="the last padding is missing"),
        pytest.param(answer("002000090001fd3a5e12a44300000000"), id="a longer value"),
    ],
)
def test_valid_answers_are_parsed(datagram: bytes) -> None:
    assert parse_response(datagram) == (TXID, "127.0.0.1", 56360)


@pytest.mark.parametrize(
    "datagram",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(ANSWER[:19], id="shorter than a header"),
        pytest.param(ANSWER[:4] + bytes(4) + ANSWER[8:], id="another cookie"),
        pytest.param(REQUEST, id="a request"),
        pytest.param(b"\x01\x11" + ANSWER[2:], id="an error response"),
        pytest.param(answer(XORED, n_cut=1), id="cut"),
        pytest.param(answer(), id="no attributes"),
        pytest.param(answer(SOFTWARE), id="no address"),
        pytest.param(answer("0020"), id="half an attribute's head"),
        pytest.param(answer("002000090001fd3a5e12a443"), id="an attribute longer than the answer"),
        pytest.param(answer("002000080003fd3a5e12a443"), id="an unknown family"),
        pytest.param(answer("002000080002fd3a5e12a443"), id="IPv6 with the bytes of IPv4"),
        pytest.param(answer("00200000"), id="an empty address"),
    ],
)
def test_other_datagrams_are_refused(datagram: bytes) -> None:
    with pytest.raises(ProtocolError, match="STUN"):
        parse_response(datagram)


@given(st.binary(max_size=100))
def test_any_bytes_are_understood_or_refused(tail: bytes) -> None:
    for datagram in (tail, ANSWER[:20] + tail, ANSWER[:24] + tail):
        try:
            txid, address, port = parse_response(datagram)
        except ProtocolError:
            continue
        assert txid == datagram[8:20] and ipaddress.ip_address(address) and 0 <= port <= 65535
