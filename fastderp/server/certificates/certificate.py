"""Certificates: the metacert that names the relay's key, the files of `-certmode manual`, and what makes any usable (PROTOCOL §10).

Control thread. Errors are one line an operator can act on and never contain key material.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import fcntl
import hashlib
import ipaddress
import json
import os
import re
import secrets
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fastderp.errors import CertificateError
from fastderp.tls.context import DeferredContext, ServerContext
from fastderp.tls.handshake import ClientHello
from fastderp.util import files
from fastderp.wire.protocol import PROTOCOL_VERSION

META_CERT_PREFIX = "derpkey"
META_CERT_VALIDITY = datetime.timedelta(days=30)
SELF_SIGNED_VALIDITY = datetime.timedelta(days=365)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate chain with its key, ready for `fastderp.tls.ServerContext`.

    chain holds DER, leaf first and without the metacert; key is PKCS#8 DER.
    """

    hostname: str
    chain: tuple[bytes, ...]
    key: bytes
    not_before: datetime.datetime
    not_after: datetime.datetime

    @property
    def required_sni(self) -> str | None:
        """The server name a client must send; None when the hostname is an address and any or none will do."""
        return None if ip_literal(self.hostname) else self.hostname

    @property
    def pin(self) -> str:
        """The DERP map's CertName that accepts exactly this leaf: `sha256-raw:` and the hex SHA-256 of its DER."""
        return "sha256-raw:" + hashlib.sha256(self.chain[0]).hexdigest()

    def derp_node(self, *, port: int, stun_port: int | None) -> str:
        """Return the JSON of a DERP map node for this relay, pinned to its certificate.

        Ports are named only where they differ from what a client assumes (443 and 3478); stun_port None says that
        the relay answers no STUN.
        """
        node: dict[str, str | int] = {
            "Name": "custom",
            "RegionID": 900,  # ids 900–999 are set aside for custom regions
            "HostName": self.hostname,
            "CertName": self.pin,
        }
        if port != 443:
            node["DERPPort"] = port
        if stun_port != 3478:
            node["STUNPort"] = -1 if stun_port is None else stun_port
        return json.dumps(node, separators=(",", ":"))


class CertificateSource(Protocol):
    """Has a certificate for each handshake, perhaps only later."""

    @property
    def context(self) -> DeferredContext:
        """What handshakes begin with."""

    def choose(
        self, hello: ClientHello, local_ip: str
    ) -> ServerContext | asyncio.Future[ServerContext]:
        """Return the certificate for a client that was accepted on this address, or a future of the caller's own that brings it.

        Raises TlsError, as the future may, when the client gets none.
        """


def meta_cert(public_key_hex: str) -> bytes:
    """Make the DER certificate that tells a TLS 1.3 client the relay's key before the first frame (PROTOCOL §10).

    public_key_hex is the relay's public key, 64 lower-case hex digits. The signing key is thrown away: nobody
    verifies this certificate, it only carries the name.
    """
    signer = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([_common_name(META_CERT_PREFIX + public_key_hex)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .serial_number(PROTOCOL_VERSION)
        .public_key(signer.public_key())
        .not_valid_before(now - META_CERT_VALIDITY)
        .not_valid_after(now + META_CERT_VALIDITY)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(signer, None)
    )
    return certificate.public_bytes(Encoding.DER)


def _common_name(text: str) -> x509.NameAttribute[str]:
    """Make a common name of 71 characters: more than X.520 allows, and exactly what clients look for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return x509.NameAttribute(NameOID.COMMON_NAME, text, _validate=False)


def manual_certificate(directory: Path, hostname: str, *, make: bool = True) -> Certificate:
    """Load `<directory>/<hostname>.crt` and `.key`; for an address without files make them first, unless told not to (PROTOCOL §10).

    Raises CertificateError when a file is missing, unreadable or malformed, when key and certificate do not belong
    together, and when the leaf has expired or is not for this hostname.
    """
    crt, key = certificate_files(directory, hostname)
    if make and ip_literal(hostname) is not None:
        _make_missing_files(crt, key, hostname)
    chain_pem = read_file(crt, f"certificate for {hostname}")
    key_pem = read_file(key, "certificate key")
    return certificate_from_pem(hostname, chain_pem, key_pem, crt=crt, key=key)


def certificate_from_pem(
    hostname: str, chain_pem: bytes, key_pem: bytes, *, crt: Path, key: Path
) -> Certificate:
    """Read a chain, leaf first, and its key, as found in the files crt and key.

    Raises CertificateError when either is malformed, when they do not belong together, and when the leaf is not valid today
    or not for this hostname.
    """
    leaf_first = _load_chain(chain_pem, crt)
    _check_leaf(leaf_first[0], hostname, crt)
    return Certificate(
        hostname=hostname,
        chain=tuple(certificate.public_bytes(Encoding.DER) for certificate in leaf_first),
        key=_load_key(key_pem, key, leaf_first[0], crt),
        not_before=leaf_first[0].not_valid_before_utc,
        not_after=leaf_first[0].not_valid_after_utc,
    )


def certificate_files(directory: Path, hostname: str) -> tuple[Path, Path]:
    """Return the paths of certificate and key for a hostname; characters unfit for a file name are left out."""
    stem = re.sub(r"[^A-Za-z0-9.-]", "", hostname)
    return directory / f"{stem}.crt", directory / f"{stem}.key"


def ip_literal(hostname: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address a hostname spells out, or None when it is a name."""
    try:
        return ipaddress.ip_address(hostname)
    except ValueError:
        return None


def _load_chain(pem: bytes, path: Path) -> list[x509.Certificate]:
    try:
        chain = x509.load_pem_x509_certificates(pem)
        chain[0].public_key()
    except Exception as error:  # ValueError, InvalidVersion, UnsupportedAlgorithm, …: the operator's file is no good
        raise CertificateError(f"certificate file {path} is not a PEM certificate chain") from error
    return chain


def _load_key(pem: bytes, path: Path, leaf: x509.Certificate, leaf_path: Path) -> bytes:
    try:
        private = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise CertificateError(
            f"key file {path} is encrypted; store it without a passphrase"
        ) from error
    except Exception as error:
        raise CertificateError(f"key file {path} is not a PEM private key") from error
    if _public_der(private.public_key()) != _public_der(leaf.public_key()):
        raise CertificateError(f"key file {path} does not belong to the certificate in {leaf_path}")
    return private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def _public_der(key: object) -> bytes:
    der: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return der


def read_file(path: Path, what: str) -> bytes:
    """Read a file of PEM. Raises CertificateError that says what was to be read."""
    try:
        return files.read_file(path)
    except FileNotFoundError as error:
        raise CertificateError(f"{what}: {path} does not exist") from error
    except OSError as error:
        raise CertificateError(f"{what}: cannot read {path}: {error.strerror}") from error


def _check_leaf(leaf: x509.Certificate, hostname: str, path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    if now > leaf.not_valid_after_utc:
        raise CertificateError(
            f"certificate in {path} expired on {leaf.not_valid_after_utc:%Y-%m-%d}{_remedy(leaf, hostname, path)}"
        )
    if now < leaf.not_valid_before_utc:
        since = f"{leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        raise CertificateError(
            f"certificate in {path} is not valid before {since}; is this machine's clock right?"
        )
    names, addresses = _alternative_names(leaf, path)
    ip = ip_literal(hostname)
    covered = (
        ip in addresses
        if ip is not None
        else any(_name_matches(pattern, hostname) for pattern in names)
    )
    if not covered:
        listed = ", ".join([*names, *map(str, addresses)]) or "no names at all"
        raise CertificateError(f"certificate in {path} is for {listed}, not for {hostname}")


def _remedy(leaf: x509.Certificate, hostname: str, path: Path) -> str:
    """Say how to replace an expired certificate, where it is one that is made when absent."""
    if ip_literal(hostname) is None or leaf.issuer != leaf.subject:
        return ""
    key = path.with_suffix(".key").name
    return (
        f": delete it and {key} to have both made anew, and put the new CertName into the DERP map"
    )


def _alternative_names(
    leaf: x509.Certificate, path: Path
) -> tuple[list[str], list[ipaddress.IPv4Address | ipaddress.IPv6Address]]:
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
    """Compare as RFC 6125 says: without case, and `*` stands for exactly one whole left-most label."""
    wanted = hostname.lower().rstrip(".").split(".")
    offered = pattern.lower().rstrip(".").split(".")
    if len(wanted) != len(offered):
        return False
    if offered[0] == "*" and len(offered) > 1:
        return bool(wanted[0]) and offered[1:] == wanted[1:]
    return offered == wanted


def _make_missing_files(crt: Path, key: Path, hostname: str) -> None:
    try:
        crt.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(crt.parent):
            if crt.exists() != key.exists():
                found, missing = (crt, key) if crt.exists() else (key, crt)
                raise CertificateError(
                    f"{found} exists without {missing.name}: restore it, or delete {found} to have both made anew"
                )
            if not crt.exists():
                for path, (pem, mode) in _self_signed_files(crt, key, hostname).items():
                    write_atomically(path, pem, mode)
    except OSError as error:
        raise CertificateError(
            f"cannot keep certificates in {crt.parent}: {error.strerror}"
        ) from error


def _self_signed_files(crt: Path, key: Path, hostname: str) -> Mapping[Path, tuple[bytes, int]]:
    certificate, private = self_signed(hostname)
    # The key first: a certificate without its key is the more confusing half.
    return {
        key: (
            private.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
            0o600,
        ),
        crt: (certificate.public_bytes(Encoding.PEM), 0o644),
    }


def self_signed(address: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Make a one-year ECDSA P-256 certificate for an IP address, as `-certmode manual` does when there is none."""
    ip = ipaddress.ip_address(address)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(ip))])
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(
        digital_signature=True,
        key_encipherment=True,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .serial_number(secrets.randbits(128) or 1)
        .public_key(key.public_key())
        .not_valid_before(now)
        .not_valid_after(now + SELF_SIGNED_VALIDITY)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, so that relays started together agree on one certificate."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes, mode: int) -> None:
    """Put a file in place whole or not at all, on disk when this returns. Raises OSError."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        temporary = Path(file.name)
        try:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
