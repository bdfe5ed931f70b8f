"""The relay that gets certificates from Pebble, and clients that check them."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import pytest
from cryptography import x509

from tests.interop.pebble import HTTPS_PORT, NAME, Pebble
from tests.kit.command import RunningRelay, relay

PATIENCE_S = 60.0


@contextlib.contextmanager
def running(ca: Pebble, *flags: str) -> Iterator[RunningRelay]:
    """Run the relay; after the block its log is in `said`."""
    with relay(*ca.flags, *flags) as running:
        try:
            yield running
        finally:
            code, said = running.stop()
            print(said)
        assert code == 0


def leaf(ca: Pebble, server_name: str = NAME, *, root: str | None = None) -> x509.Certificate:
    """Do a handshake; return the certificate, verified against a root and the name or address."""
    context = ssl.create_default_context(cadata=root or ca.root)
    with (
        socket.create_connection((ca.address, HTTPS_PORT), timeout=PATIENCE_S) as sock,
        context.wrap_socket(sock, server_hostname=server_name) as client,
    ):
        der = client.getpeercert(True)
        assert der
        return x509.load_der_x509_certificate(der)


def alert(ca: Pebble, server_name: str | None = NAME) -> str:
    """Do a handshake that fails; return the alert."""
    context = ssl._create_unverified_context()
    with socket.create_connection((ca.address, HTTPS_PORT), timeout=PATIENCE_S) as sock:
        with pytest.raises(ssl.SSLError) as refused:
            context.wrap_socket(sock, server_hostname=server_name)
        return str(refused.value)
