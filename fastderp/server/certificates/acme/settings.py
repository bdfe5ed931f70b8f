"""The operator's settings of ACME: the CA, and the names to have certificates for (PROTOCOL §10).

Constant values; imports nothing that is slow to load.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from fastderp.util.net import IpAddress, parse_ip

LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"
GOOGLE = "https://dv.acme-v02.api.pki.goog/directory"

# what a CA's handshake for a challenge asks for (RFC 8737 §3)
ALPN_PROTOCOL = "acme-tls/1"
# the path of a CA's request for a challenge (RFC 8555 §8.3)
HTTP_PREFIX = "/.well-known/acme-challenge/"

# derper's default for -hostname: it includes the names of Tailscale's own relays.
VENDOR_HOSTNAME = "derp.tailscale.com"
_VENDOR_NAME = re.compile(r"derp[a-z0-9-]*\.tailscale\.com")


class ExternalAccount(NamedTuple):
    """The external account at the CA, for account binding (RFC 8555 §7.3.4).

    `key` is the raw MAC key.
    """

    kid: str
    key: bytes


class AcmeSettings(NamedTuple):
    """The CA, and what to order.

    Args:
        directory_url: the CA's ACME directory.
        cert_dir: where account keys and certificates are kept.
        hostname: the name to serve, in lower case; "" for addresses only.
        ip_certs: also serve the address that a client has connected to.
        http: whether the plain port is served (for http-01).
        email: contact for the CA; "" for none.
        external_account: for CAs that need one.
        public_ips: up to one address of each family that stands for those of this machine, which
            is behind NAT; used with ip_certs.
        dns_hook: the command that sets TXT records, for dns-01 instead of other methods; ()
            without.
        ca_file: roots (PEM) for the connection to the CA; None for the system's.
    """

    directory_url: str
    cert_dir: Path
    hostname: str
    ip_certs: bool = False
    http: bool = True
    email: str = ""
    external_account: ExternalAccount | None = None
    public_ips: tuple[IpAddress, ...] = ()
    dns_hook: tuple[str, ...] = ()
    ca_file: Path | None = None

    def allows(self, name: str) -> bool:
        """Whether a certificate may be ordered for a name, in lower case without a trailing dot."""
        if self.hostname == VENDOR_HOSTNAME:
            return _VENDOR_NAME.fullmatch(name) is not None
        return name == self.hostname and bool(name)

    def served_ip(self, local_ip: str) -> IpAddress | None:
        """Return the address to which a connection's client has connected; None when it is unknown.

        local_ip: this machine's address of the connection.
        """
        local = parse_ip(local_ip)
        if local is None:
            return None
        return next((ip for ip in self.public_ips if ip.version == local.version), local)
