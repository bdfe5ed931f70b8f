"""A certificate chain with its key, read from PEM and checked (PROTOCOL §10).

Any thread. Errors are one line that an operator can act on; they never contain key material.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from pathlib import Path
from typing import NamedTuple, Protocol

from fastderp.errors import CertificateError
from fastderp.tls.context import DeferredContext, ServerContext
from fastderp.tls.errors import TlsError
from fastderp.tls.handshake import ClientHello
from fastderp.tls.x509 import Leaf, PrivateKey, chain_from_pem, read_leaf
from fastderp.util import files, utc
from fastderp.util.net import is_address, parse_ip
from fastderp.util.text import printable

# The keys of the signature schemes of RFC 8446 §4.2.3 that clients offer.
USABLE_KEYS = ("prime256v1", "secp384r1", "secp521r1", "rsaEncryption", "ED25519")


class Certificate(NamedTuple):
    """A certificate chain with its key, ready for `fastderp.tls.ServerContext`.

    `chain` holds DER, leaf first and without the metacert; `key` is DER as `PrivateKey.der` returns
    it; `sha256` is the hash of the leaf. `is_self_signed` is whether the leaf has been issued by
    its own subject. Times are Unix times.
    """

    hostname: str
    chain: tuple[bytes, ...]
    key: bytes
    sha256: bytes
    not_before: int
    not_after: int
    is_self_signed: bool

    @property
    def required_sni(self) -> str | None:
        """The server name that clients must send; None for an address, which requires none."""
        return None if is_address(self.hostname) else self.hostname

    @property
    def pin(self) -> str:
        """The CertName of a DERP map that accepts this leaf only: `sha256-raw:` and its hash."""
        return f"sha256-raw:{self.sha256.hex()}"

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

    def time_fault(self, now: float) -> str:
        """Return the reason why clients refuse it at the Unix time `now`; "" within its validity."""
        if now > self.not_after:
            return f"expired on {utc.day(self.not_after)}"
        if now < self.not_before:
            since = utc.minute(self.not_before)
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


def check_tls(tls: ServerContext | CertificateSource | None) -> None:
    """Raise TypeError for an object that cannot serve TLS, such as an `ssl.SSLContext`."""
    if not (tls is None or isinstance(tls, ServerContext) or hasattr(tls, "choose")):
        raise TypeError(
            "tls must be a fastderp.tls.context.ServerContext or a CertificateSource, "
            f"not {type(tls).__name__}"
        )


def certificate_from_pem(
    hostname: str, chain_pem: bytes, key_pem: bytes, *, crt: Path, key: Path
) -> Certificate:
    """Read a chain, leaf first, and its key; `crt` and `key` are the files for error messages.

    Raises CertificateError when either is malformed, when they do not belong together, when clients
    cannot use the type of key, and when the leaf is not for `hostname`. Times are not checked: a
    certificate that is expired or not valid yet may become valid with the clock.
    """
    chain, leaf = _load_chain(chain_pem, crt)
    _check_names(leaf, hostname, crt)
    return Certificate(
        hostname=hostname,
        chain=tuple(chain),
        key=_load_key(key_pem, key, chain[0], crt),
        sha256=leaf.sha256,
        not_before=leaf.not_before,
        not_after=leaf.not_after,
        is_self_signed=leaf.is_self_signed,
    )


def read_pem(path: Path, what: str) -> bytes:
    """Read a file of PEM. Raises CertificateError that begins with `what` and names the file."""
    try:
        return files.read(path)
    except FileNotFoundError as error:
        raise CertificateError(f"{what}: {path} does not exist") from error
    except OSError as error:
        raise CertificateError(f"{what}: cannot read {path}: {error.strerror}") from error


def _load_chain(pem: bytes, path: Path) -> tuple[list[bytes], Leaf]:
    """Return the chain in DER, and the content of its leaf, whose key clients can use."""
    try:
        chain = chain_from_pem(pem)
    except TlsError as error:
        raise CertificateError(f"certificate file {path} is not a PEM certificate chain") from error
    try:
        leaf = read_leaf(chain[0])
    except TlsError as error:
        raise CertificateError(f"certificate in {path} cannot be read: {error}") from error
    if leaf.key_type not in USABLE_KEYS:
        raise CertificateError(
            f"certificate file {path} is for a key of type {leaf.key_type}, which TLS clients "
            "cannot use; use ECDSA P-256, RSA or Ed25519"
        )
    return chain, leaf


def _load_key(pem: bytes, path: Path, leaf_der: bytes, leaf_path: Path) -> bytes:
    try:
        private = PrivateKey.from_pem(pem)
    except TlsError as error:
        if b"ENCRYPTED" in pem:
            raise CertificateError(
                f"key file {path} is encrypted; store it without a passphrase"
            ) from error
        raise CertificateError(f"key file {path} is not a PEM private key") from error
    if not private.belongs_to(leaf_der):
        raise CertificateError(f"key file {path} does not belong to the certificate in {leaf_path}")
    return private.der()


def _check_names(leaf: Leaf, hostname: str, path: Path) -> None:
    addresses = [
        ipaddress.ip_address(packed) for packed in leaf.addresses if len(packed) in (4, 16)
    ]
    ip = parse_ip(hostname)
    covered = (
        ip in addresses
        if ip is not None
        else any(_name_matches(pattern, hostname) for pattern in leaf.dns_names)
    )
    if not covered:
        names = [printable(name) for name in leaf.dns_names]
        listed = ", ".join([*names, *map(str, addresses)]) or "no names at all"
        raise CertificateError(f"certificate in {path} is for {listed}, not for {hostname}")


def _name_matches(pattern: str, hostname: str) -> bool:
    """Compare by RFC 6125: case-insensitively; `*` stands for the whole left-most label."""
    wanted = hostname.lower().rstrip(".").split(".")
    offered = pattern.lower().rstrip(".").split(".")
    if len(wanted) != len(offered):
        return False
    if offered[0] == "*" and len(offered) > 1:
        return bool(wanted[0]) and offered[1:] == wanted[1:]
    return offered == wanted
