"""HTTP/1.1 messages: request heads in, responses out. PROTOCOL §9.1.

Sans I/O: bytes and values only. llhttp parses the head and is given the head alone, so the bytes
after it (a pipelined login) are untouched.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from urllib.parse import unquote

import httptools

from fastderp.util.text import html_text

# Limit of the head in bytes, for the memory per connection. A real request has under 400.
HEAD_LIMIT_BYTES = 24 * 1024
HEADERS_LIMIT = 100

# The statuses that a relay answers with, and their phrases; `http` has all, and takes 64 KiB.
PHRASES = {
    200: "OK",
    204: "No Content",
    302: "Found",
    307: "Temporary Redirect",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    426: "Upgrade Required",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
}

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

# The answer to a browser's plain request on the TLS port; the connection is closed after it
# (PROTOCOL §9.5).
PLAIN_HTTP_ON_TLS_PORT = (
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
)

# The answer to a login over the limit of the client's address; the connection is closed after it.
TOO_MANY_REQUESTS = (
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 53\r\n"
    b"Connection: close\r\n\r\nToo many connections or logins from this IP address.\n"
)

_HOST = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:%\[\]-]*")
_ENCODED_SLASH = re.compile("%2f", re.IGNORECASE)

# in English in every locale (RFC 9110 §5.6.7)
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
)  # fmt: skip


class BadRequest(Exception):
    """A request head that is refused: answer with `response()`, then close."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason

    def response(self) -> bytes:
        """Return the whole answer, ready to send."""
        line = f"{self.status} {PHRASES[self.status]}"
        return (
            f"HTTP/1.1 {line}\r\n"
            "Content-Type: text/plain; charset=utf-8\r\n"
            "Connection: close\r\n"
            f"\r\n{line}: {self.reason}"
        ).encode()


class Request:
    """One parsed request head.

    Args:
        method: one of METHODS.
        path: percent-decoded except for encoded slashes ("%2F"), without query; "" for CONNECT.
        query: as sent, without the question mark.
        version: "1.0" or "1.1".
        headers: (lower-case name, value) in the order sent.
        keep_alive: whether the client keeps the connection open after the response.
        has_body: whether a body follows the head.
        remote: (ip, port) of the client if known, else of its proxy.
        through_proxy: whether a trusted proxy sent it.
        is_hidden: whether the client's address is unknown.
        prefix: the removed part of the path; links begin with it.
        secure: whether the request came over TLS.
    """

    __slots__ = (
        "has_body", "headers", "is_hidden", "keep_alive", "method", "path", "prefix", "query",
        "remote", "secure", "target", "through_proxy", "version",
    )  # fmt: skip

    def __init__(
        self,
        method: str,
        target: str,
        path: str,
        query: str,
        version: str,
        headers: list[tuple[str, str]],
        *,
        keep_alive: bool = False,
        has_body: bool = False,
        remote: tuple[str, int] = ("", 0),
        secure: bool = False,
    ) -> None:
        self.method: str = method
        self.target: str = target
        self.path: str = path
        self.query: str = query
        self.version: str = version
        self.headers: list[tuple[str, str]] = headers
        self.keep_alive: bool = keep_alive
        self.has_body: bool = has_body
        self.remote: tuple[str, int] = remote
        self.secure: bool = secure
        self.through_proxy: bool = False
        self.is_hidden: bool = False
        self.prefix: str = ""

    def header(self, name: str) -> str:
        """Return the first value of the header `name` (lower case), "" if it is absent."""
        for key, value in self.headers:
            if key == name:
                return value
        return ""

    def strip_prefix(self, prefix: str) -> None:
        """Remove `prefix` ("/x") from the path if the path is below it."""
        if self.path == prefix or self.path.startswith(prefix + "/"):
            self.prefix = prefix
            self.path = self.path.removeprefix(prefix) or "/"

    @property
    def location(self) -> str:
        """Path and query as sent, without scheme and host."""
        path = self.target
        if not path.startswith("/"):
            path = "/" + path.partition("://")[2].partition("/")[2]
        return path.partition("#")[0]


class HeadParser:
    """Reads one request head from pieces of any size. Each request needs a new parser."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._headers: list[tuple[str, str]] = []
        self._target = b""
        self._n_bytes = 0
        self._tail = b""
        self._complete = False
        self._keep_alive = False
        self.rest: bytes = b""

    def feed(self, data: bytes) -> Request | None:
        """Take the next bytes; return the request once its head is complete.

        The bytes after the head are in `rest`.

        Raises BadRequest for anything malformed, oversized or ambiguous (smuggling forms included).
        """
        head, self.rest = self._split_behind_head(data)
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

    def _split_behind_head(self, data: bytes) -> tuple[bytes, bytes]:
        """Split `data` after the empty line, which may begin in an earlier piece."""
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
        # The parser strips the space before a value, not the space after it.
        self._headers.append(
            (name.decode("latin-1").lower(), value.rstrip(b" \t").decode("latin-1"))
        )

    def on_headers_complete(self) -> None:
        self._complete = True
        # llhttp resets it at the end of the message.
        self._keep_alive = self._parser.should_keep_alive()


def _split_target(target: bytes) -> tuple[str, str]:
    """Return (decoded path, raw query) of a target in origin form or absolute form.

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


class Response:
    """An answer with a short body, or with an endless one in `pieces`.

    The connection ends after an endless body, and with `close`.
    """

    __slots__ = ("body", "close", "content_type", "headers", "pieces", "status")

    def __init__(
        self,
        status: int = 200,
        body: bytes = b"",
        content_type: str = "",
        headers: tuple[tuple[str, str], ...] = (),
        pieces: AsyncIterator[bytes] | None = None,
        close: bool = False,
    ) -> None:
        self.status: int = status
        self.body: bytes = body
        self.content_type: str = content_type
        self.headers: tuple[tuple[str, str], ...] = headers
        self.pieces: AsyncIterator[bytes] | None = pieces
        self.close: bool = close

    def encode(self, request: Request, close: bool) -> bytes:
        """Return the bytes to send, without a body for HEAD.

        `close` is whether the connection ends after them.
        """
        lines = [f"HTTP/{request.version} {self.status} {PHRASES[self.status]}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.content_type:
            lines.append(f"Content-Type: {self.content_type}")
        lines.append(f"Date: {_http_date(int(time.time()))}")
        if self.status != 204 and self.pieces is None:
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
        t = time.gmtime(now_s)
        day = f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year:04}"
        _date = (now_s, f"{day} {t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT")
    return _date[1]


def text_error(status: int, message: str) -> Response:
    """Return a plain-text error: the message and a newline."""
    return Response(
        status,
        message.encode() + b"\n",
        "text/plain; charset=utf-8",
        (("X-Content-Type-Options", "nosniff"),),
    )


def not_found(request: Request) -> Response:
    """Answer a request for an unknown path."""
    return text_error(404, "404 page not found")


def redirect(request: Request, status: int, location: str) -> Response:
    """Return a redirect, for GET and HEAD with a page that links the target."""
    where = (("Location", location),)
    if request.method not in ("GET", "HEAD"):
        return Response(status, headers=where)
    body = f'<a href="{html_text(location)}">{PHRASES[status]}</a>.\n\n'.encode()
    return Response(status, body, "text/html; charset=utf-8", where)
