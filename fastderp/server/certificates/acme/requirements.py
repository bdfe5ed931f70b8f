"""Checks the requirements of ACME: the libraries and the file of -acme-ca-file (PROTOCOL §10)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastderp.errors import ConfigError
from fastderp.tls.errors import TlsError
from fastderp.tls.x509 import chain_from_pem
from fastderp.util import files
from fastderp.util.extras import MissingExtra

LIBRARIES = ("acme", "cryptography", "josepy", "requests")


def check_installed() -> None:
    """Raise MissingExtra with the command to run when a library is missing."""
    if any(find_spec(name) is None for name in LIBRARIES):
        raise MissingExtra("acme", "certificates from a CA")


def check_ca_file(path: Path) -> None:
    """Raise ConfigError that names the file when it has no certificates."""
    try:
        chain_from_pem(files.read(path))
    except OSError as error:
        raise ConfigError(f"-acme-ca-file {path}: {error.strerror}") from None
    except TlsError:
        raise ConfigError(f"-acme-ca-file {path}: no certificates (PEM) in it") from None
