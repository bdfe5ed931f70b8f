"""PROXY headers and keep-alives behind a simulated proxy."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastderp.server.http.client_address import TrustedProxies
from fastderp.server.settings import ProxySettings
from fastderp.wire.proxy_protocol import V2_SIGNATURE
from tests.kit.peer import Peer
from tests.kit.relay import Relay, Setup, client_context, eventually, running

PROXIES = ProxySettings(TrustedProxies.parse("127.0.0.1"), proxy_protocol=True)
V1 = b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 443\r\n"


@pytest.fixture(params=["plain", "TLS 1.3"])
def relay(request: pytest.FixtureRequest, certificates: Path) -> Iterator[Relay]:
    with running(Setup(request.param), certificates, proxies=PROXIES) as relay:
        yield relay


def behind(relay: Relay, *pieces: bytes) -> Peer:
    """Connect like a proxy, with a header in pieces; then do the TLS handshake."""
    peer = relay.connect_tcp()
    for piece in pieces:
        peer.send(piece)
    context = client_context(relay.setup)
    if context is not None:
        peer.sock = context.wrap_socket(peer.sock)
    return peer


def test_a_header_in_single_bytes_is_read(relay: Relay) -> None:
    with behind(relay, *(bytes([byte]) for byte in V1)) as peer:
        peer.login(relay.server.public_key)
        [client] = relay.call(relay.server.clients)
        assert client.ip == "203.0.113.7"


def test_a_client_that_the_proxy_does_not_know_cannot_name_itself(relay: Relay) -> None:
    with behind(relay, b"PROXY UNKNOWN\r\n") as peer:
        peer.login(relay.server.public_key, headers=["X-Forwarded-For: 6.6.6.6"])
        [client] = relay.call(relay.server.clients)
        assert client.ip == "127.0.0.1"


def test_a_health_check_of_the_proxy_itself_is_answered(relay: Relay) -> None:
    with behind(relay, V2_SIGNATURE + b"\x20\x00\x00\x00") as peer:
        peer.send(b"GET /derp/probe HTTP/1.0\r\n\r\n")
        assert peer.read_to_end().startswith(b"HTTP/1.0 200 ")


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"GET /derp/probe HTTP/1.0\r\n\r\n", "proxy_absent"),
        (b"PROXY TCP4 203.0.113.7\r\n", "proxy_malformed"),
        (b"PROXY UNKNOWN " + bytes(100), "proxy_malformed"),
        (V2_SIGNATURE + b"\x21\x11\xff\xff", "proxy_malformed"),
    ],
)
def test_a_proxy_without_a_good_header_is_closed_and_counted(
    relay: Relay, header: bytes, reason: str
) -> None:
    with relay.connect_tcp() as peer:
        peer.send(header)
        assert peer.is_closed()
    assert relay.refused() == {reason: 1}


def test_a_truncated_header_counts_as_an_early_end(relay: Relay) -> None:
    relay.connect_tcp().close()
    with relay.connect_tcp() as peer:
        peer.send(V1[:20])
    eventually(lambda: relay.refused() == {"proxy_end": 2})


def test_a_slow_header_counts_against_the_time_until_the_login(certificates: Path) -> None:
    with running(Setup(), certificates, proxies=PROXIES, login_timeout=0.2) as relay:
        with relay.connect_tcp() as peer:
            peer.send(V1[:-1])
            assert peer.is_closed()
        assert relay.refused() == {"proxy_timeout": 1}


@pytest.mark.parametrize("header", [V1, V2_SIGNATURE + b"\x20\x00\x00\x00"], ids=["v1", "v2"])
@pytest.mark.parametrize(
    ("transport", "counted"), [("plain", "http_400"), ("TLS 1.3", "tls_not_tls")]
)
def test_a_header_on_a_port_that_reads_none_is_named_in_the_log(
    certificates: Path,
    caplog: pytest.LogCaptureFixture,
    transport: str,
    counted: str,
    header: bytes,
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    with running(Setup(transport), certificates) as relay:
        with relay.connect_tcp() as peer:
            peer.send(header + b"GET /derp/probe HTTP/1.1\r\nHost: derp\r\n\r\n")
            peer.read_to_end()
        assert relay.refused() == {counted: 1}
    assert (
        "the peer sent a PROXY header: -proxy-protocol accepts those of -trusted-proxies"
        in caplog.text
    )


@pytest.mark.parametrize("trusted", ["127.0.0.1", ""])
def test_a_proxy_that_drops_the_upgrade_is_named_in_the_log(
    certificates: Path, caplog: pytest.LogCaptureFixture, trusted: str
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    # as nginx sends it without proxy_http_version and its two headers
    request = b"GET /derp HTTP/1.0\r\nHost: a\r\nX-Forwarded-For: 203.0.113.7\r\n\r\n"
    proxies = ProxySettings(TrustedProxies.parse(trusted))
    with running(Setup(), certificates, proxies=proxies) as relay, relay.connect_tcp() as peer:
        peer.send(request)
        assert b" 426 Upgrade Required\r\n" in peer.read_to_end()
    lines = [line for line in caplog.messages if "has to pass on the headers Upgrade" in line]
    assert [line[:13] for line in lines] == (["203.0.113.7:0"] if trusted else [])


def test_a_header_of_an_untrusted_peer_closes_only_its_connection(certificates: Path) -> None:
    proxies = ProxySettings(TrustedProxies.parse("10.0.0.1"), proxy_protocol=True)
    with running(Setup(), certificates, proxies=proxies) as relay:
        direct = relay.login()
        for header in (V1, V2_SIGNATURE + b"\x20\x00\x00\x00"):
            with relay.connect_tcp() as peer:
                peer.send(header)
                assert peer.is_closed()
        assert relay.refused() == {"proxy_untrusted": 2}
        assert direct.sync() == []
