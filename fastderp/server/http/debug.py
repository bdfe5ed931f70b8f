"""The pages under `/debug/`: access rules, index, counters. PROTOCOL §9.7.

Content only: `fastderp.server.http.routes` has their paths.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, urlencode

import fastderp
from fastderp.errors import ConfigError
from fastderp.server.http.document import document
from fastderp.server.http.message import (
    SECURITY_HEADERS,
    Request,
    Response,
    not_found,
    redirect,
    text_error,
)
from fastderp.server.observe.process_metrics import Process
from fastderp.server.observe.values import Value
from fastderp.util import files
from fastderp.util.net import IpAddress, IpNetwork, client_ip
from fastderp.util.text import html_text

if TYPE_CHECKING:
    from fastderp.server.http.clients import ClientsPage

# https://prometheus.io/docs/instrumenting/exposition_formats/
PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"

_TAILSCALE_IPV4 = ipaddress.ip_network("100.64.0.0/10")
# Inside the range above, but not Tailscale's.
_CHROMEOS_IPV4 = ipaddress.ip_network("100.115.92.0/23")
_TAILSCALE_IPV6 = ipaddress.ip_network("fd7a:115c:a1e0::/48")

# A request with one of these comes through a proxy, whose clients may be anyone.
_FORWARDING_HEADERS = frozenset(("forwarded", "via", "x-forwarded-for", "x-real-ip"))

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
    extra_ip: IpAddress | None = None
    trusted: tuple[IpNetwork, ...] = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> DebugAccess:
        """Read the three variables.

        Raises ConfigError when an address or network in them is malformed.
        """
        key_path = environment.get("TS_DEBUG_KEY_PATH", "")
        extra_ip = environment.get("TS_ALLOW_DEBUG_IP", "")
        trusted = environment.get("TS_DEBUG_TRUSTED_CIDRS", "")
        variable = "TS_ALLOW_DEBUG_IP"
        try:
            address = ipaddress.ip_address(extra_ip) if extra_ip else None
            variable = "TS_DEBUG_TRUSTED_CIDRS"
            return cls(
                key_path=Path(key_path) if key_path else None,
                extra_ip=address,
                trusted=tuple(
                    ipaddress.ip_network(text.strip(), strict=False)
                    for text in trusted.split(",")
                    if text.strip()
                ),
            )
        except ValueError as error:
            raise ConfigError(f"${variable}: {error}") from None

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
            name in _FORWARDING_HEADERS and value for name, value in request.headers
        ):
            return False
        source = client_ip(request.remote[0])
        if source is None or (request.through_proxy and source.is_loopback):
            return False
        return self._trusts(source)

    def _has_key(self, request: Request) -> bool:
        if self.key_path is None or request.method != "GET":
            return False
        if not (offered := _debug_key(request).encode("utf-8", "surrogateescape")):
            return False
        try:
            key = files.read(self.key_path).strip()
        except OSError:
            return False
        import hmac

        return bool(key) and hmac.compare_digest(key, offered)

    @property
    def key_fault(self) -> str:
        """Why no key gives access at present, although there is a key_path; "" otherwise."""
        if self.key_path is None:
            return ""
        try:
            return "" if files.read(self.key_path).strip() else f"{self.key_path} is empty"
        except OSError as error:
            return f"{self.key_path}: {error.strerror}"

    def _trusts(self, source: IpAddress) -> bool:
        if source.is_loopback or source == self.extra_ip:
            return True
        if source in _TAILSCALE_IPV6 or (
            source in _TAILSCALE_IPV4 and source not in _CHROMEOS_IPV4
        ):
            return True
        return any(source in network for network in self.trusted)


class DebugPages:
    """The debug pages of one relay; a page whose argument is None does not exist.

    Args:
        values: collects the metrics under the names of `metrics.METRICS`, without the process's.
        check: compares the relay's tables and returns its findings.
        traffic: yields lines with the bytes that each connection moves.
        clients: returns the page of clients, whose code it loads when it is called.
        access: decides which requests are answered; None answers all that reach the pages.
        hostname: the TLS host name, for the index.
        has_mesh_key: whether the relay is in a region with others, for the index.
        dev: add the client's address to a refusal.
    """

    def __init__(
        self,
        values: Callable[[], Mapping[str, Value]],
        *,
        check: Callable[[], Awaitable[list[str]]] | None = None,
        traffic: Callable[[], AsyncIterator[bytes]] | None = None,
        clients: Callable[[], ClientsPage] | None = None,
        access: DebugAccess | None = DebugAccess(),
        hostname: str = "",
        has_mesh_key: bool = False,
        dev: bool = False,
    ) -> None:
        self.values: Callable[[], Mapping[str, Value]] = values
        self.check: Callable[[], Awaitable[list[str]]] | None = check
        self.traffic: Callable[[], AsyncIterator[bytes]] | None = traffic
        self.clients: Callable[[], ClientsPage] | None = clients
        self.access: DebugAccess | None = access
        self.hostname: str = hostname
        self.has_mesh_key: bool = has_mesh_key
        self.dev: bool = dev
        self.process: Process = Process()

    def allows(self, request: Request) -> bool:
        """Return whether a request gets the pages."""
        return self.access is None or self.access.allows(request)

    def scrape(self, request: Request) -> Response:
        """Answer Prometheus at `/metrics`; for strangers the page does not exist."""
        if not self.allows(request):
            return not_found(request)
        return self._varz(PROMETHEUS_TEXT)

    def respond(self, request: Request) -> Response | Awaitable[Response]:
        """Answer a request for `/debug/` or below."""
        page = request.path.removeprefix("/debug/")
        if not self.allows(request):
            hint = (
                f"; this is {request.remote[0]}, allow it with TS_ALLOW_DEBUG_IP"
                if self.dev and page
                else ""
            )
            return text_error(403, "debug access denied" + hint)
        pages: dict[str, Callable[[], Response | Awaitable[Response]]]
        pages = {"": partial(self.index, request), "vars": self.vars, "varz": self.varz}
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
        return self._varz("text/plain; charset=utf-8")

    def _varz(self, content_type: str) -> Response:
        from fastderp.server.observe.metrics import varz

        return _page(varz(self.metrics()), content_type)

    def vars(self) -> Response:
        """Answer with the metrics as JSON."""
        from fastderp.server.observe.metrics import vars_json

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

    def index(self, request: Request) -> Response:
        """Answer with the relay's properties and links to the other pages."""
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
        base = f"{request.prefix}/debug/"
        key = _debug_key(request)
        query = f"?{urlencode({'debugkey': key})}" if key else ""
        rows = [f"<dt>{html_text(name)}<dd>{html_text(value)}" for name, value in facts.items()]
        rows += [
            f'<dt><a href="{base}{page}{query}">/debug/{page}</a><dd>{text}'
            for page, text in links.items()
        ]
        body = "\n".join(["<h1>derp debug</h1>", "<dl>", *rows, "</dl>"])
        page = document("derp debug", body, request.prefix, kind="debug")
        return Response(200, page, "text/html; charset=utf-8", SECURITY_HEADERS)


def _debug_key(request: Request) -> str:
    return parse_qs(request.query).get("debugkey", [""])[0]


def _page(body: str, content_type: str) -> Response:
    return Response(200, body.encode(), content_type, _PAGE_HEADERS)
