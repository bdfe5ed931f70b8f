"""The settings that a listener's connections share. PROTOCOL §9."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fastderp.server.accept.registrar import Registrar
from fastderp.server.certificates.certificate import CertificateSource
from fastderp.server.http.routes import Routes
from fastderp.server.http.upgrade import KnownUpgrades
from fastderp.server.settings import ProxySettings
from fastderp.tls.context import ServerContext

if TYPE_CHECKING:
    from fastderp.server.http.tunnel import Tunnels


class AcceptContext(NamedTuple):
    """The settings of accepted connections; a change applies to later connections.

    Args:
        registrar: turns logins into sessions.
        routes: the handlers of paths.
        tls: a certificate, or a `CertificateSource` that picks one for each client; None for plain
            HTTP.
        login_budget_s: seconds from accept to login; bytes that arrive do not extend them.
        idle_s: seconds that an answered connection may wait with its next request.
        tunnels: serves CONNECT; None refuses it.
        known_upgrades: upgrade requests that need no parsing.
        proxies: which peers are proxies, and what they send.
    """

    registrar: Registrar
    routes: Routes
    tls: ServerContext | CertificateSource | None
    login_budget_s: float
    idle_s: float
    tunnels: Tunnels | None
    known_upgrades: KnownUpgrades
    proxies: ProxySettings
