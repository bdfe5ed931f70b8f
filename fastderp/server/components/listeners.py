"""The component of the TCP ports: their routes and certificates (PROTOCOL §9)."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import fastderp
from fastderp.errors import ListenError
from fastderp.server.accept.listener import Listener
from fastderp.server.certificates.certificate import CertificateSource
from fastderp.server.components.certificates import Certificates
from fastderp.server.components.component import Component
from fastderp.server.components.services import Bootstrap, CaptiveTunnels, Stun, check_host
from fastderp.server.http.debug import DebugPages
from fastderp.server.http.pages import Site
from fastderp.server.http.routes import Routes, http_port_routes, relay_routes
from fastderp.server.net.activation import Inherited
from fastderp.server.observe.metrics import Value
from fastderp.server.server import Server
from fastderp.server.settings import ListenSettings, ObserveSettings, PageSettings
from fastderp.tls import library
from fastderp.tls.context import ServerContext
from fastderp.util.token_bucket import TokenBucket

if TYPE_CHECKING:
    from fastderp.server.http.tunnel import Tunnels


class Listeners(Component):
    """The relay's port, the plain port beside HTTPS, and STUN beside them.

    Args:
        settings: addresses and ports.
        pages: the content of the HTTP pages.
        observe: the addresses that may request the debug pages.
        certificates: the source for HTTPS; None for plain HTTP.
        bootstrap, tunnels, stun: served on these ports.
        values: collects the metrics.
        problems: returns the problems of services that the relay queries.
        unready: returns why the relay must get no new clients.
        inherited: sockets that replace those of the addresses.
    """

    name = "listeners"

    def __init__(
        self,
        settings: ListenSettings,
        pages: PageSettings,
        observe: ObserveSettings,
        certificates: Certificates | None,
        bootstrap: Bootstrap,
        tunnels: CaptiveTunnels | None,
        stun: Stun,
        values: Callable[[], dict[str, Value]],
        problems: Callable[[], Awaitable[list[str]]],
        unready: Callable[[], list[str]],
        inherited: Inherited,
    ) -> None:
        self._settings = settings
        self._pages = pages
        self._observe = observe
        self._certificates = certificates
        self._bootstrap = bootstrap
        self._tunnels = tunnels
        self._stun = stun
        self._values = values
        self._problems = problems
        self._unready = unready
        self._inherited = inherited
        self._main: Listener | None = None
        self._plain: Listener | None = None

    async def check(self) -> list[str]:
        """Resolve the host. Raises ListenError."""
        scheme = "HTTPS" if self._settings.tls else "HTTP"
        if self._settings.is_unix:
            return [f"{scheme} on {self._settings.host}"]
        found = [f"{scheme} on {check_host(self._settings.host)}, port {self._settings.port}"]
        if self._settings.http_port is not None:
            found.append(f"plain HTTP on port {self._settings.http_port}")
        return found

    async def start(self, server: Server) -> None:
        """Listen and serve. Raises ListenError."""
        site = Site(
            hostname=self._pages.hostname if self._settings.tls else "",
            derp=self._pages.derp,
            home=self._pages.home,
            debug_allowed=self._observe.debug_access.allows,
            unready=self._unready,
        )
        routes = relay_routes(site)
        routes.prefixes["/debug/"] = self._debug_pages(server).respond
        routes.exact["/bootstrap-dns"] = self._bootstrap.dns.respond
        tls = self._certificates.tls if self._certificates is not None else None
        tunnels = self._tunnels.tunnels if self._tunnels is not None else None
        self._main = self._listen(
            server, self._inherited.derp, self._settings.port, routes, tls, tunnels
        )
        plain_routes = None
        if self._settings.http_port is not None:
            plain_routes = http_port_routes(site, routes)
            self._plain = self._listen(
                server, self._inherited.http, self._settings.http_port, plain_routes
            )
        self._stun.serve()
        self._plain_routes = plain_routes

    def announce(self) -> None:
        """Start the certificates, which log the operator's node for the DERP map."""
        assert self._main is not None
        if self._certificates is not None:
            self._certificates.serve(self._main, self._plain_routes, self._stun.port)

    def describe(self) -> list[str]:
        """Return the addresses served and the crypto library."""
        assert self._main is not None
        scheme = "https" if self._settings.tls else "http"
        served = [f"fastderp-relay {fastderp.__version__} serves {scheme} on {_places(self._main)}"]
        if self._plain is not None:
            served.append(f"plain HTTP on {_places(self._plain)}")
        port = self._stun.port
        served.append(f"STUN on UDP {port}" if port is not None else "no STUN")
        served.append(f"crypto {library.description()}")
        proxies = self._settings.proxies
        if proxies.trusted:
            header = ", with PROXY headers" if proxies.proxy_protocol else ""
            served.append(f"behind proxies at {proxies.trusted}{header}")
        if proxies.path_prefix:
            served.append(f"also below {proxies.path_prefix}/")
        hint = library.hint() if self._settings.tls else None
        return ["; ".join(served), *([hint] if hint else [])]

    def warnings(self) -> list[str]:
        """Return the settings that have no effect or that disable relaying."""
        found = []
        if self._settings.limit_without_burst:
            found.append("-accept-connection-limit has no effect without -accept-connection-burst")
        if not self._pages.derp:
            found.append("-derp=false: packets are not relayed")
        return found

    def _debug_pages(self, server: Server) -> DebugPages:
        async def check() -> list[str]:
            return server.consistency_check() + await self._problems()

        return DebugPages(
            values=self._values,
            check=check,
            traffic=server.traffic_lines,
            clients=server.clients_page,
            access=self._observe.debug_access,
            hostname=self._pages.hostname,
            has_mesh_key=server.has_mesh_key,
            dev=self._pages.dev,
        )

    def _listen(
        self,
        server: Server,
        inherited: list[socket.socket],
        port: int,
        routes: Routes,
        tls: ServerContext | CertificateSource | None = None,
        tunnels: Tunnels | None = None,
    ) -> Listener:
        settings = self._settings
        limiter = TokenBucket(settings.accept_per_s, settings.accept_burst) if tls else None
        try:
            return server.listen(
                inherited or settings.host,
                port,
                tls=tls,
                routes=routes,
                keepalive_idle_s=settings.keepalive_s,
                user_timeout_s=settings.user_timeout_s,
                accept_limiter=limiter,
                tunnels=tunnels,
                proxies=settings.proxies,
                reuse_port=settings.reuse_port and not inherited,
            )
        except OSError as error:
            hint = ""
            if error.errno == errno.EADDRINUSE and settings.reuse_port:
                hint = " by a program without SO_REUSEPORT, or of another user"
            if error.errno == errno.EACCES:
                hint = " (ports below 1024 need root or CAP_NET_BIND_SERVICE)"
            raise ListenError(f"{error.strerror}{hint}") from error


def _places(listener: Listener) -> str:
    return ", ".join(listener.addresses)
