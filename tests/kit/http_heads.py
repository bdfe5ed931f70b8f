"""Parse request heads and split encoded responses without sockets."""

from __future__ import annotations

from collections.abc import Awaitable

from fastderp.server.http.message import HeadParser, Request, Response

HOST = b"Host: derp.example.com\r\n"


def parse(raw: bytes) -> tuple[Request, bytes]:
    """Parse one complete head; return it and the bytes that follow."""
    parser = HeadParser()
    request = parser.feed(raw)
    assert request is not None
    return request, parser.rest


def get(
    path: str, *headers: str, method: str = "GET", version: str = "1.1", secure: bool = False
) -> Request:
    """Parse a small request."""
    lines = [f"{method} {path} HTTP/{version}", "Host: derp.example.com", *headers, "", ""]
    request, rest = parse("\r\n".join(lines).encode("latin-1"))
    assert rest == b""
    request.secure = secure
    return request


def at_once(response: Response | Awaitable[Response]) -> Response:
    """Return the response of a page that computes it without waiting."""
    assert isinstance(response, Response)
    return response


def fields(encoded: bytes) -> tuple[str, dict[str, str], bytes]:
    """Split an encoded response into status line, headers and body."""
    head, _, body = encoded.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body
