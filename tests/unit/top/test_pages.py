"""The address of a relay in its spellings."""

from __future__ import annotations

import pytest

from fastderp.errors import UsageError
from fastderp.top.pages import Address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://127.0.0.1", "http://127.0.0.1:80"),
        ("https://derp.example.com", "https://derp.example.com:443"),
        ("127.0.0.1:3340", "http://127.0.0.1:3340"),
        (":9090", "http://127.0.0.1:9090"),
        ("::1", "http://[::1]:80"),
        ("http://[::1]:3340/", "http://[::1]:3340"),
        ("http://127.0.0.1/relay/", "http://127.0.0.1:80/relay"),
        ("http://127.0.0.1:3340/relay/debug/varz", "http://127.0.0.1:3340/relay"),
        ("unix:/run/relay.sock", "unix:/run/relay.sock"),
    ],
)
def test_an_address_is_read(text: str, address: str) -> None:
    assert str(Address.parse(text)) == address


@pytest.mark.parametrize(
    "text",
    ["", "unix:", "::1:x", "ftp://a", "http://", "http://a:b", "http://a:99999", "http://u:p@a"],
)
def test_another_text_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="want"):
        Address.parse(text)
