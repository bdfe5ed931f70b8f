"""HTTP/1.1 for a relay: request heads in, responses and the derp upgrade out, and who answers which path.

Sans I/O: bytes and values only; the listener owns sockets and time. PROTOCOL §9.1–§9.5, §9.8. llhttp does the parsing, and is given the
head alone, so whatever follows it (a pipelined login) stays exactly as it came.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from html import escape
from http import HTTPStatus
from urllib.parse import unquote

import httptools

from fastderp.server.http import pages
from fastderp.wire.protocol import PROTOCOL_VERSION

# One attacker's share of memory: a real request is under 400 bytes.
HEAD_LIMIT_BYTES = 24 * 1024
HEADERS_LIMIT = 100
# Upgrades remembered by their bytes: a few kinds of clients, under the relay's few names.
KNOWN_HEADS = 64
KNOWN_HEAD_BYTES = 512

METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}
)

SECURITY_HEADERS = (
    ("Strict-Transport-Security", "max-age=63072000; includeSubDomains"),
    (
        "Content-Security-Policy",
        "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'; "
        "block-all-mixed-content; object-src 'none'",
    ),
    ("X-Frame-Options", "DENY"),
    ("X-Content-Type-Options", "nosniff"),
)
NO_CACHE = ("Cache-Control", "no-cache, no-store, must-revalidate, no-transform, max-age=0")

# What a browser's plain request to the TLS port is told, before the connection is closed (PROTOCOL §9.5).
PLAIN_HTTP_ON_TLS_PORT = (
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
)

_HOST = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:%\[\]-]*")
_ENCODED_SLASH = re.compile("%2f", re.IGNORECASE)
_CHALLENGE = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class BadRequest(Exception):
    """A request head that is refused: answer with `response()`, then close."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason

    def response(self) -> bytes:
        """Build the whole answer, ready to send."""
        line = f"{self.status} {HTTPStatus(self.status).phrase}"
        return (
            f"HTTP/1.1 {line}\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n{line}: {self.reason}"
        ).encode()


@dataclass(slots=True)
class Request:
    """One parsed request head.

    Args:
        method: one of METHODS.
        path: percent-decoded except for encoded slashes ("%2F"), without query; "" for CONNECT.
        query: as sent, without the question mark.
        version: "1.0" or "1.1".
        headers: (lower-case name, value) in the order sent.
        keep_alive: whether the client lets the connection live after the response.
        has_body: whether a body follows the head.
        remote: (ip, port) of the TCP peer.
        secure: whether it came over TLS.
    """

    method: str
    target: str
    path: str
    query: str
    version: str
    headers: list[tuple[str, str]]
    keep_alive: bool = False
    has_body: bool = False
    remote: tuple[str, int] = ("", 0)
    secure: bool = False

    def header(self, name: str) -> str:
        """Return the first value of the header `name` (lower case), "" when there is none."""
        for key, value in self.headers:
            if key == name:
                return value
        return ""

    @property
    def location(self) -> str:
        """Path and query as sent, without scheme and host."""
        path = self.target
        if not path.startswith("/"):
            path = "/" + path.partition("://")[2].partition("/")[2]
        return path.partition("#")[0]


class HeadParser:
    """Reads one request head from pieces of any size; use a new one for each request."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._headers: list[tuple[str, str]] = []
        self._target = b""
        self._n_bytes = 0
        self._tail = b""
        self._complete = False
        self._keep_alive = False
        self.rest = b""

    def feed(self, data: bytes) -> Request | None:
        """Take the next bytes; return the request once its head is complete, with what follows in `rest`.

        Raises BadRequest for anything malformed, oversized or ambiguous (smuggling forms included).
        """
        head, self.rest = self._up_to_the_end_of_head(data)
        ends = self._tail == b"\r\n\r\n"
        if self._n_bytes == 0 and head[:1] in (b"\r", b"\n"):
            raise BadRequest(400, "empty request line")
        self._n_bytes += len(head)
        if self._n_bytes > HEAD_LIMIT_BYTES:
            raise BadRequest(431, f"more than {HEAD_LIMIT_BYTES} bytes")
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserCallbackError as error:
            raise (
                error.__context__ if isinstance(error.__context__, BadRequest) else error
            ) from None
        except httptools.HttpParserError as error:
            raise BadRequest(400, str(error)) from None
        if not ends:
            return None
        if not self._complete:
            raise BadRequest(400, "malformed head")
        return self._request()

    def _up_to_the_end_of_head(self, data: bytes) -> tuple[bytes, bytes]:
        """Split `data` behind the empty line, which may have begun in an earlier piece."""
        window = self._tail + data
        end = window.find(b"\r\n\r\n")
        if end < 0:
            self._tail = window[-3:]
            return data, b""
        cut = end + 4 - len(self._tail)
        self._tail = b"\r\n\r\n"
        return data[:cut], data[cut:]

    def _request(self) -> Request:
        parser = self._parser
        method = parser.get_method().decode("ascii")
        version = parser.get_http_version()
        if method not in METHODS or version not in ("1.0", "1.1"):
            raise BadRequest(400, "unsupported method or version")
        self._check_host(version)
        path, query = "", ""
        if method != "CONNECT":
            path, query = _split_target(self._target)
        return Request(
            method=method,
            target=self._target.decode("latin-1"),
            path=path,
            query=query,
            version=version,
            headers=self._headers,
            keep_alive=self._keep_alive,
            has_body=self._announces_body(),
        )

    def _announces_body(self) -> bool:
        for name, value in self._headers:
            if name == "transfer-encoding" or (name == "content-length" and value.strip("0")):
                return True
        return False

    def _check_host(self, version: str) -> None:
        hosts = [value for name, value in self._headers if name == "host"]
        if len(hosts) > 1:
            raise BadRequest(400, "too many Host headers")
        if not hosts and version == "1.1":
            raise BadRequest(400, "missing required Host header")
        if hosts and not _HOST.fullmatch(hosts[0]):
            raise BadRequest(400, "malformed Host header")

    # llhttp's callbacks

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._headers) >= HEADERS_LIMIT:
            raise BadRequest(431, f"more than {HEADERS_LIMIT} headers")
        # The parser strips the space before a value, not the space behind it.
        self._headers.append(
            (name.decode("latin-1").lower(), value.rstrip(b" \t").decode("latin-1"))
        )

    def on_headers_complete(self) -> None:
        self._complete = True
        # Asked here because llhttp forgets it once the message is complete.
        self._keep_alive = self._parser.should_keep_alive()


def _split_target(target: bytes) -> tuple[str, str]:
    """Return (decoded path, raw query) of an origin-form or absolute-form target.

    An encoded slash separates no segments and stays encoded: "/derp%2fprobe" is not "/derp/probe".
    """
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        raise BadRequest(400, "malformed request target") from None
    path = (url.path or b"/").decode("latin-1")
    if "%" in path:
        path = "%2F".join(unquote(part, errors="replace") for part in _ENCODED_SLASH.split(path))
    return path, (url.query or b"").decode("latin-1")


@dataclass(slots=True)
class Response:
    """An answer with a short body, or with an endless one in pieces: then the connection ends with it, as with `close`."""

    status: int = 200
    body: bytes = b""
    content_type: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    pieces: AsyncIterator[bytes] | None = None
    close: bool = False

    def encode(self, request: Request, close: bool) -> bytes:
        """Build the bytes to send: no body for HEAD; says what becomes of the connection."""
        lines = [f"HTTP/{request.version} {self.status} {HTTPStatus(self.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.content_type:
            lines.append(f"Content-Type: {self.content_type}")
        lines.append(f"Date: {_http_date(int(time.time()))}")
        if self.status not in (204, 304) and self.pieces is None:
            lines.append(f"Content-Length: {len(self.body)}")
        if request.version == "1.0" and not close:
            lines.append("Connection: keep-alive")
        elif self.close or (close and request.version != "1.0"):
            lines.append("Connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        return head if request.method == "HEAD" else head + self.body


_date: tuple[int, str] = (0, "")


def _http_date(now_s: int) -> str:
    """Format the time, once per second."""
    global _date
    if _date[0] != now_s:
        _date = (now_s, formatdate(now_s, usegmt=True))
    return _date[1]


def text_error(status: int, message: str) -> Response:
    """Build a plain-text error: the message and a newline."""
    return Response(
        status,
        message.encode() + b"\n",
        "text/plain; charset=utf-8",
        (("X-Content-Type-Options", "nosniff"),),
    )


def redirect(request: Request, status: int, location: str) -> Response:
    """Build a redirect with a link for those who do not follow it."""
    where = (("Location", location),)
    if request.method not in ("GET", "HEAD"):
        return Response(status, headers=where)
    body = f'<a href="{escape(location)}">{HTTPStatus(status).phrase}</a>.\n\n'.encode()
    return Response(status, body, "text/html; charset=utf-8", where)


# The derp upgrade


@dataclass(slots=True, frozen=True)
class Upgrade:
    """What an upgrade request asks for: no response head, and the flag of a client away from its first node."""

    fast_start: bool
    not_ideal: bool


def derp_upgrade(request: Request) -> Upgrade | None:
    """Read the upgrade out of a request for `/derp`; None when it is none.

    As lenient as the reference: neither `Connection`, GET nor HTTP/1.1 is asked for. A WebSocket with a derp subprotocol is not a raw
    upgrade. PROTOCOL §9.3.
    """
    if request.header("upgrade").lower() not in ("derp", "websocket") or wants_websocket(request):
        return None
    return Upgrade(
        fast_start=request.header("derp-fast-start") == "1",
        not_ideal=bool(request.header("ideal-node")),
    )


def wants_websocket(request: Request) -> bool:
    """Whether a request for `/derp` opens a WebSocket. Without a derp subprotocol it does not: ancient clients say so and mean a raw upgrade."""
    return request.header("upgrade").lower() == "websocket" and "derp" in request.header(
        "sec-websocket-protocol"
    )


class KnownUpgrades:
    """Upgrade requests as they came, so that what clients of one kind all say alike is parsed once.

    Bounded, the oldest goes first: whoever asks in ever new words only has everybody's parsed.
    """

    __slots__ = ("_upgrades",)

    def __init__(self) -> None:
        self._upgrades: dict[bytes, Upgrade] = {}

    def find(self, data: bytes) -> tuple[Upgrade, bytes] | None:
        """Return the upgrade that `data` begins with, and what is behind it; None when its head was not seen before."""
        end = data.find(b"\r\n\r\n") + 4
        upgrade = self._upgrades.get(data[:end])
        return None if upgrade is None else (upgrade, data[end:])

    def remember(self, head: bytes, upgrade: Upgrade) -> None:
        """Keep what a whole head asks for."""
        if len(head) <= KNOWN_HEAD_BYTES:
            if len(self._upgrades) >= KNOWN_HEADS:
                del self._upgrades[next(iter(self._upgrades))]
            self._upgrades[head] = upgrade


def switching_protocols(server_key_hex: str) -> bytes:
    """Build the 101 response: these headers, this order, no others (PROTOCOL §9.3)."""
    return (
        "HTTP/1.1 101 Switching Protocols\r\n"
        "Upgrade: DERP\r\n"
        "Connection: Upgrade\r\n"
        f"Derp-Version: {PROTOCOL_VERSION}\r\n"
        f"Derp-Public-Key: {server_key_hex}\r\n"
        "\r\n"
    ).encode("ascii")


# Who answers what

Handler = Callable[[Request], Response | Awaitable[Response]]
"""Answers at once, or when it has found out; the connection waits for the second kind and ends with its answer."""


@dataclass(slots=True)
class Site:
    """What the operator chose about the pages.

    Args:
        hostname: the name of this relay, "" when unknown.
        derp: False for a decommissioned relay: `/derp` says so, the rest stays.
        home: "" for our page, "blank", or an http(s) URL to send visitors to.
        debug_allowed: whether a request may see the debug pages.
    """

    hostname: str = ""
    derp: bool = True
    home: str = ""
    debug_allowed: Callable[[Request], bool] = lambda request: False

    def __post_init__(self) -> None:
        if self.home not in ("", "blank") and not self.home.startswith(("http://", "https://")):
            raise ValueError(f'unknown --home value "{self.home}"')


@dataclass(slots=True)
class Routes:
    """A table of exact paths, prefixes (the longest wins) and one answer for everything else.

    `derp` says whether `/derp` may be upgraded here.
    """

    fallback: Handler
    derp: bool = False
    exact: dict[str, Handler] = field(default_factory=dict)
    prefixes: dict[str, Handler] = field(default_factory=dict)

    def respond(self, request: Request) -> Response | Awaitable[Response]:
        """Answer a request that is not an upgrade."""
        if request.method == "CONNECT":
            return refuse_connect(request)
        handler = self.exact.get(request.path)
        if handler is None and self.prefixes:
            matching = [prefix for prefix in self.prefixes if request.path.startswith(prefix)]
            handler = self.prefixes[max(matching, key=len)] if matching else None
        return (handler or self.fallback)(request)


# What load balancers and scrapers ask for. The home page's 200 would tell them that it exists.
PROBED_PATHS = ("/healthz", "/readyz", "/metrics")


def relay_routes(site: Site) -> Routes:
    """Build the table of the main listener (PROTOCOL §9.2); add the debug pages under the prefix "/debug/"."""
    return Routes(
        fallback=lambda request: home(site, request),
        derp=site.derp,
        exact={
            "/derp": upgrade_required
            if site.derp
            else lambda request: text_error(404, "derp server disabled"),
            "/derp/probe": probe,
            "/derp/latency-check": probe,
            "/generate_204": generate_204,
            "/robots.txt": robots,
            pages.STYLE_PATH: stylesheet,
            "/debug": to_debug,
            **dict.fromkeys(PROBED_PATHS, not_found),
        },
        prefixes={"/debug/": not_found},
    )


def http_port_routes(site: Site, relay: Routes) -> Routes:
    """Build the table of the plain port beside a TLS one: the captive-portal check, debug pages, and the way to https (PROTOCOL §9.5)."""
    return Routes(
        fallback=lambda request: to_https(site, request),
        exact={"/generate_204": generate_204},
        prefixes={"/debug": relay.respond},
    )


def upgrade_required(request: Request) -> Response:
    """Answer a request for /derp that asks for no upgrade we have."""
    return text_error(426, "DERP requires connection upgrade")


def not_found(request: Request) -> Response:
    """Answer a path that has no page."""
    return text_error(404, "404 page not found")


def probe(request: Request) -> Response:
    """Answer the latency probes of clients and browsers."""
    if request.method not in ("GET", "HEAD"):
        return text_error(405, "bogus probe method")
    return Response(headers=(("Access-Control-Allow-Origin", "*"),))


def generate_204(request: Request) -> Response:
    """Answer a captive-portal check, proving with its challenge that it reached a relay (PROTOCOL §9.4)."""
    challenge = request.header("x-tailscale-challenge")
    headers = [NO_CACHE]
    if _CHALLENGE.fullmatch(challenge):
        headers.append(("X-Tailscale-Response", f"response {challenge}"))
    return Response(204, headers=tuple(headers))


def robots(request: Request) -> Response:
    """Ask crawlers to stay away."""
    return Response(
        200, b"User-agent: *\nDisallow: /\n", "text/plain; charset=utf-8", SECURITY_HEADERS
    )


def to_debug(request: Request) -> Response:
    """Send a visitor on to the debug pages, with the key that lets them in if they have brought one (PROTOCOL §9.7)."""
    return redirect(request, 307, f"/debug/?{request.query}" if request.query else "/debug/")


def stylesheet(request: Request) -> Response:
    """Serve the home page's style: a file of its own because the security policy allows none inline."""
    return Response(200, pages.STYLE, "text/css; charset=utf-8", SECURITY_HEADERS)


def home(site: Site, request: Request) -> Response:
    """Answer every path nobody else claims."""
    if site.home == "blank":
        return Response(200, b"", "text/html; charset=utf-8", SECURITY_HEADERS)
    if site.home:
        moved = redirect(request, 302, site.home)
        return Response(
            moved.status, moved.body, moved.content_type, SECURITY_HEADERS + moved.headers
        )
    body = pages.home(site.hostname, disabled=not site.derp, debug=site.debug_allowed(request))
    return Response(200, body, "text/html; charset=utf-8", SECURITY_HEADERS)


def to_https(site: Site, request: Request) -> Response:
    """Send a browser from the plain port to the same page over TLS."""
    if request.method not in ("GET", "HEAD"):
        return text_error(400, "Use HTTPS")
    host = request.header("host") or site.hostname
    if not host:
        return text_error(400, "Use HTTPS")
    location = request.location
    if location == "/" and site.debug_allowed(request):
        location = "/debug/"
    return redirect(request, 302, f"https://{host}{location}")


def refuse_connect(request: Request) -> Response:
    """Refuse to be a forward proxy (PROTOCOL §9.8)."""
    return text_error(403, "CONNECT not enabled") if request.secure else not_found(request)
