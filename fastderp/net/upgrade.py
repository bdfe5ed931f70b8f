"""The client's HTTP request that turns a connection into DERP (PROTOCOL §9.3, §13)."""

from __future__ import annotations

import asyncio
import re

from fastderp.errors import DialError, ProtocolError
from fastderp.net.stream import Stream

_MAX_HEAD_SIZE = 64 << 10
_BODY_SHOWN_SIZE = 200
_REFUSAL_SIZE = 4 << 10  # of an answer's head and the shown body
_BODY_TIMEOUT_S = 0.5
USER_AGENT = "fastderp"
_HOST = re.compile("[!-~]*")
_UNPRINTABLE = re.compile("[^ -~]")


async def upgrade(
    stream: Stream, *, host: str, path: str, ideal_node: str = "", fast_start: bool = False
) -> None:
    """Request DERP and, unless `fast_start`, wait for the relay's 101.

    Args:
        stream: the connection to the relay.
        host: for the Host header.
        path: of the request, with its query.
        ideal_node: name of the node that the client would prefer; "" for this one. Its characters
            that are not valid in a header are sent as "?": relays only count such clients.
        fast_start: the relay answers with DERP at once, without a 101.

    Raises DialError for any other answer than 101, and for a host from a DERP map that is not valid
    in a header.
    """
    headers = {
        "Host": host_header(host),
        "User-Agent": USER_AGENT,
        "Connection": "Upgrade",
        "Upgrade": "DERP",
    }
    if ideal_node:
        headers["Ideal-Node"] = _UNPRINTABLE.sub("?", ideal_node)
    if fast_start:
        headers["Derp-Fast-Start"] = "1"
    lines = [
        f"GET {path} HTTP/1.1",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    stream.write("\r\n".join([*lines, "", ""]).encode())
    await stream.drain()
    if not fast_start:
        await _expect_101(stream)


def host_header(host: str) -> str:
    """Return a host that is valid in the Host header. Raises DialError for any other."""
    if not _HOST.fullmatch(host):
        raise DialError(f"the Host header cannot hold {host!r}")
    return host


def refusal(status: str, body: bytes) -> DialError:
    """Return the error for another answer than 101, with the beginning of its text."""
    # The error quotes the text as a literal, because it comes from the peer and may be logged.
    text = body[:_BODY_SHOWN_SIZE].decode("utf-8", "replace").strip()
    return DialError(f"the relay answered {status[:100]!r}" + (f": {text!r}" if body else ""))


def refused_fast_start(data: bytes | memoryview) -> ProtocolError | None:
    """Return the error for an HTTP answer where the relay's frames were expected; None for frames.

    `data` begins with the first bytes of the relay.
    """
    head, _, body = bytes(data[:_REFUSAL_SIZE]).partition(b"\r\n\r\n")
    version, _, status = _status_line(head).partition(" ")
    return ProtocolError(str(refusal(status, body))) if version.startswith("HTTP/1.") else None


async def _expect_101(stream: Stream) -> None:
    status_line = _status_line(await stream.read_head(_MAX_HEAD_SIZE))
    version, _, status = status_line.partition(" ")
    if not version.startswith("HTTP/1."):
        raise DialError(f"not an HTTP answer: {status_line[:100]!r}")
    if status.split(" ")[0] != "101":
        raise refusal(status, await _body(stream))


def _status_line(head: bytes) -> str:
    return head.partition(b"\r\n")[0].decode("latin-1")


async def _body(stream: Stream) -> bytes:
    """Return the beginning of an error's text, b"" without one within _BODY_TIMEOUT_S."""
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            return await stream.read(_BODY_SHOWN_SIZE)
    except TimeoutError:
        return b""
