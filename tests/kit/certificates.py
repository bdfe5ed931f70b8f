"""Self-signed certificates made at run time, as certificates in the tree would expire."""

import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Certificate(NamedTuple):
    """A certificate in DER and its private key, in PKCS#8 DER and PEM."""

    der: bytes
    key_der: bytes
    key_pem: bytes


def self_signed(
    *names: str,
    days: tuple[int, int] = (-1, 1),
    common_name: str = "",
    usage: x509.KeyUsage | None = None,
) -> Certificate:
    """Make a P-256 certificate for DNS names and addresses, valid between the two days from now.

    Its common name is the first of them by default.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name or names[0])])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days[0]))
        .not_valid_after(now + datetime.timedelta(days[1]))
        .add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
        )
    )
    if usage is not None:
        builder = builder.add_extension(usage, critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    private = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Certificate(
        certificate.public_bytes(serialization.Encoding.DER),
        key.private_bytes(serialization.Encoding.DER, *private),
        key.private_bytes(serialization.Encoding.PEM, *private),
    )


def server_context(certificate: Certificate, directory: Path) -> ssl.SSLContext:
    """Return the context of a server that presents the certificate; Python loads it from files."""
    chain, key = directory / "served.crt", directory / "served.key"
    chain.write_text(ssl.DER_cert_to_PEM_cert(certificate.der))
    key.write_bytes(certificate.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    return context


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
