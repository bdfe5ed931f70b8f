"""Addresses in their forms."""

import pytest

from fastderp.util.net import (
    address_bytes,
    address_text,
    client_ip,
    format_address,
    is_address,
    parse_ip,
)


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "fe80::1%eth0"])
def test_an_address_is_recognised(text: str) -> None:
    assert is_address(text)
    assert str(parse_ip(text)) == text or parse_ip(text) == parse_ip("::ffff:c000:201")


@pytest.mark.parametrize(
    "text", ["", "relay.test", "256.0.0.1", "1.2.3", "[::1]", "192.0.2.1:80", "192.0.2.1/24"]
)
def test_other_texts_are_not_addresses(text: str) -> None:
    assert not is_address(text)
    assert parse_ip(text) is None


def test_the_address_of_a_peer_has_no_zone_and_is_not_mapped() -> None:
    for text, address in (("fe80::1%eth0", "fe80::1"), ("::ffff:192.0.2.1", "192.0.2.1")):
        assert str(client_ip(text)) == address
    assert client_ip("unix") is None


def test_addresses_take_16_bytes() -> None:
    for text in ("192.0.2.1", "2001:db8::1"):
        assert address_text(address_bytes(text)) == text
    assert address_bytes("relay.test") == bytes(16)


def test_ipv6_is_written_in_brackets() -> None:
    assert format_address(("2001:db8::1", 443)) == "[2001:db8::1]:443"
    assert format_address(("192.0.2.1", 443)) == "192.0.2.1:443"
