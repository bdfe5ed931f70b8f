"""The HTTP part of a connection: requests in, an action for each out. PROTOCOL §9.

Sans I/O: it parses, asks the routes and builds responses. Loop thread only.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, NamedTuple

from fastderp.server.accept.context import AcceptContext
from fastderp.server.http.client_address import Origin
from fastderp.server.http.message import (
    BadRequest,
    HeadParser,
    Request,
    Response,
    text_error,
)
from fastderp.server.http.pages import DRAINING
from fastderp.server.http.upgrade import Upgrade, derp_upgrade, wants_websocket
from fastderp.server.observe.supervisor import supervisor

if TYPE_CHECKING:
    from fastderp.server.accept.websocket import Opening
    from fastderp.server.http.tunnel import Target

log: logging.Logger = logging.getLogger("fastderp")

# Memory of the parser of an incomplete request: the parser, and 180 bytes of Python objects for
# each of up to 100 headers of at least 4 bytes.
PARSER_BYTES = 1024
HEADER_FACTOR = 45
HEADERS_BYTES = 18 * 1024
# The first byte of a TLS connection; no HTTP request begins with it.
TLS_HANDSHAKE = 0x16


class Reply(NamedTuple):
    """Send `data`, then close or wait for the next request."""

    data: bytes
    close: bool


class Page(NamedTuple):
    """Send `head` and each of `chunks` when it is available, then close."""

    head: bytes
    chunks: AsyncIterator[bytes]


class Reject(NamedTuple):
    """Count and log a request that breaks the rules, send `data`, and close."""

    status: int
    reason: str
    data: bytes


class StartLogin(NamedTuple):
    """Change the connection to DERP."""

    upgrade: Upgrade


class StartWebSocket(NamedTuple):
    """Change the connection to WebSocket with DERP in its messages."""

    opening: Opening


class StartTunnel(NamedTuple):
    """Connect to `target`; `HttpSession.tunnel_failed` answers when that fails."""

    request: Request
    target: Target


Action = Reply | Page | Reject | StartLogin | StartWebSocket | StartTunnel


class HttpSession:
    """Parses the plain bytes of one connection until another protocol follows HTTP.

    Args:
        context: the routes and settings that the listener's connections share.
        origin: the client's address and the proxies before it.
        tls_version: "1.2", "1.3", or "" without TLS.
    """

    __slots__ = (
        "_connection_origin",
        "_context",
        "_head",
        "_n_head",
        "_tls_version",
        "_unread",
        "origin",
    )

    def __init__(self, context: AcceptContext, origin: Origin, tls_version: str) -> None:
        self._context = context
        self._connection_origin = origin
        # the origin of the last request: one connection of a proxy may carry several clients'
        # requests
        self.origin: Origin = origin
        self._tls_version = tls_version
        self._head: HeadParser | None = None
        self._n_head = 0
        self._unread = b""

    @property
    def is_in_request(self) -> bool:
        """Whether a request is incomplete."""
        return self._head is not None

    @property
    def held_bytes(self) -> int:
        """The memory that the client's bytes take."""
        if self._head is None:
            return len(self._unread)
        headers = min(HEADER_FACTOR * self._n_head, HEADERS_BYTES)
        return len(self._unread) + PARSER_BYTES + self._n_head + headers

    @property
    def has_input(self) -> bool:
        """Whether there are bytes that `next_action` has not parsed."""
        return bool(self._unread)

    def feed(self, data: bytes) -> None:
        """Add bytes of the client."""
        self._unread = self._unread + data if self._unread else data

    def take_rest(self) -> bytes:
        """Return the bytes after the last request, which belong to another protocol."""
        rest, self._unread = self._unread, b""
        return rest

    def next_action(self) -> Action | None:
        """Return the action for the next request; None while it is incomplete."""
        data, self._unread = self._unread, b""
        known = None
        # Heads from a proxy contain the client's address, so caching them is useless.
        refuses_logins = self._context.registrar.refuses_logins
        if self._head is None and not self.origin.through_proxy and not refuses_logins:
            known = self._context.known_upgrades.find(data)
        if known is None:
            return self._parse(data)
        upgrade, self._unread = known
        if self._tls_version:
            self._context.registrar.connection_log.note_request(self._tls_version)
        return StartLogin(upgrade)

    def tunnel_failed(self, request: Request) -> Action:
        """Answer a CONNECT whose target cannot be reached."""
        return self._reply(request, text_error(502, "Connect failure"))

    def _parse(self, data: bytes) -> Action | None:
        is_whole = self._head is None
        if is_whole and data[0] == TLS_HANDSHAKE:
            error = BadRequest(400, "the client speaks TLS on a plain HTTP port")
            return Reject(error.status, error.reason, error.response())
        head = self._head = self._head or HeadParser()
        try:
            request = head.feed(data)
        except BadRequest as error:
            reason = (is_whole and _proxy_header_error(data)) or error.reason
            return Reject(error.status, reason, error.response())
        if request is None:
            self._n_head += len(data)
            return None
        self._unread = head.rest
        self._head = None
        self._n_head = 0
        return self._answer(request, data[: len(data) - len(head.rest)] if is_whole else b"")

    def _answer(self, request: Request, head: bytes) -> Action:
        """Answer a request; `head` is its bytes, if they came in one piece."""
        proxies = self._context.proxies
        self.origin = self._connection_origin.of_request(request.headers, proxies.trusted)
        request.remote = self.origin.address
        request.through_proxy = self.origin.through_proxy
        request.is_hidden = self.origin.is_hidden
        if proxies.path_prefix:
            request.strip_prefix(proxies.path_prefix)
        request.secure = bool(self._tls_version)
        if self._tls_version:
            self._context.registrar.connection_log.note_request(self._tls_version)
        if request.method == "CONNECT" and self._context.tunnels is not None:
            from fastderp.server.http.tunnel import Target

            target = Target.parse(request.target)
            if target is None:
                return self._reply(request, text_error(403, "Invalid CONNECT target"))
            return StartTunnel(request, target)
        if request.path == "/derp" and self._context.routes.derp:
            if self._context.registrar.refuses_logins:
                response = text_error(503, DRAINING)
                return Reject(503, DRAINING, response.encode(request, close=True))
            opened = self._open_derp(request, head)
            if opened is not None:
                return opened
        return self._page(request)

    def _open_derp(self, request: Request, head: bytes) -> Action | None:
        """Answer a request for /derp that is an upgrade."""
        upgrade = derp_upgrade(request)
        if upgrade is not None:
            if head and not self.origin.through_proxy:
                self._context.known_upgrades.remember(head, upgrade)
            return StartLogin(upgrade)
        if wants_websocket(request):
            return self._open_websocket(request)
        if odd := request.header("upgrade"):
            self._context.registrar.connection_log.note_odd_upgrade(self.origin.address, odd)
        elif self.origin.through_proxy:
            self._context.registrar.connection_log.note_lost_upgrade(self.origin.address)
        return None

    def _open_websocket(self, request: Request) -> Action:
        # Imported on use, because it loads the library.
        from fastderp.server.accept import websocket

        opening = websocket.accept(request)
        if isinstance(opening, Response):
            return self._reply(request, opening)
        return StartWebSocket(opening)

    def _page(self, request: Request) -> Action:
        try:
            answer = self._context.routes.respond(request)
        except Exception as error:
            answer = _internal_error(request, error)
        if isinstance(answer, Response):
            return self._reply(request, answer)
        return Page(b"", _answer_later(request, answer))

    def _reply(self, request: Request, response: Response) -> Action:
        close = response.close or response.pieces is not None
        close = close or not request.keep_alive or request.has_body or request.method == "CONNECT"
        data = response.encode(request, close)
        if response.pieces is not None and request.method != "HEAD":
            return Page(data, response.pieces)
        return Reply(data, close)


async def _answer_later(request: Request, answer: Awaitable[Response]) -> AsyncIterator[bytes]:
    try:
        response = await answer
    except Exception as error:
        response = _internal_error(request, error)
    yield response.encode(request, close=True)


def _proxy_header_error(data: bytes) -> str:
    # Imported on use: most relays have no proxy.
    from fastderp.server.accept.proxy_header import unexpected_header

    return unexpected_header(data)


def _internal_error(request: Request, error: Exception) -> Response:
    """Log the exception of a handler; return the response for an internal error."""
    # The query may have the key of the debug pages.
    target = request.target.partition("?")[0]
    supervisor.note("page", error, f"no answer to {request.method} {target!a}")
    return text_error(500, "internal server error")
