"""The PROXY header: valid and invalid forms, and the limits for proxies."""

import struct

import pytest

from fastderp.wire.proxy_protocol import (
    V1_LIMIT_BYTES,
    V2_BODY_LIMIT_BYTES,
    V2_SIGNATURE,
    Fault,
    Header,
    Status,
    parse,
)

IPV4 = bytes([203, 0, 113, 7, 192, 0, 2, 1]) + struct.pack(">HH", 4711, 443)
IPV6 = bytes.fromhex("20010db8" + "00" * 11 + "07" + "20010db8" + "00" * 11 + "01") + IPV4[-4:]


def v2(command: int, family: int, body: bytes) -> bytes:
    return V2_SIGNATURE + bytes([0x20 | command, family]) + struct.pack(">H", len(body)) + body


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack(">BH", kind, len(value)) + value


@pytest.mark.parametrize(
    ("line", "source"),
    [
        (b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443", ("203.0.113.7", 4711)),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 0 65535", ("2001:db8::7", 0)),
        (b"PROXY TCP6 ::ffff:203.0.113.7 ::1 1 2", ("203.0.113.7", 1)),
        (b"PROXY UNKNOWN", None),
        (b"PROXY UNKNOWN ffff::1 ffff::2 1 2", None),
    ],
)
def test_a_line_of_version_1_names_the_client(line: bytes, source: tuple[str, int] | None) -> None:
    assert parse(line + b"\r\nGET /") == Header(len(line) + 2, source)


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4 203.0.113.7 192.0.2.1 4711",
        b"PROXY TCP4  203.0.113.7 192.0.2.1 4711 443",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443 ",
        b"PROXY TCP4 203.0.113.07 192.0.2.1 4711 443",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 04711 443",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 65536 443",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 -1 443",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 4711 443",
        b"PROXY TCP6 203.0.113.7 192.0.2.1 4711 443",
        b"PROXY TCP6 fe80::1%eth0 ::1 4711 443",
        b"PROXY UDP4 203.0.113.7 192.0.2.1 4711 443",
        b"PROXY tcp4 203.0.113.7 192.0.2.1 4711 443",
        b"PROXY \xff",
    ],
)
def test_a_malformed_line_is_a_fault(line: bytes) -> None:
    assert isinstance(parse(line + b"\r\n"), Fault)


def test_a_line_of_107_bytes_is_taken_and_one_byte_more_is_not() -> None:
    longest = b"PROXY UNKNOWN ".ljust(V1_LIMIT_BYTES - 2, b"x") + b"\r\n"
    assert parse(longest) == Header(V1_LIMIT_BYTES, None)
    assert isinstance(parse(b"PROXY UNKNOWN ".ljust(V1_LIMIT_BYTES - 1, b"x") + b"\r\n"), Fault)


@pytest.mark.parametrize("tlvs", [b"", tlv(0x02, b"derp.example.com") + tlv(0x20, bytes(300))])
@pytest.mark.parametrize(
    ("family", "body", "source"),
    [
        (0x11, IPV4, ("203.0.113.7", 4711)),
        (0x21, IPV6, ("2001:db8::7", 4711)),
        (0x00, b"", None),
        (0x31, bytes(216), None),
    ],
)
def test_version_2_names_the_client_and_its_tlvs_are_skipped(
    family: int, body: bytes, source: tuple[str, int] | None, tlvs: bytes
) -> None:
    header = v2(1, family, body + tlvs)
    assert parse(header + b"\x16\x03") == Header(len(header), source)


@pytest.mark.parametrize("family", [0x00, 0x11, 0x12, 0xFF])
def test_local_is_a_connection_of_the_proxy_itself(family: int) -> None:
    header = v2(0, family, b"any bytes")
    assert parse(header) == Header(len(header), None)


@pytest.mark.parametrize(
    "header",
    [
        v2(2, 0x11, IPV4),
        v2(1, 0x12, IPV4),
        v2(1, 0x11, IPV4[:-1]),
        v2(1, 0x21, IPV4),
        V2_SIGNATURE + b"\x11\x11\x00\x0c" + IPV4,
        V2_SIGNATURE + b"\x21\x11" + struct.pack(">H", V2_BODY_LIMIT_BYTES + 1),
    ],
)
def test_a_malformed_header_of_version_2_is_a_fault(header: bytes) -> None:
    assert isinstance(parse(header), Fault)


def test_a_header_of_version_2_may_have_4096_bytes_behind_its_head() -> None:
    header = v2(1, 0x11, IPV4.ljust(V2_BODY_LIMIT_BYTES, b"\0"))
    assert parse(header) == Header(len(header), ("203.0.113.7", 4711))
    assert parse(header[:-1]) is Status.INCOMPLETE


@pytest.mark.parametrize("data", [b"GET /", b"PROXYING", b"\x16\x03\x01", b"\r\nGET", b"POST /"])
def test_other_bytes_are_no_header(data: bytes) -> None:
    assert parse(data) is Status.ABSENT
