"""The client's address from headers of trusted proxies, and the limits of the trust."""

import time

import pytest

from fastderp.server.http.client_address import Origin, TrustedProxies
from fastderp.server.http.message import HEAD_LIMIT_BYTES

TRUSTED = TrustedProxies.parse("10.0.0.1, 10.0.1.0/24,2001:db8::/64,unix")
PROXY = Origin.of_peer(("10.0.0.1", 9), TRUSTED)


@pytest.mark.parametrize(
    ("text", "trusted"),
    [
        ("10.0.0.1", True),
        ("10.0.0.2", False),
        ("::ffff:10.0.1.255", True),
        ("2001:db8::5", True),
        ("2001:db8:1::5", False),
        ("", True),
        ("fe80::1%eth0", False),
        ("nonsense", False),
    ],
)
def test_proxies_are_identified_by_address(text: str, trusted: bool) -> None:
    assert TRUSTED.trusts(text) is trusted
    assert not TrustedProxies().trusts(text)


@pytest.mark.parametrize(
    "text", ["10.0.0.1/8", "proxy.example.com", "10.0.0.0/33", "Unix", "::/129"]
)
def test_a_malformed_network_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="want networks such as") as refusal:
        TrustedProxies.parse(f"10.0.0.1,{text}")
    assert text.partition("/")[0] in str(refusal.value)


@pytest.mark.parametrize(
    ("headers", "address"),
    [
        ([("x-forwarded-for", "203.0.113.7")], ("203.0.113.7", 0)),
        ([("x-forwarded-for", "6.6.6.6, 203.0.113.7, 10.0.1.9")], ("203.0.113.7", 0)),
        (
            [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "203.0.113.7:99")],
            ("203.0.113.7", 99),
        ),
        ([("x-forwarded-for", "[2001:db9::7]:99")], ("2001:db9::7", 99)),
        ([("x-forwarded-for", "2001:db9::7")], ("2001:db9::7", 0)),
        ([("x-forwarded-for", "::ffff:203.0.113.7")], ("203.0.113.7", 0)),
        ([("x-real-ip", "203.0.113.7")], ("203.0.113.7", 0)),
        ([("x-real-ip", "6.6.6.6"), ("x-real-ip", "203.0.113.7")], ("203.0.113.7", 0)),
        ([("x-real-ip", "6.6.6.6"), ("x-forwarded-for", "203.0.113.7")], ("203.0.113.7", 0)),
        ([("forwarded", "for=203.0.113.7;proto=https")], ("203.0.113.7", 0)),
        ([("forwarded", 'proto=https;For="[2001:db9::7]:99"')], ("2001:db9::7", 99)),
        ([("forwarded", "for=6.6.6.6, for=203.0.113.7, for=10.0.1.9")], ("203.0.113.7", 0)),
        ([("forwarded", 'host="a;for=6.6.6.6;b";for=203.0.113.7')], ("203.0.113.7", 0)),
        ([("forwarded", 'for=203.0.113.7;host="a;for=6.6.6.6"')], ("203.0.113.7", 0)),
        ([("forwarded", "for = 203.0.113.7 ; proto = https")], ("203.0.113.7", 0)),
    ],
)
def test_the_last_address_outside_the_proxies_is_the_clients(
    headers: list[tuple[str, str]], address: tuple[str, int]
) -> None:
    assert PROXY.of_request(headers, TRUSTED) == Origin(address, through_proxy=True)


@pytest.mark.parametrize(
    ("headers", "ip"),
    [
        ([], "10.0.0.1"),
        ([("x-forwarded-for", "")], "10.0.0.1"),
        ([("x-forwarded-for", "203.0.113.7, unknown")], "10.0.0.1"),
        ([("x-forwarded-for", "203.0.113.7, 1.2.3.4:99999")], "10.0.0.1"),
        ([("x-forwarded-for", "6.6.6.6, [::1")], "10.0.0.1"),
        ([("x-forwarded-for", "203.0.113.7, nonsense, 10.0.1.9")], "10.0.1.9"),
        ([("x-forwarded-for", "10.0.1.8, 10.0.1.9")], "10.0.1.8"),
        ([("forwarded", "for=_hidden")], "10.0.0.1"),
        ([("forwarded", "proto=https")], "10.0.0.1"),
        ([("forwarded", 'for=6.6.6.6;x=", for="a"')], "10.0.0.1"),
    ],
)
def test_the_address_of_a_client_without_a_usable_header_is_hidden(
    headers: list[tuple[str, str]], ip: str
) -> None:
    origin = PROXY.of_request(headers, TRUSTED)
    assert origin.is_hidden and origin.through_proxy and origin.address[0] == ip


@pytest.mark.parametrize("name", ["x-forwarded-for", "forwarded", "x-real-ip"])
@pytest.mark.parametrize(
    "text", ["a", "a ", " ", ",", ";", "=", '""', '"",', "a=", "a=,", "[", ":"]
)
def test_the_longest_header_takes_no_time(name: str, text: str) -> None:
    began_s = time.process_time()
    PROXY.of_request([(name, text * (HEAD_LIMIT_BYTES // len(text)))], TRUSTED)
    assert time.process_time() - began_s < 1


def test_headers_of_a_client_behind_a_tcp_proxy_are_ignored() -> None:
    client = PROXY.behind(("203.0.113.7", 99), TRUSTED)
    assert client.of_request([("x-forwarded-for", "6.6.6.6")], TRUSTED) is client


def test_headers_behind_two_proxies_count_when_the_outer_one_is_trusted_too() -> None:
    outer = PROXY.behind(("10.0.1.9", 99), TRUSTED)
    origin = outer.of_request([("x-forwarded-for", "203.0.113.7")], TRUSTED)
    assert origin == Origin(("203.0.113.7", 0), through_proxy=True)


def test_a_listed_unix_socket_is_a_proxys() -> None:
    assert Origin.of_peer(("", 0), TRUSTED).is_hidden
    assert not Origin.of_peer(("", 0), TrustedProxies.parse("10.0.0.1")).through_proxy
