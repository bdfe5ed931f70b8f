"""The configuration of a relay: one frozen section per component (PROTOCOL §12).

`cli.config` makes and checks the values. Times are in seconds. The section of ACME is in
`certificates.acme.settings`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from fastderp.server.admission.limits import AddressLimit
from fastderp.server.certificates.acme.settings import AcmeSettings
from fastderp.server.http.client_address import TrustedProxies
from fastderp.server.http.debug import DebugAccess
from fastderp.server.net.listen import UNIX
from fastderp.util.bounds import ACCEPT_BURST
from fastderp.wire.keys import NodePublic

MAX_BURST = int(ACCEPT_BURST.high)


class KeySettings(NamedTuple):
    """The relay's identity."""

    file: Path | None = None  # None: a new key in memory


class ProxySettings(NamedTuple):
    """The proxies in front of the relay."""

    trusted: TrustedProxies = TrustedProxies()
    proxy_protocol: bool = False  # their connections begin with a PROXY header
    path_prefix: str = ""  # "/x": every path is also served below it


class Address(NamedTuple):
    """An address to listen on."""

    host: str  # "" for every address; or unix:PATH
    port: int = 0

    @property
    def is_unix(self) -> bool:
        """Whether it is a unix socket instead of a port."""
        return self.host.startswith(UNIX)


class ListenSettings(NamedTuple):
    """The TCP addresses of the relay, and its socket options."""

    host: str = ""  # "" for every address; or unix:PATH
    port: int = 443
    tls: bool = True
    http_port: int | None = 80  # None: no plain port beside HTTPS
    debug: Address | None = None  # None: the debug pages are on the ports above
    keepalive_s: float = 600.0
    user_timeout_s: float = 15.0
    accept_per_s: float = math.inf
    accept_burst: int = MAX_BURST
    proxies: ProxySettings = ProxySettings()
    reuse_port: bool = False

    @property
    def is_unix(self) -> bool:
        """Whether the relay listens on a unix socket instead of a port."""
        return Address(self.host).is_unix

    @property
    def limit_without_burst(self) -> bool:
        """Whether accepts are limited per second without a burst: such a limit has no effect."""
        return self.tls and math.isfinite(self.accept_per_s) and self.accept_burst == MAX_BURST


class ManualSettings(NamedTuple):
    """A certificate from files."""

    directory: Path
    hostname: str


class AdmissionSettings(NamedTuple):
    """The checks of clients; each one that is set must admit the client."""

    tailscaled: bool = False
    socket: str = ""  # "": tailscaled's default path
    url: str = ""
    url_fail_open: bool = True
    recheck_s: float = 0.0  # 0: never
    allow_file: Path | None = None
    deny_file: Path | None = None
    disallowed_app_names: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether every client is admitted, because no check is set."""
        return not (self.tailscaled or self.url or self.allow_file or self.deny_file)


class LimitSettings(NamedTuple):
    """The limits of each client and of the whole relay."""

    rate_file: Path | None = None
    address: AddressLimit = AddressLimit()  # where the file has no other
    workers: int = 0  # 0: one per core that affinity and CPU quota leave
    login_memory_bytes: int = 64 << 20
    write_timeout_s: float = 2.0  # 0: none
    queue_packets: int = 0  # 0: as many as fit
    drain_s: float = 10.0  # 0: clients get the restart notice and are closed at once


class StunSettings(NamedTuple):
    """The address of the STUN server."""

    host: str = ""
    port: int = 3478
    reuse_port: bool = False


class BootstrapSettings(NamedTuple):
    """The names that `/bootstrap-dns` resolves, split but not checked."""

    published: tuple[str, ...] = ()
    unpublished: tuple[str, ...] = ()


class PageSettings(NamedTuple):
    """The content of the HTTP pages."""

    hostname: str = ""
    home: str = ""
    derp: bool = True
    ace: bool = False
    dev: bool = False


class ObserveSettings(NamedTuple):
    """The settings of logs and counters, and the addresses that may read them."""

    log_format: str = "text"  # or "json"
    debug_logs: bool = False
    prober_logs: bool = False
    rtt_stats: bool = True
    sender_cardinality: bool = False
    watched_drops: tuple[NodePublic, ...] = ()
    debug_access: DebugAccess = DebugAccess()


class MeshSettings(NamedTuple):
    """The region: its secret, and the other relays."""

    psk_file: Path | None = None
    secrets: SecretsSettings | None = None
    dev_key: str = ""  # the secret itself, for -dev
    members: str = ""  # not parsed


class SecretsSettings(NamedTuple):
    """A setec server that has the region's secret."""

    url: str
    name: str
    cache: Path


class RelaySettings(NamedTuple):
    """All sections. None leaves the component out."""

    key: KeySettings
    listen: ListenSettings
    manual: ManualSettings | None
    acme: AcmeSettings | None
    admission: AdmissionSettings
    mesh: MeshSettings
    limits: LimitSettings
    stun: StunSettings | None
    bootstrap_dns: BootstrapSettings
    pages: PageSettings
    observe: ObserveSettings
    warnings: tuple[str, ...] = ()  # of settings that have no effect
