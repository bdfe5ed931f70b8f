"""Checks the flags about certificates (PROTOCOL §10, §12).

Reads values only, except `check_ca_file`, which reads the file.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509

from fastderp.cli.flags import printable
from fastderp.errors import ConfigError, UsageError
from fastderp.server.certificates.acme.settings import (
    GOOGLE,
    LETS_ENCRYPT,
    AcmeSettings,
    ExternalAccount,
)
from fastderp.util import files
from fastderp.util.net import is_address, parse_ip

# Clients also ask for names with underscores, though no CA issues certificates for them.
_SNI_LABEL = re.compile("[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")

CERT_MODES = ("manual", "letsencrypt", "gcp")


def acme_settings(values: Mapping[str, Any], *, http: bool) -> AcmeSettings:
    """Turn the flags of `-certmode letsencrypt` or `gcp` into settings; http says whether the plain port is served.

    Raises UsageError for what no certificate can come of.
    """
    mode, hostname, ip_certs = values["certmode"], values["hostname"], values["acme-ip-certs"]
    if ip_certs and mode != "letsencrypt":
        raise UsageError(f"-acme-ip-certs needs -certmode letsencrypt, not {mode}")
    if ip_certs and not http:
        raise UsageError(
            "-acme-ip-certs needs the plain port, where the CA asks: leave -http-port -1 out"
        )
    return AcmeSettings(
        directory_url=_directory(values["acme-directory"])
        or (GOOGLE if mode == "gcp" else LETS_ENCRYPT),
        cert_dir=Path(values["certdir"]),
        hostname="" if ip_certs and is_address(hostname) else _name(hostname, mode),
        ip_certs=ip_certs,
        http=http,
        email=_email(values["acme-email"]),
        external_account=_external_account(values),
        ca_file=Path(values["acme-ca-file"]) if values["acme-ca-file"] else None,
    )


def check_acme_installed() -> None:
    """Raise ImportError that says what to install when the library is not there."""
    if any(find_spec(name) is None for name in ("acme", "josepy", "requests")):
        raise ImportError("certificates from a CA need the library acme: pip install 'acme>=5'")


def check_ca_file(path: Path) -> None:
    """Raise ConfigError that names the file of -acme-ca-file when there is nothing in it to trust."""
    try:
        found = x509.load_pem_x509_certificates(files.read(path))
    except OSError as error:
        raise ConfigError(f"-acme-ca-file {path}: {error.strerror}") from None
    except ValueError:
        found = []
    if not found:
        raise ConfigError(f"-acme-ca-file {path}: there are no certificates (PEM) in it")


def manual_hostname(text: str) -> str:
    """Return the -hostname of `-certmode manual` as clients ask for it.

    Brackets around an IPv6 address and a dot behind a name are left out, and a name in another
    script gets its ASCII form. Raises UsageError for what no client can ask for.
    """
    address = parse_ip(text.removeprefix("[").removesuffix("]"))
    if address is not None:
        if getattr(address, "scope_id", None):
            raise UsageError(
                f"-hostname {printable(text)}: certificates are for addresses without a zone"
            )
        return text.removeprefix("[").removesuffix("]")
    if "*" in text:
        raise UsageError(
            f"-hostname {printable(text)}: clients ask for one name, never for a wildcard; "
            "a certificate for the wildcard serves each of its names"
        )
    name = _ascii_name(text)
    labels = name.split(".")
    if not all(_SNI_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise UsageError(
            f'-hostname "{printable(text)}": want a host name or an address such as '
            "derp.example.com or 203.0.113.7, without scheme, port and path"
        )
    return name


def _ascii_name(text: str) -> str:
    """Return a name in ASCII without the dot of its root; "" for what is no name."""
    try:
        return text.removesuffix(".").encode("idna").decode()
    except UnicodeError:
        return ""


def _name(hostname: str, mode: str) -> str:
    if is_address(hostname):
        if mode == "gcp":
            raise UsageError(
                f"-certmode gcp has no certificates for addresses such as -hostname {hostname}"
            )
        raise UsageError(
            f"-hostname {hostname} is an address: -acme-ip-certs gets certificates for it, -certmode manual makes one itself"
        )
    name = _ascii_name(hostname.lower())
    labels = name.split(".")
    if len(labels) < 2 or not all(_is_label(label) for label in labels):
        raise UsageError(
            f"-hostname {printable(hostname)}: a CA gives certificates for names such as derp.example.com"
        )
    return name


def _is_label(text: str) -> bool:
    return text.replace("-", "a").isalnum() and text.isascii()


def _directory(url: str) -> str:
    if url and not (url.startswith("https://") and _host(url)):
        raise UsageError(
            f"-acme-directory {printable(url)}: want an https URL such as {LETS_ENCRYPT}"
        )
    return url


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _email(text: str) -> str:
    if text and not re.fullmatch(r"[^@\s]+@[^@\s]+", text):
        raise UsageError(f"-acme-email {printable(text)}: want an address such as you@example.com")
    return text


def _external_account(values: Mapping[str, Any]) -> ExternalAccount | None:
    kid, key = values["acme-eab-kid"], values["acme-eab-key"]
    given = {"acme-eab-kid": kid, "acme-eab-key": key}
    if values["certmode"] == "gcp":
        given["acme-email"] = values["acme-email"]
    elif not kid and not key:
        return None
    for flag, value in given.items():
        if not value:
            raise UsageError(
                f"-certmode {values['certmode']} with an external account needs -{flag}"
            )
    return ExternalAccount(kid, _mac_key(key))


def _mac_key(text: str) -> bytes:
    """Decode base64 as CAs print it: for URLs or not, padded or not."""
    digits = text.strip().rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except ValueError:
        raise UsageError("-acme-eab-key is not base64") from None
