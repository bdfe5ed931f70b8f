"""A relay's HTTPS port with any certificates, a man in the middle's included."""

import hashlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from fastderp.server.certificates.metacert import meta_cert
from tests.kit.certificates import self_signed
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
    names = ("127.0.0.1", "derp.example")
    certificate = self_signed(*names, days=(-3, days), common_name=common_name)
    identity = Identity(directory / "relay.crt", directory / "relay.key")
    identity.certificate.write_text(ssl.DER_cert_to_PEM_cert(certificate.der))
    identity.key.write_bytes(certificate.key_pem)
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
