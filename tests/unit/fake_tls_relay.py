"""A relay's HTTPS port with any certificates, a man in the middle's included."""

import hashlib
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fastderp.server.certificates.metacert import meta_cert
from tests.unit.fake_relay import FakeServer, fake_server


class Identity(NamedTuple):
    """A self-signed certificate for 127.0.0.1 and derp.example, and its key."""

    certificate: Path
    key: Path

    @property
    def pin(self) -> str:
        der = ssl.PEM_cert_to_DER_cert(self.certificate.read_text())
        return "sha256-raw:" + hashlib.sha256(der).hexdigest()


def make_identity(directory: Path, days: int = 1, common_name: str = "test") -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.now(UTC)
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("derp.example")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=3))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    identity = Identity(directory / "relay.crt", directory / "relay.key")
    identity.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
    identity.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return identity


@asynccontextmanager
async def tls_server(
    identity: Identity, *, metacert: bool = False, version: str = "TLSv1_3"
) -> AsyncIterator[FakeServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    context.load_cert_chain(identity.certificate, identity.key)
    async with fake_server(context) as server:
        if metacert:
            chain = identity.certificate.parent / "chain.pem"
            extra = ssl.DER_cert_to_PEM_cert(meta_cert(server.key.public_key.hex))
            chain.write_text(identity.certificate.read_text() + extra)
            context.load_cert_chain(chain, identity.key)
        yield server


@asynccontextmanager
async def man_in_the_middle(
    genuine: Identity, directory: Path, *, version: str = "TLSv1_3"
) -> AsyncIterator[FakeServer]:
    """Serve with its own leaf, named like a metacert, and the genuine chain after it."""
    impostor = make_identity(directory, common_name="derpkey" + "ab" * 28)
    async with tls_server(impostor, version=version) as server:
        announced = ssl.DER_cert_to_PEM_cert(meta_cert(server.key.public_key.hex))
        chain = [impostor.certificate.read_text(), genuine.certificate.read_text(), announced]
        impostor.certificate.write_text("".join(chain))
        assert server.tls is not None
        server.tls.load_cert_chain(impostor.certificate, impostor.key)
        yield server
