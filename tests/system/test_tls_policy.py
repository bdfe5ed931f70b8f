"""The TLS features that a relay refuses. PROTOCOL §10, RELIABILITY F20."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable

import pytest

from fastderp.wire.keys import NodePrivate
from tests.kit.openssl_peer import OpenSSLPeer, PeerError
from tests.kit.peer import FAST_START, client_info, upgrade_request
from tests.kit.relay import Relay, Setup, client_context, eventually

StartRelay = Callable[..., Relay]

# by the field's lists: no forward secrecy, CBC, 3DES, no authentication
WEAK = (
    "AES128-SHA", "AES256-GCM-SHA384", "ECDHE-RSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384",
    "DHE-RSA-AES256-GCM-SHA384", "DES-CBC3-SHA", "ADH-AES128-SHA",
)  # fmt: skip


def offering(suite: str) -> ssl.SSLContext:
    """Make a client's context for TLS 1.2 with one suite."""
    context = client_context(Setup("TLS 1.2"))
    assert context is not None
    try:
        context.set_ciphers(f"{suite}@SECLEVEL=0")
    except ssl.SSLError:
        pytest.skip(f"this OpenSSL cannot offer {suite}")
    return context


@pytest.mark.parametrize("suite", WEAK)
def test_a_client_with_a_weak_suite_is_refused(start_relay: StartRelay, suite: str) -> None:
    relay = start_relay(Setup("TLS 1.2"))
    context = offering(suite)
    with relay.connect_tcp() as tcp:
        with pytest.raises(ssl.SSLError, match="(?i)handshake.failure"):
            context.wrap_socket(tcp.sock)
    with relay.login() as client:
        assert client.sync() == []


@pytest.mark.parametrize("version", ["TLS 1.2", "TLS 1.3"])
def test_no_ticket_is_issued_so_no_client_can_send_early_data(
    start_relay: StartRelay, version: str
) -> None:
    relay = start_relay(Setup(version))
    with relay.login() as client:
        assert client.sync() == []
        assert isinstance(client.sock, ssl.SSLSocket)
        assert client.sock.session is None or not client.sock.session.has_ticket


@pytest.mark.parametrize("logged_in", [False, True])
def test_a_client_that_renegotiates_is_disconnected(
    start_relay: StartRelay, logged_in: bool
) -> None:
    relay = start_relay(Setup("TLS 1.2"))
    with relay.connect_tcp() as tcp, OpenSSLPeer(version=0x0303) as peer:
        while not peer.step():
            tcp.sock.sendall(peer.take_output())
            peer.feed(tcp.sock.recv(16384))
        login = client_info(NodePrivate.generate(), relay.server.public_key)
        request = upgrade_request(FAST_START) + login if logged_in else b"GET /robots.txt "
        tcp.sock.sendall(peer.write(request))
        if logged_in:
            eventually(lambda: relay.metrics()["derp_current_connections"] == 1)
        peer.renegotiate()
        tcp.sock.sendall(peer.take_output())
        with contextlib.suppress(PeerError):  # its warning ends our OpenSSL
            while wire := tcp.sock.recv(16384):
                peer.read(wire)
        assert tcp.is_closed()
    if logged_in:
        eventually(lambda: relay.metrics()["fastderp_session_closed_total"] == {"tls": 1})
    else:
        eventually(lambda: relay.refused() == {"http_protocol": 1})
