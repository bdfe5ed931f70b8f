"""Which certificates may be issued, by whom and for whom: what the operator has decided about ACME (PROTOCOL §10).

Values only, constant once made; imports nothing that is slow to load.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"
GOOGLE = "https://dv.acme-v02.api.pki.goog/directory"

# The -hostname of derper's that nobody has to give: Tailscale's own relays, each under a name of this form.
VENDOR_HOSTNAME = "derp.tailscale.com"
_VENDOR_NAME = re.compile(r"derp[a-z0-9-]*\.tailscale\.com")


@dataclass(frozen=True, slots=True)
class ExternalAccount:
    """An account with the CA that our ACME account is to belong to (RFC 8555 §7.3.4); key is the MAC key, raw."""

    kid: str
    key: bytes


@dataclass(frozen=True, slots=True)
class AcmeSettings:
    """What to ask which CA for.

    Args:
        directory_url: the CA's ACME directory.
        cert_dir: where account keys and certificates are kept.
        hostname: the name to serve, in lower case; "" for addresses only.
        ip_certs: also serve the address a client has connected to.
        http: whether the CA may ask on the plain port (http-01).
        email: contact for the CA, "" for none.
        external_account: for CAs that want one.
        ca_file: certificates (PEM) to trust the CA's server by; None for the system's.
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
        """Whether a certificate for this name, lower case without a trailing dot, may be ordered."""
        if self.hostname == VENDOR_HOSTNAME:
            return _VENDOR_NAME.fullmatch(name) is not None
        return name == self.hostname and bool(name)
