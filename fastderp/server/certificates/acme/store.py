"""What ACME keeps in -certdir: account keys, certificates, and who has to wait after failures (PROTOCOL §10).

Names and formats are derper's, so that either can go on with the other's directory. Files are written whole or not at all, and
are for their owner only. Loop thread only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)
from cryptography.x509 import load_der_x509_certificate

from fastderp.errors import CertificateError
from fastderp.server.certificates.certificate import (
    Certificate,
    certificate_from_pem,
    ip_literal,
    locked,
    read_file,
    write_atomically,
)

log = logging.getLogger("fastderp")

PrivateKey = ec.EllipticCurvePrivateKey | RSAPrivateKey

ACCOUNT_KEY = "acme_account+key"
IP_ACCOUNT_KEY = "acme-account.key"
FAILURES = "acme-failures.json"

RETRY_FIRST_S = 60.0
RETRY_MAX_S = 1800.0

_KEY_BLOCK = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----\n?", re.DOTALL
)


class Store:
    """The directory."""

    def __init__(self, directory: Path) -> None:
        """Use this directory, made when absent. Raises CertificateError."""
        self.directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CertificateError(
                f"cannot keep certificates in {directory}: {error.strerror}"
            ) from error

    def account_key(self, file_name: str) -> ec.EllipticCurvePrivateKey:
        """Read the account's key, made when absent; relays started together agree on one. Raises CertificateError."""
        path = self.directory / file_name
        try:
            with locked(self.directory):
                if not path.exists():
                    write_atomically(
                        path, private_pem(ec.generate_private_key(ec.SECP256R1())), 0o600
                    )
        except OSError as error:
            raise CertificateError(
                f"cannot keep the ACME account's key in {path}: {error.strerror}"
            ) from error
        key = _private_key(read_file(path, "ACME account's key"), path)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(
            key.curve, ec.SECP256R1
        ):
            raise CertificateError(
                f"{path} is not an ECDSA P-256 key: delete it, and another account is made"
            )
        return key

    def load(self, name: str) -> Certificate | None:
        """Return the certificate of a name or an address that is there; what cannot be used is logged and as good as absent."""
        crt, key = self._files(name)
        if not crt.exists():
            return None
        try:
            key_pem = _key_block(read_file(key, "certificate key"), key)
            certificate = certificate_from_pem(
                name, read_file(crt, "certificate"), key_pem, crt=crt, key=key
            )
            if crt != key and _is_self_signed(certificate):
                raise CertificateError(
                    f"the certificate in {crt} is self-signed, as -certmode manual makes them"
                )
            return certificate
        except CertificateError as error:
            log.warning("%s; another one is ordered when it is needed", error)
            return None

    def save(self, name: str, chain_pem: bytes, key: PrivateKey) -> None:
        """Keep a certificate for the next start. Raises CertificateError."""
        crt_path, key_path = self._files(name)
        try:
            if crt_path == key_path:
                write_atomically(crt_path, private_pem(key) + chain_pem, 0o600)
                return
            # Renewed certificates keep their key, so these two never disagree.
            write_atomically(key_path, private_pem(key), 0o600)
            write_atomically(crt_path, chain_pem, 0o600)
        except OSError as error:
            raise CertificateError(
                f"cannot keep the certificate in {crt_path}: {error.strerror}"
            ) from error

    def _files(self, name: str) -> tuple[Path, Path]:
        """Return where chain and key of a name or an address are: of a name, in one file."""
        if ip_literal(name) is None:
            return self.directory / name, self.directory / name
        stem = name.replace(":", ".")
        return self.directory / f"{stem}.crt", self.directory / f"{stem}.key"


class Failures:
    """Who failed, and how long to wait before asking the CA again: 1 min, doubling to 30 min, over restarts too.

    The date is used, as a restart forgets other clocks; a wait longer than any that is given shows that it was changed, and is over.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Go on with what the file says; one that cannot be understood says nothing."""
        self._path = path
        self._clock = clock
        self._of: dict[str, tuple[int, float]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            for name, (n, retry_at) in json.loads(path.read_text()).items():
                if abs(retry_at - clock()) <= RETRY_MAX_S:
                    self._of[name] = (int(n), float(retry_at))

    def wait_s(self, name: str) -> float:
        """Return how long a name has still to wait, 0 when it may try."""
        _, retry_at = self._of.get(name, (0, 0.0))
        remaining = retry_at - self._clock()
        return remaining if 0 < remaining <= RETRY_MAX_S else 0.0

    def add(self, name: str, *, rate_limited: bool = False) -> float:
        """Note another failure; return how long to wait. The CA's own limits are for hours: they get the longest."""
        n = self._of.get(name, (0, 0.0))[0] + 1
        wait_s = (
            RETRY_MAX_S if rate_limited else min(RETRY_FIRST_S * 2 ** min(n - 1, 10), RETRY_MAX_S)
        )
        self._of[name] = (n, self._clock() + wait_s)
        self._save()
        return wait_s

    def clear(self, name: str) -> None:
        """Forget a name's failures: it has its certificate."""
        if self._of.pop(name, None) is not None:
            self._save()

    def forgive(self) -> set[str]:
        """Let everybody try at once; return who that is."""
        forgiven = set(self._of)
        self._of.clear()
        if forgiven:
            self._save()
        return forgiven

    def _save(self) -> None:
        # A disk that is full makes a restart forget, no more.
        with contextlib.suppress(OSError):
            write_atomically(self._path, json.dumps(self._of).encode(), 0o600)


def private_key(certificate: Certificate | None) -> PrivateKey:
    """Return the key to order a certificate for: the one of the certificate to be replaced, or a new one."""
    if certificate is not None:
        key = load_der_private_key(certificate.key, None)
        if isinstance(key, ec.EllipticCurvePrivateKey | RSAPrivateKey):
            return key
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: PrivateKey) -> bytes:
    """Return a key as it is kept."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def _is_self_signed(certificate: Certificate) -> bool:
    leaf = load_der_x509_certificate(certificate.chain[0])
    return leaf.issuer == leaf.subject


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
