"""The targets of a client: a relay by URL, or the best node of a region (PROTOCOL §13)."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from fastderp.errors import DialError
from fastderp.net.dial import SecureProxy, dial_node, dial_region
from fastderp.net.stream import Stream
from fastderp.util.net import bracketed, host_bytes
from fastderp.wire.derp_map import DerpNode, DerpRegion

# default port of a region's nodes when tests switch TLS off
PLAIN_REGION_PORT = 3340

RegionGetter = Callable[[], DerpRegion | None]

PIN_PREFIX = "sha256-raw:"

_PRINTABLE = re.compile("[!-~]*")


class Opened(NamedTuple):
    """A TCP connection to a node, and the parts of the HTTP request to send on it."""

    stream: Stream
    node: DerpNode
    https: bool
    host: str
    path: str
    websocket: bool
    ideal_node: str


class UrlTarget:
    """A relay by URL; `cert_name` and `dial_host` are those of HTTPClient.

    `path` is that of the upgrade, `host_header` the host in requests, `node` has the host's name.
    """

    def __init__(self, url: str, cert_name: str, dial_host: str) -> None:
        """Split the URL. Raises ValueError that names the fault in it or in `cert_name`."""
        parts = urlsplit(url)
        if "@" in parts.netloc:
            # The message omits the URL: it may hold a password.
            raise ValueError("a relay's URL must not contain a user")
        if parts.scheme not in ("http", "https", "ws", "wss") or not parts.hostname:
            raise ValueError(
                f"a relay URL needs http://, https://, ws:// or wss:// and a host, not {url!r}"
            )
        host = parts.hostname
        if not host.isascii():
            host = host_bytes(host).decode()
            parts = parts._replace(netloc=parts.netloc.lower().replace(parts.hostname, host))
            url = parts.geturl()
        if not _PRINTABLE.fullmatch(url):
            raise ValueError(f"the URL has characters that need escaping: {url!r}")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if port == 0:
            raise ValueError(f"the port must be a number from 1 to 65535, but the URL is {url!r}")
        if cert_name.startswith(PIN_PREFIX):
            certificate_pin(cert_name)
        self.url: str = url
        self.https: bool = parts.scheme in ("https", "wss")
        self.websocket: bool = parts.scheme in ("ws", "wss")
        self.port: int = port or (443 if self.https else 80)
        self.host_header: str = parts.netloc
        self.path: str = (parts.path or "/derp") + (f"?{parts.query}" if parts.query else "")
        self.node: DerpNode = DerpNode("", 0, host, cert_name=cert_name)
        self._dialled = DerpNode("", 0, dial_host) if dial_host else self.node

    def __str__(self) -> str:
        return self.url

    async def open(self, *, prefer_ipv6: bool, secure_proxy: SecureProxy) -> Opened:
        """Connect to the relay, never through a proxy. Raises DialError that names the cause."""
        # A URL has a single node, so the attempt needs no time limit of its own.
        stream = await dial_node(self._dialled, self.port, prefer_ipv6=prefer_ipv6, timeout_s=None)
        return Opened(
            stream, self.node, self.https, self.host_header, self.path, self.websocket, ""
        )


def certificate_pin(cert_name: str) -> bytes:
    """Return the hash in a CertName that begins with PIN_PREFIX. Raises ValueError if malformed."""
    digits = cert_name.removeprefix(PIN_PREFIX)
    if len(digits) != 64 or not all(digit in string.hexdigits for digit in digits):
        raise ValueError(f"a certificate pin is {PIN_PREFIX} and 64 hex digits")
    return bytes.fromhex(digits)


class RegionTarget:
    """A region; it is looked up for every connection."""

    def __init__(
        self, getter: RegionGetter, use_tls: bool | None, use_websocket: bool | None
    ) -> None:
        """Read unset choices from the environment, as tailscale's clients do.

        Raises TypeError for a getter that cannot be called.
        """
        if not callable(getter):
            raise TypeError(
                f"region_getter must be a function that returns a DerpRegion, not {_type(getter)}"
            )
        self._getter = getter
        self._called = "a DERP region"
        self._https = not _is_set("TS_DEBUG_USE_DERP_HTTP") if use_tls is None else use_tls
        self._websocket = (
            _is_set("TS_DEBUG_DERP_WS_CLIENT") if use_websocket is None else use_websocket
        )

    def __str__(self) -> str:
        """Return the region and the node of the present or latest attempt, as far as known."""
        return self._called

    async def open(self, *, prefer_ipv6: bool, secure_proxy: SecureProxy) -> Opened:
        """Get the region and connect to its first node that answers.

        Raises DialError that names the cause, TypeError for anything but a region or None, and what
        the getter raises.
        """
        region = self._getter()
        if region is None:
            raise DialError("there is no such DERP region")
        if not isinstance(region, DerpRegion):
            raise TypeError(f"region_getter must return a DerpRegion, not {_type(region)}")
        self._called = f"region {region.region_code or region.region_id}"
        default_port = 443 if self._https else PLAIN_REGION_PORT
        node, stream = await dial_region(
            region,
            default_port=default_port,
            prefer_ipv6=prefer_ipv6,
            https=self._https,
            secure_proxy=secure_proxy,
        )
        self._called += f", node {node.name or node.host_name}"
        first = region.nodes[0]
        ideal = first.name if first is not node else ""
        host, port = bracketed(node.host_name), node.derp_port or default_port
        if port != (443 if self._https else 80):
            host += f":{port}"
        return Opened(stream, node, self._https, host, "/derp", self._websocket, ideal)


def _type(value: object) -> str:
    return type(value).__name__


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in ("1", "t", "true")
