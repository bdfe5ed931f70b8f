"""The TLS features that a relay refuses. PROTOCOL §10, RELIABILITY F20."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import pytest

from tests.kit.relay import Relay, Setup, client_context

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
