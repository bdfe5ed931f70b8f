"""A CA that a test controls, and clients of its certificates."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from fastderp.server.certificates.acme.challenges import (
    Challenges,
)
from fastderp.server.certificates.acme.managed import ManagedCertificate
from fastderp.server.certificates.acme.provider import AcmeCertificates
from fastderp.server.certificates.acme.settings import AcmeSettings
from fastderp.tls.context import ServerContext
from fastderp.tls.errors import TlsError
from fastderp.tls.handshake import ClientHello
from fastderp.util.net import parse_ip
from tests.kit.certificates import self_signed

NAME = "derp.example.com"
META = self_signed("derpkey").der
PATIENCE_S = 20.0

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def chain(name: str, key: Key, days: tuple[float, float] = (-1, 89)) -> bytes:
    """Make a certificate like a CA's, with a self-made signature."""
    now = datetime.datetime.now(datetime.UTC)
    ip = parse_ip(name)
    alternative = x509.DNSName(name) if ip is None else x509.IPAddress(ip)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "CA")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days[0]))
        .not_valid_after(now + datetime.timedelta(days[1]))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


class Ca:
    """A CA that a test controls."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Callable[[ManagedCertificate], bytes] = lambda managed: chain(
            managed.name, managed.key
        )
        self.open = threading.Event()
        self.open.set()

    def obtain(
        self,
        settings: AcmeSettings,
        managed: ManagedCertificate,
        account_key: Any,
        challenges: Challenges,
    ) -> bytes:
        self.asked.append(managed.name)
        assert self.open.wait(PATIENCE_S)
        return self.answer(managed)


@contextlib.asynccontextmanager
async def certificates(directory: Path, ca: Ca, **settings: Any) -> AsyncIterator[AcmeCertificates]:
    """Yield certificates from that CA, started."""
    default: dict[str, Any] = {
        "directory_url": "https://ca.test/dir",
        "cert_dir": directory,
        "hostname": NAME,
    }
    made = AcmeCertificates(AcmeSettings(**default | settings), META, obtain=ca.obtain)
    made.start()
    try:
        yield made
    finally:
        await made.close()
        ca.open.set()


def hello(name: str | None, *alpn: str) -> ClientHello:
    return ClientHello(name, alpn)


async def chosen(
    certificates: AcmeCertificates, name: str | None = NAME, local_ip: str = "192.0.2.1"
) -> ServerContext:
    """Return the certificate that a client gets, after its wait."""
    choice = certificates.choose(hello(name), local_ip)
    if isinstance(choice, asyncio.Future):
        async with asyncio.timeout(PATIENCE_S):
            return await choice
    return choice


async def refused(
    certificates: AcmeCertificates, name: str | None, local_ip: str = "192.0.2.1"
) -> str:
    """Return the cause of a client's refusal."""
    with pytest.raises(TlsError) as error:
        await chosen(certificates, name, local_ip)
    return error.value.cause


def ready(certificates: AcmeCertificates, name: str | None = NAME) -> bool:
    """Return whether a client gets a certificate without waiting."""
    return isinstance(certificates.choose(hello(name), "192.0.2.1"), ServerContext)


def raising(error: Exception) -> bytes:
    raise error
