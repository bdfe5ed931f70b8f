"""The component of the TCP ports: their routes and certificates (PROTOCOL §9)."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import fastderp
from fastderp.errors import ListenError, UsageError
from fastderp.server.accept.listener import Listener
from fastderp.server.certificates.certificate import CertificateSource
from fastderp.server.components.certificates import Certificates
from fastderp.server.components.component import Component
from fastderp.server.components.services import Bootstrap, CaptiveTunnels, Stun, check_host
from fastderp.server.http.debug import DebugAccess, DebugPages
from fastderp.server.http.pages import Site
from fastderp.server.http.routes import Routes, debug_routes, http_port_routes, relay_routes
from fastderp.server.net.activation import Inherited
from fastderp.server.net.listen import check_unix, is_local, is_wildcard
from fastderp.server.observe.values import Value
from fastderp.server.server import Server
from fastderp.server.settings import (
    Address,
    ListenSettings,
    ObserveSettings,
    PageSettings,
    ProxySettings,
)
from fastderp.tls import library
from fastderp.tls.context import ServerContext
from fastderp.util.token_bucket import TokenBucket

if TYPE_CHECKING:
    from fastderp.server.http.tunnel import Tunnels


class Listeners(Component):
    """The relay's port, the plain port beside HTTPS, that of the debug pages, and STUN beside them.

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

    Raises UsageError when two of the ports are the same.
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
        _check_ports(settings, inherited)
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
        self._plain_routes: Routes | None = None
        self._debug: Listener | None = None

    async def check(self) -> list[str]:
        """Resolve the hosts, or look for the sockets' directories. Raises ListenError."""
        scheme = "HTTPS" if self._settings.tls else "HTTP"
        main = Address(self._settings.host, self._settings.port)
        found = [f"{scheme} on {_checked(main)}"]
        if self._settings.http_port is not None:
            found.append(f"plain HTTP on port {self._settings.http_port}")
        if self._settings.debug is not None:
            found.append(f"debug on {_checked(self._settings.debug)}")
        return found

    async def start(self, server: Server) -> None:
        """Listen and serve. Raises ListenError."""
        debug = self._debug_pages(server)
        public_debug = debug if self._debug_host is None else None
        site = Site(
            hostname=self._pages.hostname if self._settings.tls else "",
            derp=self._pages.derp,
            home=self._pages.home,
            unready=self._unready,
        )
        if public_debug is not None:
            site.debug_allowed = public_debug.allows
        routes = relay_routes(site, public_debug)
        routes.exact["/bootstrap-dns"] = self._bootstrap.dns.respond
        tls = self._certificates.tls if self._certificates is not None else None
        tunnels = self._tunnels.tunnels if self._tunnels is not None else None
        settings = self._settings
        self._main = self._listen(
            server, self._inherited.derp or settings.host, settings.port, routes,
            settings.proxies, tls, tunnels,
        )  # fmt: skip
        if settings.http_port is not None:
            self._plain_routes = http_port_routes(site, routes)
            self._plain = self._listen(
                server, self._inherited.http or settings.host, settings.http_port,
                self._plain_routes, settings.proxies,
            )  # fmt: skip
        if self._debug_host is not None:
            port = settings.debug.port if settings.debug is not None else 0
            # No proxies: their headers would decide nothing, because every request gets the pages.
            self._debug = self._listen(
                server, self._debug_host, port, debug_routes(site, debug), ProxySettings()
            )
        self._stun.serve()

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
        if self._debug is not None:
            served.append(f"debug on {_places(self._debug)}")
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
        """Return the settings that have no effect, disable relaying, or show data to strangers."""
        found = []
        if self._settings.limit_without_burst:
            found.append("-accept-connection-limit has no effect without -accept-connection-burst")
        if not self._pages.derp:
            found.append("-derp=false: packets are not relayed")
        if self._debug_host is not None:
            found += self._debug_warnings(self._debug_host)
        elif fault := self._observe.debug_access.key_fault:
            found.append(f"TS_DEBUG_KEY_PATH: {fault}: no key gives access to the debug pages")
        return found

    def _debug_warnings(self, host: str | list[socket.socket]) -> list[str]:
        found = []
        if not is_local(host):
            found.append(
                "-debug-addr is not on loopback: it shows the clients' addresses and keys to every "
                "machine that reaches it"
            )
        if self._observe.debug_access != DebugAccess():
            found.append(
                "-debug-addr serves the debug pages without a key: TS_DEBUG_KEY_PATH, "
                "TS_ALLOW_DEBUG_IP and TS_DEBUG_TRUSTED_CIDRS have no effect"
            )
        return found

    @property
    def _debug_host(self) -> str | list[socket.socket] | None:
        """The address or sockets of the debug pages; None while they are on the public ports."""
        address = self._settings.debug
        return self._inherited.debug or (None if address is None else address.host)

    def _debug_pages(self, server: Server) -> DebugPages:
        async def check() -> list[str]:
            return server.consistency_check() + await self._problems()

        return DebugPages(
            values=self._values,
            check=check,
            traffic=server.traffic_lines,
            clients=server.clients_page,
            access=self._observe.debug_access if self._debug_host is None else None,
            hostname=self._pages.hostname,
            has_mesh_key=server.has_mesh_key,
            dev=self._pages.dev,
        )

    def _listen(
        self,
        server: Server,
        host: str | list[socket.socket],
        port: int,
        routes: Routes,
        proxies: ProxySettings,
        tls: ServerContext | CertificateSource | None = None,
        tunnels: Tunnels | None = None,
    ) -> Listener:
        settings = self._settings
        is_port = isinstance(host, str) and not Address(host).is_unix
        limiter = TokenBucket(settings.accept_per_s, settings.accept_burst) if tls else None
        try:
            return server.listen(
                host,
                port,
                tls=tls,
                routes=routes,
                keepalive_idle_s=settings.keepalive_s,
                user_timeout_s=settings.user_timeout_s,
                accept_limiter=limiter,
                tunnels=tunnels,
                proxies=proxies,
                reuse_port=settings.reuse_port and is_port,
            )
        except OSError as error:
            raise ListenError(error.strerror) from error


def _check_ports(settings: ListenSettings, inherited: Inherited) -> None:
    """Raise UsageError for two listeners at one place.

    With -reuse-port the kernel would give each of the two a part of the connections.
    """
    is_inherited = inherited.derp or inherited.http
    if settings.http_port and settings.http_port == settings.port and not is_inherited:
        raise UsageError(
            f"-a and -http-port are both port {settings.port}: HTTPS and plain HTTP need a port "
            "each; -http-port -1 is for none"
        )
    ports = {} if inherited.derp else {"-a": settings.port}
    if settings.http_port is not None and not inherited.http:
        ports["-http-port"] = settings.http_port
    for flag, port in ports.items():
        at = Address(settings.host, port)
        if settings.debug is not None and not inherited.debug and _overlap(at, settings.debug):
            where = at.host if at.is_unix else f"port {port}"
            raise UsageError(
                f"{flag} and -debug-addr are both {where}: the debug pages need another"
            )


def _overlap(one: Address, other: Address) -> bool:
    if one.is_unix or other.is_unix:
        return one.host == other.host
    if not one.port or one.port != other.port:
        return False
    return one.host == other.host or is_wildcard(one.host) or is_wildcard(other.host)


def _checked(address: Address) -> str:
    """Return where an address listens, resolved. Raises ListenError."""
    if address.is_unix:
        check_unix(address.host)
        return address.host
    return f"{check_host(address.host)}, port {address.port}"


def _places(listener: Listener) -> str:
    return ", ".join(listener.addresses)
