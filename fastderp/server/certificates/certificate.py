"""A certificate chain with its key, read from PEM and checked (PROTOCOL §10).

Any thread. Errors are one line that an operator can act on; they never contain key material.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from fastderp.errors import CertificateError
from fastderp.tls.context import DeferredContext, ServerContext
from fastderp.tls.handshake import ClientHello
from fastderp.util import files
from fastderp.util.net import IpAddress, is_address, parse_ip

# The curves of RFC 8446 §4.2.3 signature schemes. Clients offer no scheme for any other.
USABLE_CURVES = ("secp256r1", "secp384r1", "secp521r1")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate chain with its key, ready for `fastderp.tls.ServerContext`.

    `chain` holds DER, leaf first and without the metacert; `key` is PKCS#8 DER. `is_self_signed`
    says whether the leaf has been issued by its own subject.
    """

    hostname: str
    chain: tuple[bytes, ...]
    key: bytes
    not_before: datetime.datetime
    not_after: datetime.datetime
    is_self_signed: bool

    @property
    def required_sni(self) -> str | None:
        """The server name a client must send; None for an address, which requires no server
        name.
        """
        return None if is_address(self.hostname) else self.hostname

    @property
    def pin(self) -> str:
        """The CertName of a DERP map that accepts this leaf only: `sha256-raw:` and its hash."""
        return "sha256-raw:" + hashlib.sha256(self.chain[0]).hexdigest()

    @property
    def needs_pin(self) -> bool:
        """Whether clients may need its pin: it is self-signed, or for an address."""
        return self.is_self_signed or is_address(self.hostname)

    def derp_node(self, *, port: int, stun_port: int | None) -> str:
        """Return the JSON of a DERP map node for this relay, pinned to its certificate.

        Ports are named where they differ from a client's defaults (443 and 3478). `stun_port` is
        None for a relay without STUN.
        """
        node: dict[str, str | int] = {
            "Name": "custom",
            "RegionID": 900,  # ids 900-999 are reserved for custom regions
            "HostName": self.hostname,
            "CertName": self.pin,
        }
        if port != 443:
            node["DERPPort"] = port
        if stun_port != 3478:
            node["STUNPort"] = -1 if stun_port is None else stun_port
        return json.dumps(node, separators=(",", ":"))

    def time_fault(self, now: datetime.datetime) -> str:
        """Return the reason why clients refuse it now; "" within its validity."""
        if now > self.not_after:
            return f"expired on {self.not_after:%Y-%m-%d}"
        if now < self.not_before:
            since = f"{self.not_before:%Y-%m-%d %H:%M} UTC"
            return f"is not valid before {since}; check the clock of this machine"
        return ""

    def server_context(self, meta_cert: bytes) -> ServerContext:
        """Return the TLS context with the chain and the metacert. Raises TlsError."""
        return ServerContext([*self.chain, meta_cert], self.key, required_sni=self.required_sni)


class CertificateSource(Protocol):
    """Picks a certificate for each client, at once or later."""

    @property
    def context(self) -> DeferredContext:
        """The context that handshakes begin with."""

    def choose(
        self, hello: ClientHello, local_ip: str
    ) -> ServerContext | asyncio.Future[ServerContext]:
        """Return the certificate for a client, or a future of it that the caller may cancel.

        `local_ip` is the address that the client has connected to. Raises TlsError, also through
        the future, when there is no certificate for the client.
        """


def certificate_from_pem(
    hostname: str, chain_pem: bytes, key_pem: bytes, *, crt: Path, key: Path
) -> Certificate:
    """Read a chain, leaf first, and its key; `crt` and `key` are the files for error messages.

    Raises CertificateError when either is malformed, when they do not belong together, when clients
    cannot use the type of key, and when the leaf is not for `hostname`. Times are not checked: a
    certificate that is expired or not valid yet may become valid with the clock.
    """
    leaf_first = _load_chain(chain_pem, crt)
    leaf = leaf_first[0]
    _check_names(leaf, hostname, crt)
    return Certificate(
        hostname=hostname,
        chain=tuple(certificate.public_bytes(Encoding.DER) for certificate in leaf_first),
        key=_load_key(key_pem, key, leaf, crt),
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        is_self_signed=leaf.issuer == leaf.subject,
    )


def read_pem(path: Path, what: str) -> bytes:
    """Read a file of PEM. Raises CertificateError that begins with `what` and names the file."""
    try:
        return files.read(path)
    except FileNotFoundError as error:
        raise CertificateError(f"{what}: {path} does not exist") from error
    except OSError as error:
        raise CertificateError(f"{what}: cannot read {path}: {error.strerror}") from error


def _load_chain(pem: bytes, path: Path) -> list[x509.Certificate]:
    try:
        chain = x509.load_pem_x509_certificates(pem)
        chain[0].public_key()
    except Exception as error:  # ValueError, InvalidVersion, UnsupportedAlgorithm, …
        raise CertificateError(f"certificate file {path} is not a PEM certificate chain") from error
    return chain


def _load_key(pem: bytes, path: Path, leaf: x509.Certificate, leaf_path: Path) -> bytes:
    try:
        private = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise CertificateError(
            f"key file {path} is encrypted; store it without a passphrase"
        ) from error
    except Exception as error:  # ValueError, UnsupportedAlgorithm, …
        raise CertificateError(f"key file {path} is not a PEM private key") from error
    if (unusable := _unusable_type(private)) is not None:
        raise CertificateError(
            f"key file {path} has a key of type {unusable}, which TLS clients cannot use; "
            "use ECDSA P-256, RSA or Ed25519"
        )
    if _public_der(private.public_key()) != _public_der(leaf.public_key()):
        raise CertificateError(f"key file {path} does not belong to the certificate in {leaf_path}")
    return private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def _unusable_type(private: object) -> str | None:
    """Return the name of a key type that clients cannot use; None for a usable one."""
    if isinstance(private, ec.EllipticCurvePrivateKey):
        return None if private.curve.name in USABLE_CURVES else private.curve.name
    if isinstance(private, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
        return None
    return type(private).__name__.removesuffix("PrivateKey")


def _public_der(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_names(leaf: x509.Certificate, hostname: str, path: Path) -> None:
    names, addresses = _alternative_names(leaf, path)
    ip = parse_ip(hostname)
    covered = (
        ip in addresses
        if ip is not None
        else any(_name_matches(pattern, hostname) for pattern in names)
    )
    if not covered:
        listed = ", ".join([*names, *map(str, addresses)]) or "no names at all"
        raise CertificateError(f"certificate in {path} is for {listed}, not for {hostname}")


def _alternative_names(leaf: x509.Certificate, path: Path) -> tuple[list[str], list[IpAddress]]:
    try:
        san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], []
    except Exception as error:  # ValueError, DuplicateExtension, UnsupportedGeneralNameType, …
        raise CertificateError(f"certificate in {path} has malformed extensions") from error
    addresses = [
        ip for ip in san.get_values_for_type(x509.IPAddress) if not hasattr(ip, "prefixlen")
    ]
    return san.get_values_for_type(x509.DNSName), addresses


def _name_matches(pattern: str, hostname: str) -> bool:
    """Compare by RFC 6125: case-insensitively; `*` stands for the whole left-most label."""
    wanted = hostname.lower().rstrip(".").split(".")
    offered = pattern.lower().rstrip(".").split(".")
    if len(wanted) != len(offered):
        return False
    if offered[0] == "*" and len(offered) > 1:
        return bool(wanted[0]) and offered[1:] == wanted[1:]
    return offered == wanted
