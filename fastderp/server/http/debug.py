"""The pages under `/debug/`: access rules, index, counters. PROTOCOL §9.7.

Content only: `fastderp.server.app` puts `DebugPages.respond` into the route table.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs

import fastderp
from fastderp.errors import ConfigError
from fastderp.server.http.message import (
    SECURITY_HEADERS,
    Request,
    Response,
    redirect,
    text_error,
)
from fastderp.server.observe.metrics import Process, Value, vars_json, varz
from fastderp.util import files
from fastderp.util.net import client_ip
from fastderp.util.text import html_text

if TYPE_CHECKING:
    from fastderp.server.http.clients import ClientsPage

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_TAILSCALE_IPV4 = ipaddress.ip_network("100.64.0.0/10")
_CHROMEOS_IPV4 = ipaddress.ip_network(
    "100.115.92.0/23"
)  # inside the range above, but not Tailscale's
_TAILSCALE_IPV6 = ipaddress.ip_network("fd7a:115c:a1e0::/48")

_PAGE_HEADERS = tuple(
    (
        name,
        value + "; style-src 'self' 'unsafe-inline'"
        if name == "Content-Security-Policy"
        else value,
    )
    for name, value in SECURITY_HEADERS
)


class DebugAccess(NamedTuple):
    """Decides which requests get the debug pages.

    Requests from loopback and Tailscale addresses may, and those that the environment allows:
    key_path ($TS_DEBUG_KEY_PATH, compared with `?debugkey=`), extra_ip ($TS_ALLOW_DEBUG_IP) and
    trusted networks ($TS_DEBUG_TRUSTED_CIDRS).
    """

    key_path: Path | None = None
    extra_ip: Address | None = None
    trusted: tuple[Network, ...] = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> DebugAccess:
        """Read the three variables.

        Raises ConfigError when an address or network in them is malformed.
        """
        key_path = environment.get("TS_DEBUG_KEY_PATH", "")
        extra_ip = environment.get("TS_ALLOW_DEBUG_IP", "")
        trusted = environment.get("TS_DEBUG_TRUSTED_CIDRS", "")
        try:
            return cls(
                key_path=Path(key_path) if key_path else None,
                extra_ip=ipaddress.ip_address(extra_ip) if extra_ip else None,
                trusted=tuple(
                    ipaddress.ip_network(text.strip(), strict=False)
                    for text in trusted.split(",")
                    if text.strip()
                ),
            )
        except ValueError as error:
            raise ConfigError(f"TS_ALLOW_DEBUG_IP or TS_DEBUG_TRUSTED_CIDRS: {error}") from None

    def allows(self, request: Request) -> bool:
        """Return whether a request may get the debug pages.

        Through a trusted proxy, the client's address counts, but never as loopback. A request
        whose client is not known, and one that any other proxy has forwarded, needs the key.
        """
        if self._has_key(request):
            return True
        if request.is_hidden:
            return False
        if not request.through_proxy and any(
            name == "x-forwarded-for" and value for name, value in request.headers
        ):
            return False
        source = source_address(request)
        if source is None or (request.through_proxy and source.is_loopback):
            return False
        return self._trusts(source)

    def _has_key(self, request: Request) -> bool:
        if self.key_path is None or request.method != "GET":
            return False
        offered = (
            parse_qs(request.query).get("debugkey", [""])[0].encode("utf-8", "surrogateescape")
        )
        try:
            key = files.read(self.key_path).strip()
        except OSError:
            return False
        import hmac

        return bool(key) and hmac.compare_digest(key, offered)

    def _trusts(self, source: Address) -> bool:
        if source.is_loopback or source == self.extra_ip:
            return True
        if source in _TAILSCALE_IPV6 or (
            source in _TAILSCALE_IPV4 and source not in _CHROMEOS_IPV4
        ):
            return True
        return any(source in network for network in self.trusted)


def source_address(request: Request) -> Address | None:
    """Return the address of a request's client; an IPv4-mapped IPv6 address becomes IPv4."""
    return client_ip(request.remote[0])


class DebugPages:
    """The debug pages of one relay.

    values collects the metrics under the names of `metrics.METRICS`, without those of the process;
    check compares the relay's tables and returns its findings. clients returns the page, whose code is
    loaded when it is asked for. dev adds the client's address to a
    refusal.
    """

    def __init__(
        self,
        values: Callable[[], Mapping[str, Value]],
        *,
        check: Callable[[], Awaitable[list[str]]] | None = None,
        traffic: Callable[[], AsyncIterator[bytes]] | None = None,
        clients: Callable[[], ClientsPage] | None = None,
        access: DebugAccess = DebugAccess(),
        hostname: str = "",
        has_mesh_key: bool = False,
        dev: bool = False,
    ) -> None:
        self.values: Callable[[], Mapping[str, Value]] = values
        self.check: Callable[[], Awaitable[list[str]]] | None = check
        self.traffic: Callable[[], AsyncIterator[bytes]] | None = traffic
        self.clients: Callable[[], ClientsPage] | None = clients
        self.access: DebugAccess = access
        self.hostname: str = hostname
        self.has_mesh_key: bool = has_mesh_key
        self.dev: bool = dev
        self.process: Process = Process()

    def respond(self, request: Request) -> Response | Awaitable[Response]:
        """Answer a request for `/debug/` or below."""
        page = request.path.removeprefix("/debug/")
        if not self.access.allows(request):
            hint = (
                f"; this is {request.remote[0]}, allow it with TS_ALLOW_DEBUG_IP"
                if self.dev and page
                else ""
            )
            return text_error(403, "debug access denied" + hint)
        pages: dict[str, Callable[[], Response | Awaitable[Response]]]
        pages = {"": partial(self.index, request.prefix), "vars": self.vars, "varz": self.varz}
        if self.check is not None:
            pages["check"] = self.consistency
        if self.traffic is not None:
            pages["traffic"] = self.live_traffic
        if self.clients is not None:
            query = f"?{request.query}" if request.query else ""
            pages["clients"] = partial(
                redirect, request, 307, f"{request.prefix}/debug/clients/{query}"
            )
            pages["clients/"] = partial(self._client_list, request)
        handler = pages.get(page)
        return handler() if handler else text_error(404, "404 page not found")

    def metrics(self) -> dict[str, Value]:
        """Collect all metrics."""
        return {**self.process.metrics(), **self.values()}

    def varz(self) -> Response:
        """Answer with the metrics as Prometheus text."""
        return _page(varz(self.metrics()), "text/plain; charset=utf-8")

    def vars(self) -> Response:
        """Answer with the metrics as JSON."""
        return _page(vars_json(self.metrics()), "application/json; charset=utf-8")

    async def consistency(self) -> Response:
        """Check the relay: 200 without findings, else 500 with the findings.

        PROTOCOL §6.9.
        """
        assert self.check is not None
        problems = await self.check()
        if problems:
            return text_error(500, ", ".join(problems))
        return _page("derp.Server ConsistencyCheck okay", "text/plain; charset=utf-8")

    def live_traffic(self) -> Response:
        """Answer with an endless stream of the bytes that each connection moves. PROTOCOL §6.10."""
        assert self.traffic is not None
        return Response(200, b"", "text/plain; charset=utf-8", _PAGE_HEADERS, self.traffic())

    def _client_list(self, request: Request) -> Response:
        """Answer with the connected clients. PROTOCOL §22."""
        assert self.clients is not None
        response = self.clients().respond(request)
        if response.status == 200:
            response.headers = _PAGE_HEADERS
        return response

    def index(self, prefix: str = "") -> Response:
        """Answer with the relay's properties and links, below `prefix`, to the other pages."""
        facts = {
            "Uptime": f"{self.process.uptime_s}s",
            "Version": fastderp.__version__,
            "Machine": socket.gethostname(),
            "TLS hostname": self.hostname,
            "Mesh key": str(self.has_mesh_key).lower(),
            "Process": str(os.getpid()),
        }
        links = {"vars": "metrics, JSON", "varz": "metrics, Prometheus"}
        if self.check is not None:
            links["check"] = "consistency check"
        if self.traffic is not None:
            links["traffic"] = "bytes by connection, live"
        if self.clients is not None:
            links["clients/"] = "connected clients"
        rows = [
            f"<li><b>{html_text(name)}:</b> {html_text(value)}</li>"
            for name, value in facts.items()
        ]
        rows += [
            f'<li><a href="{prefix}/debug/{page}">/debug/{page}</a> ({html_text(text)})</li>'
            for page, text in links.items()
        ]
        body = (
            "<!doctype html>\n<title>derp debug</title>\n<h1>derp debug</h1>\n<ul>\n"
            + "\n".join(rows)
            + "\n</ul>\n"
        )
        return Response(200, body.encode(), "text/html; charset=utf-8", SECURITY_HEADERS)


def _page(body: str, content_type: str) -> Response:
    return Response(200, body.encode(), content_type, _PAGE_HEADERS)
