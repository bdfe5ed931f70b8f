"""Checks the requirements of ACME: the library and the file of -acme-ca-file (PROTOCOL §10)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from cryptography import x509

from fastderp.errors import ConfigError
from fastderp.util import files


def check_installed() -> None:
    """Raise ImportError with the command to run when the library is missing."""
    if any(find_spec(name) is None for name in ("acme", "josepy", "requests")):
        raise ImportError("certificates from a CA need the library acme: pip install 'acme>=5'")


def check_ca_file(path: Path) -> None:
    """Raise ConfigError that names the file when it has no certificates."""
    try:
        found = x509.load_pem_x509_certificates(files.read(path))
    except OSError as error:
        raise ConfigError(f"-acme-ca-file {path}: {error.strerror}") from None
    except ValueError:
        found = []
    if not found:
        raise ConfigError(f"-acme-ca-file {path}: no certificates (PEM) in it")
