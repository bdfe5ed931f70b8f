"""The operator's settings of ACME: the CA, and the names to have certificates for (PROTOCOL §10).

Constant values; imports nothing that is slow to load.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"
GOOGLE = "https://dv.acme-v02.api.pki.goog/directory"

# what a CA's handshake for a challenge asks for (RFC 8737 §3)
ALPN_PROTOCOL = "acme-tls/1"
# the path of a CA's request for a challenge (RFC 8555 §8.3)
HTTP_PREFIX = "/.well-known/acme-challenge/"

# derper's default for -hostname: it includes the names of Tailscale's own relays.
VENDOR_HOSTNAME = "derp.tailscale.com"
_VENDOR_NAME = re.compile(r"derp[a-z0-9-]*\.tailscale\.com")


@dataclass(frozen=True, slots=True)
class ExternalAccount:
    """The external account at the CA, for account binding (RFC 8555 §7.3.4); `key` is the raw MAC
    key.
    """

    kid: str
    key: bytes


@dataclass(frozen=True, slots=True)
class AcmeSettings:
    """The CA, and what to order.

    Args:
        directory_url: the CA's ACME directory.
        cert_dir: where account keys and certificates are kept.
        hostname: the name to serve, in lower case; "" for addresses only.
        ip_certs: also serve the address that a client has connected to.
        http: whether the plain port is served (for http-01).
        email: contact for the CA; "" for none.
        external_account: for CAs that need one.
        ca_file: roots (PEM) for the connection to the CA; None for the system's.
    """

    directory_url: str
    cert_dir: Path
    hostname: str
    ip_certs: bool = False
    http: bool = True
    email: str = ""
    external_account: ExternalAccount | None = None
    ca_file: Path | None = None

    def allows(self, name: str) -> bool:
        """Whether a certificate may be ordered for a name, in lower case without a trailing dot."""
        if self.hostname == VENDOR_HOSTNAME:
            return _VENDOR_NAME.fullmatch(name) is not None
        return name == self.hostname and bool(name)
