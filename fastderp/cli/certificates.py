"""What the flags say about certificates from a CA, checked (PROTOCOL §10, §12).

Reads values only; opens nothing.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastderp.cli.flags import printable
from fastderp.errors import ConfigError
from fastderp.server.acme_settings import GOOGLE, LETS_ENCRYPT, AcmeSettings, ExternalAccount

CERT_MODES = ("manual", "letsencrypt", "gcp")


def acme_settings(values: Mapping[str, Any], *, http: bool) -> AcmeSettings:
    """Turn the flags of `-certmode letsencrypt` or `gcp` into settings; http says whether the plain port is served.

    Raises ConfigError for what no certificate can come of.
    """
    mode, hostname, ip_certs = values["certmode"], values["hostname"], values["acme-ip-certs"]
    if not values["certdir"]:
        raise ConfigError("missing required -certdir: the directory to keep certificates in")
    if ip_certs and mode != "letsencrypt":
        raise ConfigError(f"-acme-ip-certs needs -certmode letsencrypt, not {mode}")
    if ip_certs and not http:
        raise ConfigError("-acme-ip-certs needs the plain port, where the CA asks: leave -http-port -1 out")
    return AcmeSettings(
        directory_url=_directory(values["acme-directory"]) or (GOOGLE if mode == "gcp" else LETS_ENCRYPT),
        cert_dir=Path(values["certdir"]),
        hostname="" if ip_certs and _is_address(hostname) else _name(hostname, mode),
        ip_certs=ip_certs,
        http=http,
        email=values["acme-email"],
        external_account=_external_account(values),
        ca_file=_ca_file(values["acme-ca-file"]),
    )


def check_acme_installed() -> None:
    """Raise ImportError that says what to install when the library is not there."""
    if any(find_spec(name) is None for name in ("acme", "josepy", "requests")):
        raise ImportError("certificates from a CA need the library acme: pip install 'fastderp[acme]'")


def _name(hostname: str, mode: str) -> str:
    if _is_address(hostname):
        if mode == "gcp":
            raise ConfigError(f"-certmode gcp has no certificates for addresses such as -hostname {hostname}")
        raise ConfigError(
            f"-hostname {hostname} is an address: -acme-ip-certs gets certificates for it, -certmode manual makes one itself"
        )
    try:
        name = hostname.lower().removesuffix(".").encode("idna").decode()
    except UnicodeError:
        name = ""
    labels = name.split(".")
    if len(labels) < 2 or not all(_is_label(label) for label in labels):
        raise ConfigError(f"-hostname {printable(hostname)}: a CA gives certificates for names such as derp.example.com")
    return name


def _is_label(text: str) -> bool:
    return text.replace("-", "a").isalnum() and text.isascii()


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _directory(url: str) -> str:
    if url and not (url.startswith("https://") and _host(url)):
        raise ConfigError(f"-acme-directory {printable(url)}: want an https URL such as {LETS_ENCRYPT}")
    return url


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _ca_file(path: str) -> Path | None:
    if not path:
        return None
    if not Path(path).is_file():
        raise ConfigError(f"-acme-ca-file {printable(path)}: no such file")
    return Path(path)


def _external_account(values: Mapping[str, Any]) -> ExternalAccount | None:
    kid, key = values["acme-eab-kid"], values["acme-eab-key"]
    given = {"acme-eab-kid": kid, "acme-eab-key": key}
    if values["certmode"] == "gcp":
        given["acme-email"] = values["acme-email"]
    elif not kid and not key:
        return None
    for flag, value in given.items():
        if not value:
            raise ConfigError(f"-certmode {values['certmode']} with an external account needs -{flag}")
    return ExternalAccount(kid, _mac_key(key))


def _mac_key(text: str) -> bytes:
    """Decode base64 as CAs print it: for URLs or not, padded or not."""
    digits = text.strip().rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except ValueError:
        raise ConfigError("-acme-eab-key is not base64") from None
