"""Makes the self-signed certificate of an address, and keeps it in files (PROTOCOL §10).

Relays that start together on one directory agree on one certificate. Any thread.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import ipaddress
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fastderp.errors import CertificateError
from fastderp.util import files

log: logging.Logger = logging.getLogger("fastderp")

VALIDITY = datetime.timedelta(days=365)


def make_missing_files(crt: Path, key: Path, address: str) -> None:
    """Make the files of a self-signed certificate for `address` where there are none.

    A key of ours without a certificate, left by an interrupted start, gets one. Raises
    CertificateError when files cannot be kept, and for one without the other.
    """
    try:
        crt.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(crt.parent):
            if not crt.exists() and not key.exists():
                private = ec.generate_private_key(ec.SECP256R1())
                # The key first: a missing certificate can be created for it later.
                files.write_all_atomic(
                    {
                        key: files.Content(private_pem(private), 0o600),
                        crt: files.Content(_self_signed_pem(address, private), 0o644),
                    }
                )
            elif not crt.exists():
                _complete(crt, key, address)
            elif not key.exists():
                raise _half_lost(crt, key)
    except OSError as error:
        raise CertificateError(
            f"cannot keep certificates in {crt.parent}: {error.strerror}"
        ) from error


def self_signed(address: str, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Make a certificate of one year for an IP address and an ECDSA P-256 key."""
    ip = ipaddress.ip_address(address)
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
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .serial_number(secrets.randbits(128) or 1)
        .public_key(key.public_key())
        .not_valid_before(now)
        .not_valid_after(now + VALIDITY)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip)]), critical=False)
        .sign(key, hashes.SHA256())
    )


def private_pem(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
) -> bytes:
    """Return a key in the format of key files."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, so that relays that start together use the same file."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _self_signed_pem(address: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    return self_signed(address, key).public_bytes(Encoding.PEM)


def _complete(crt: Path, key: Path, address: str) -> None:
    """Make the certificate for a key that this module made. Raises CertificateError for others."""
    private = _key_of_ours(key)
    if private is None:
        raise _half_lost(key, crt)
    files.write_atomic(crt, _self_signed_pem(address, private), 0o644)
    log.warning("%s had no certificate: a new one is in %s, with a new CertName", key, crt)


def _key_of_ours(path: Path) -> ec.EllipticCurvePrivateKey | None:
    """Return the key in a file when its type and its form are those of `make_missing_files`."""
    content = files.read(path)
    with contextlib.suppress(Exception):  # ValueError, TypeError, UnsupportedAlgorithm
        key = load_pem_private_key(content, None)
        if (
            isinstance(key, ec.EllipticCurvePrivateKey)
            and isinstance(key.curve, ec.SECP256R1)
            and private_pem(key) == content
        ):
            return key
    return None


def _half_lost(found: Path, missing: Path) -> CertificateError:
    return CertificateError(
        f"{found} exists without {missing.name}: restore it, or delete {found} to create both again"
    )
