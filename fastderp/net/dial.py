"""Connects to a DERP node: a race of address families, or an HTTP proxy (PROTOCOL §13).

Runs in the event loop of the caller.
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple
from urllib.parse import SplitResult, unquote

from fastderp.errors import ConnectionClosed, DerpError, DialError, ProtocolError
from fastderp.net.proxy import proxy_for
from fastderp.net.socket_stream import open_socket_stream
from fastderp.net.stream import Stream
from fastderp.util.net import bracketed, parse_ip
from fastderp.util.reasons import errno_text
from fastderp.wire.derp_map import DerpNode, DerpRegion

NODE_TIMEOUT_S = 1.5
# head start of IPv6 if the caller prefers it
IPV4_DELAY_S = 0.2

_MAX_PROXY_HEAD_SIZE = 64 << 10
# Host names come from a DERP map: one with a space or a line break would change the request.
_HOST = re.compile("[!-~]+")

SecureProxy = Callable[[Stream, str], Awaitable[Stream]]
"""Does the TLS handshake with an HTTPS proxy of this host name; returns the plain stream."""


class Reached(NamedTuple):
    """The reached node of a region, and the connection to it."""

    node: DerpNode
    stream: Stream


async def dial_region(
    region: DerpRegion,
    *,
    default_port: int,
    prefer_ipv6: bool,
    https: bool,
    secure_proxy: SecureProxy,
) -> Reached:
    """Connect to the first node of the region, in its order, that can be reached.

    Raises DialError with the reason for each node.
    """
    failures = []
    cause: BaseException | None = None
    for node in region.nodes:
        if node.stun_only:
            continue
        port = node.derp_port or default_port
        try:
            proxy = proxy_for("https" if https else "http", node.host_name, port)
            if proxy is None:
                stream = await dial_node(node, port, prefer_ipv6=prefer_ipv6)
            else:
                stream = await dial_through_proxy(proxy, node.host_name, port, secure_proxy)
            return Reached(node, stream)
        except (DialError, ValueError) as error:
            failures.append(f"{node.name or node.host_name}: {error}")
            cause = cause or error.__cause__ or error
    name = region.region_code or str(region.region_id)
    text = "; ".join(failures) or "no node to connect to"
    raise DialError(f"region {name}: {text}") from cause


async def dial_node(
    node: DerpNode,
    port: int,
    *,
    prefer_ipv6: bool = False,
    timeout_s: float | None = NODE_TIMEOUT_S,
) -> Stream:
    """Connect to the node over the address family that answers first, within `timeout_s` if given.

    Raises DialError with the reason for each family.
    """
    attempts: list[tuple[float, Callable[[], Awaitable[Stream]]]] = []
    for family, setting, delay_s in (
        (socket.AF_INET6, node.ipv6, 0.0),
        (socket.AF_INET, node.ipv4, IPV4_DELAY_S if prefer_ipv6 else 0.0),
    ):
        host = _host_for(family, setting, node.host_name)
        if host is not None:
            attempts.append((delay_s, partial(_connect, host, port, family)))
    if not attempts:
        raise DialError(f"{node.host_name}: IPv4 and IPv6 are both disabled")
    # A single family needs no delay.
    if len(attempts) == 1:
        attempts = [(0.0, attempts[0][1])]
    try:
        async with asyncio.timeout(timeout_s):
            return await _race(attempts)
    except TimeoutError:
        raise DialError(f"{node.host_name} port {port}: no answer within {timeout_s:g} s") from None


async def dial_through_proxy(
    proxy: SplitResult, host: str, port: int, secure_proxy: SecureProxy
) -> Stream:
    """Ask an HTTP or HTTPS proxy for a tunnel to `host` and `port`.

    Raises DialError when it refuses.
    """
    called = f"proxy {proxy.hostname}"
    if not _HOST.fullmatch(host):
        raise DialError(f"{called}: cannot request a tunnel to the host {host!r}")
    if proxy.scheme not in ("http", "https"):
        raise DialError(f"{called}: only http:// and https:// proxies are supported")
    if proxy.hostname is None:
        raise DialError("the proxy's URL has no host")
    try:
        proxy_port = proxy.port or (443 if proxy.scheme == "https" else 80)
    except ValueError as error:
        raise DialError(f"{called}: {error}") from None
    try:
        stream = await _connect(proxy.hostname, proxy_port, socket.AF_UNSPEC)
    except DialError as error:
        raise DialError(f"proxy {error}") from error.__cause__
    try:
        if proxy.scheme == "https":
            stream = await secure_proxy(stream, proxy.hostname)
        stream.write(_connect_request(proxy, host, port))
        head = await stream.read_head(_MAX_PROXY_HEAD_SIZE)
    except (ConnectionClosed, ProtocolError) as error:
        stream.abort()
        raise DialError(f"{called}: {error}") from error
    except BaseException:
        stream.abort()
        raise
    status = head.partition(b"\r\n")[0].decode("latin-1")
    if status.split(" ", 2)[1:2] != ["200"]:
        stream.abort()
        raise DialError(f"{called} refused a tunnel: {status[:100]!r}")
    return stream


def _connect_request(proxy: SplitResult, host: str, port: int) -> bytes:
    target = f"{bracketed(host)}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.username is not None:
        user = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        lines.append("Proxy-Authorization: Basic " + base64.b64encode(user.encode()).decode())
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


def _host_for(family: socket.AddressFamily, setting: str, host_name: str) -> str | None:
    """Return the address to dial in this family, or None if the node disables the family."""
    version = 4 if family == socket.AF_INET else 6
    host = setting or host_name
    address = parse_ip(host)
    if address is not None:
        return host if address.version == version else None
    # A name is looked up; a setting that is not an address, such as "none", disables the family.
    return None if setting else host


async def _connect(host: str, port: int, family: socket.AddressFamily) -> Stream:
    try:
        return Stream.of(await open_socket_stream(host, port, family))
    except (OSError, ValueError, OverflowError) as error:
        # A host that cannot be looked up is a ValueError, a port that is none an OverflowError.
        raise DialError(f"{bracketed(host)}:{port}: {errno_text(error)}") from error


async def _race(attempts: Sequence[tuple[float, Callable[[], Awaitable[Stream]]]]) -> Stream:
    """Start each attempt after its delay; return the first success and cancel the others."""
    tasks = [asyncio.create_task(_after(*attempt)) for attempt in attempts]
    winner: Stream | None = None
    failures: list[DerpError] = []
    try:
        for attempt in asyncio.as_completed(tasks):
            try:
                winner = await attempt
                return winner
            except DerpError as error:
                failures.append(error)
        # The families often fail for the same reason.
        texts = dict.fromkeys(str(error) for error in failures)
        raise DialError("; ".join(texts)) from failures[0].__cause__ or failures[0]
    finally:
        for task in tasks:
            task.cancel()
            task.add_done_callback(partial(_abort_unless, winner))
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError:
            if winner is not None:
                winner.abort()
            raise


def _abort_unless(winner: Stream | None, attempt: asyncio.Task[Stream]) -> None:
    """Close the connection of an attempt that is over, unless it is the winner."""
    if not attempt.cancelled() and attempt.exception() is None:
        stream = attempt.result()
        if stream is not winner:
            stream.abort()


async def _after(delay_s: float, attempt: Callable[[], Awaitable[Stream]]) -> Stream:
    if delay_s:
        await asyncio.sleep(delay_s)
    return await attempt()
