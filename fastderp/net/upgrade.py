"""The client's HTTP request that turns a connection into DERP (PROTOCOL §9.3, §13)."""

from __future__ import annotations

import asyncio
import re

from fastderp.errors import DialError
from fastderp.net.stream import Stream

_MAX_HEAD_SIZE = 64 << 10
_BODY_SHOWN_SIZE = 200
_BODY_TIMEOUT_S = 0.5
USER_AGENT = "fastderp"
_HEADER_VALUE = re.compile("[!-~]*")


async def upgrade(
    stream: Stream, *, host: str, path: str, ideal_node: str = "", fast_start: bool = False
) -> None:
    """Request DERP and, unless `fast_start`, wait for the relay's 101.

    Args:
        stream: the connection to the relay.
        host: for the Host header.
        path: of the request, with its query.
        ideal_node: the node that the client would prefer; "" for this one.
        fast_start: the relay answers with DERP at once, without a 101.

    Raises DialError for any other answer than 101, and for values from a DERP map that are not
    valid in a header.
    """
    headers = {
        "Host": host,
        "User-Agent": USER_AGENT,
        "Connection": "Upgrade",
        "Upgrade": "DERP",
    }
    if ideal_node:
        headers["Ideal-Node"] = ideal_node
    if fast_start:
        headers["Derp-Fast-Start"] = "1"
    lines = [
        f"GET {path} HTTP/1.1",
        *(f"{name}: {header_value(name, value)}" for name, value in headers.items()),
    ]
    stream.write("\r\n".join([*lines, "", ""]).encode())
    await stream.drain()
    if not fast_start:
        await _expect_101(stream)


def header_value(name: str, value: str) -> str:
    """Return a value that fits into the header of this name. Raises DialError for any other."""
    if not _HEADER_VALUE.fullmatch(value):
        raise DialError(f"the {name} header cannot hold {value!r}")
    return value


def refusal(status: str, body: bytes) -> DialError:
    """Return the error for another answer than 101, with the beginning of its text."""
    # The error quotes the text as a literal, because it comes from the peer and may be logged.
    text = body[:_BODY_SHOWN_SIZE].decode("utf-8", "replace").strip()
    return DialError(f"the relay answered {status[:100]!r}" + (f": {text!r}" if body else ""))


async def _expect_101(stream: Stream) -> None:
    head = await stream.read_head(_MAX_HEAD_SIZE)
    status_line = head.partition(b"\r\n")[0].decode("latin-1")
    version, _, status = status_line.partition(" ")
    if not version.startswith("HTTP/1."):
        raise DialError(f"not an HTTP answer: {status_line[:100]!r}")
    if status.split(" ")[0] != "101":
        raise refusal(status, await _body(stream))


async def _body(stream: Stream) -> bytes:
    """Return the beginning of an error's text, b"" without one within _BODY_TIMEOUT_S."""
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            return await stream.read(_BODY_SHOWN_SIZE)
    except TimeoutError:
        return b""
