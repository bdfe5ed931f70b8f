"""The files of ACME in -certdir: account keys and certificates (PROTOCOL §10).

Names and formats are derper's: each program can use the other's directory. Files are written
atomically, and only their owner can read them. Loop thread; `save` may run in another one.
"""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path
from typing import TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)

from fastderp.errors import CertificateError
from fastderp.server.certificates.certificate import Certificate, certificate_from_pem, read_pem
from fastderp.server.certificates.self_signed import locked
from fastderp.util import files
from fastderp.util.net import is_address

log: logging.Logger = logging.getLogger("fastderp")

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | RSAPrivateKey

ACCOUNT_KEY = "acme_account+key"
IP_ACCOUNT_KEY = "acme-account.key"

_KEY_BLOCK = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----\n?", re.DOTALL
)


class Store:
    """The directory of account keys and certificates."""

    def __init__(self, directory: Path) -> None:
        """Use this directory; create it when absent. Raises CertificateError."""
        self.directory = directory
        try:
            files.make_private_directory(directory)
        except OSError as error:
            raise CertificateError(
                f"cannot keep certificates in {directory}: {error.strerror}"
            ) from error

    def account_key(self, file_name: str) -> ec.EllipticCurvePrivateKey:
        """Read an account's key or create it; relays that start together use the same one.

        Raises CertificateError.
        """
        path = self.directory / file_name
        try:
            with locked(self.directory):
                if not path.exists():
                    files.write_atomic(path, private_pem(ec.generate_private_key(ec.SECP256R1())))
        except OSError as error:
            raise CertificateError(
                f"cannot keep the ACME account's key in {path}: {error.strerror}"
            ) from error
        key = _private_key(read_pem(path, "ACME account's key"), path)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(
            key.curve, ec.SECP256R1
        ):
            raise CertificateError(
                f"{path} is not an ECDSA P-256 key: delete it to create another account"
            )
        return key

    def load(self, name: str) -> Certificate | None:
        """Return the stored certificate of a name or an address; None if it is absent.

        Unusable files are logged and count as absent, as do expired certificates. A certificate
        that is not valid yet is returned, because the machine's clock may be wrong.
        """
        crt, key = self._files(name)
        try:
            crt.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("cannot read the certificate in %s: %s", crt, error.strerror)
            return None
        try:
            key_pem = _key_block(read_pem(key, "certificate key"), key)
            certificate = certificate_from_pem(
                name, read_pem(crt, "certificate"), key_pem, crt=crt, key=key
            )
            if crt != key and certificate.is_self_signed:
                raise CertificateError(
                    f"the certificate in {crt} is self-signed, as -certmode manual makes them"
                )
            now = time.time()
            fault = certificate.time_fault(now)
            if fault and now > certificate.not_after:
                raise CertificateError(f"the certificate in {crt} {fault}")
        except CertificateError as error:
            log.warning("%s; the next client triggers a new order", error)
            return None
        if fault:
            log.warning("the certificate in %s %s", crt, fault)
        return certificate

    def save(self, name: str, chain_pem: bytes, key: PrivateKey) -> None:
        """Store a certificate for the next start. Raises CertificateError."""
        crt_path, key_path = self._files(name)
        try:
            if crt_path == key_path:
                files.write_atomic(crt_path, private_pem(key) + chain_pem)
            else:
                # Renewed certificates keep their key, so that a crash between the writes leaves a
                # valid pair.
                files.write_all_atomic(
                    {
                        key_path: files.Content(private_pem(key)),
                        crt_path: files.Content(chain_pem),
                    }
                )
        except OSError as error:
            raise CertificateError(
                f"cannot keep the certificate in {crt_path}: {error.strerror}"
            ) from error

    def _files(self, name: str) -> tuple[Path, Path]:
        """Return the files of chain and key: one file for a name, two for an address."""
        if not is_address(name):
            return self.directory / name, self.directory / name
        stem = name.replace(":", ".")
        return self.directory / f"{stem}.crt", self.directory / f"{stem}.key"


def private_pem(key: PrivateKey) -> bytes:
    """Return a key in the format of key files."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def private_key(certificate: Certificate | None) -> PrivateKey:
    """Return the key for an order: that of the certificate to be replaced, or a new one."""
    if certificate is not None:
        key = load_der_private_key(certificate.key, None)
        if isinstance(key, ec.EllipticCurvePrivateKey | RSAPrivateKey):
            return key
    return ec.generate_private_key(ec.SECP256R1())


def _key_block(content: bytes, path: Path) -> bytes:
    match = _KEY_BLOCK.search(content)
    if match is None:
        raise CertificateError(f"key file {path} is not a PEM private key")
    return match[0]


def _private_key(content: bytes, path: Path) -> object:
    try:
        return load_pem_private_key(_key_block(content, path), None)
    except Exception as error:  # ValueError, TypeError, UnsupportedAlgorithm
        raise CertificateError(f"key file {path} is not a PEM private key") from error
