"""Makes the self-signed certificate of an address, and keeps it in files (PROTOCOL §10).

Relays that start together on one directory agree on one certificate. Any thread.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import ipaddress
import logging
import os
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

from fastderp.errors import CertificateError
from fastderp.tls.errors import TlsError
from fastderp.tls.x509 import PrivateKey, read_leaf
from fastderp.util import files

log: logging.Logger = logging.getLogger("fastderp")

VALIDITY_S = 365 * 24 * 3600


def make_missing_files(crt: Path, key: Path, address: str) -> None:
    """Make the files of a self-signed certificate for `address` where there are none.

    A key of ours without a certificate, left by an interrupted start, gets one. Raises
    CertificateError when files cannot be kept, and for one without the other.
    """
    try:
        files.make_private_directory(crt.parent)
        with locked(crt.parent):
            if not crt.exists() and not key.exists():
                private = PrivateKey.generate_p256()
                # The key first: a missing certificate can be created for it later.
                files.write_all_atomic(
                    {
                        key: files.Content(_key_pem(private), 0o600),
                        crt: files.Content(_certificate_pem(self_signed(address, private)), 0o644),
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


def self_signed(address: str, key: PrivateKey) -> bytes:
    """Make a certificate of one year for an IP address and an ECDSA P-256 key, in DER."""
    ip = str(ipaddress.ip_address(address))
    now = int(time.time())
    return key.self_signed(
        ip,
        serial=int.from_bytes(os.urandom(8)) or 1,
        not_before=now,
        not_after=now + VALIDITY_S,
        extensions={
            "keyUsage": "critical,digitalSignature,keyEncipherment",
            "extendedKeyUsage": "serverAuth",
            "basicConstraints": "critical,CA:FALSE",
            "subjectAltName": f"IP:{ip}",
        },
    )


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, so that relays that start together use the same file."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _complete(crt: Path, key: Path, address: str) -> None:
    """Make the certificate for a key that this module made. Raises CertificateError for others."""
    private = _key_of_ours(key)
    if private is None:
        raise _half_lost(key, crt)
    files.write_atomic(crt, _certificate_pem(self_signed(address, private)), 0o644)
    log.warning("%s had no certificate: a new one is in %s, with a new CertName", key, crt)


def _key_of_ours(path: Path) -> PrivateKey | None:
    """Return the key in a file when its type and its form are those of `make_missing_files`."""
    content = files.read(path)
    with contextlib.suppress(TlsError):
        key = PrivateKey.from_pem(content)
        if (
            _key_pem(key) == content
            and read_leaf(self_signed("127.0.0.1", key)).key_type == "prime256v1"
        ):
            return key
    return None


def _key_pem(key: PrivateKey) -> bytes:
    return _pem("EC PRIVATE KEY", key.der())


def _certificate_pem(der: bytes) -> bytes:
    return _pem("CERTIFICATE", der)


def _pem(label: str, der: bytes) -> bytes:
    """Return the text of RFC 7468 §3."""
    lines = textwrap.wrap(base64.b64encode(der).decode("ascii"), 64)
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def _half_lost(found: Path, missing: Path) -> CertificateError:
    return CertificateError(
        f"{found} exists without {missing.name}: restore it, or delete {found} to create both again"
    )
