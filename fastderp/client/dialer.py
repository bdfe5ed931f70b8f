"""Dials a target and returns a logged-in `Client`: TCP, TLS, WebSocket or upgrade, login.

PROTOCOL §13. Belongs to one event loop at a time.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from fastderp.client.client import Client
from fastderp.errors import BoxError, ConnectionClosed, DialError, ProtocolError
from fastderp.net.metacert import announced_key
from fastderp.net.stream import Stream
from fastderp.net.target import (
    PIN_PREFIX,
    Opened,
    RegionTarget,
    UrlTarget,
    certificate_pin,
)
from fastderp.net.tls import TlsStream
from fastderp.net.upgrade import upgrade
from fastderp.tls.client import ClientContext
from fastderp.wire.derp_map import DerpNode
from fastderp.wire.keys import MeshKey, NodePrivate, NodePublic


@dataclass(frozen=True, slots=True)
class DialOptions:
    """The options of HTTPClient for each connection; `HTTPClient.__init__` explains them."""

    can_ack_pings: bool
    is_prober: bool
    mesh_key: MeshKey | None
    app_name: str
    cafile: str | os.PathLike[str] | None
    insecure: bool
    prefer_ipv6: bool
    control_messages: bool


class Dialer:
    """Opens connections to one target; caches the TLS contexts, which take time to prepare."""

    def __init__(
        self, target: UrlTarget | RegionTarget, private_key: NodePrivate, options: DialOptions
    ) -> None:
        """Log in at `target` with `private_key`."""
        self.target = target
        self._private_key = private_key
        self._options = options
        self._contexts: dict[tuple[bool, bytes | None], ClientContext] = {}

    def __str__(self) -> str:
        return f"{self._private_key.public_key.short} at {self.target}"

    async def dial(self, timeout_s: float) -> Client:
        """Connect and log in.

        Raises DialError that names the cause, also after `timeout_s` seconds.
        """
        try:
            async with asyncio.timeout(timeout_s) as limit:
                return await self._login()
        except TimeoutError:
            if not limit.expired():  # the region getter's
                raise
            raise DialError(f"no connection to {self.target} in {timeout_s:g} s") from None

    async def _login(self) -> Client:
        opened = await self.target.open(
            prefer_ipv6=self._options.prefer_ipv6, secure_proxy=self._secure_proxy
        )
        stream = opened.stream
        try:
            server_key: NodePublic | None = None
            if opened.https:
                stream, server_key = await self._secure(stream, opened.node)
            if opened.websocket:
                stream, server_key = await _inside_websocket(stream, opened), None
            else:
                await upgrade(
                    stream,
                    host=opened.host,
                    path=opened.path,
                    ideal_node=opened.ideal_node,
                    fast_start=server_key is not None,
                )
            return await Client.handshake(
                stream,
                self._private_key,
                can_ack_pings=self._options.can_ack_pings,
                is_prober=self._options.is_prober,
                mesh_key=self._options.mesh_key,
                server_public_key=server_key,
                app_name=self._options.app_name,
                control_messages=self._options.control_messages,
            )
        except (ConnectionClosed, ProtocolError, BoxError) as error:
            stream.abort()
            raise DialError(f"{self.target}: {error}") from error
        except BaseException:
            stream.abort()
            raise

    async def _secure(self, stream: Stream, node: DerpNode) -> tuple[Stream, NodePublic | None]:
        """Do the TLS handshake; return the plain stream, and the relay's key from a metacert."""
        unchecked = node.insecure_for_tests and not node.cert_name
        verify = not (self._options.insecure or unchecked)
        pin, cert_name = None, node.cert_name or None
        if node.cert_name.startswith(PIN_PREFIX):
            pin, cert_name = _pin(node.cert_name), None
        context = self._context(verify, pin)
        inside = await TlsStream.connect(stream, context, node.host_name, cert_name=cert_name)
        key = announced_key(inside.peer_chain) if inside.version == "TLSv1.3" else None
        return Stream.of(inside), key

    async def _secure_proxy(self, stream: Stream, host: str) -> Stream:
        return Stream.of(await TlsStream.connect(stream, self._context(True, None), host))

    def _context(self, verify: bool, pin: bytes | None) -> ClientContext:
        """Return the context for these rules.

        Contexts are cached, because reading the system's roots takes milliseconds.
        """
        context = self._contexts.get((verify, pin))
        if context is None:
            context = ClientContext(verify=verify, cafile=self._options.cafile, pin=pin)
            self._contexts[verify, pin] = context
        return context


async def _inside_websocket(stream: Stream, opened: Opened) -> Stream:
    # Imported on demand: it takes longer to load than all other modules, and few clients use it.
    from fastderp.client.websocket import WebSocketStream

    return Stream.of(
        await WebSocketStream.open(stream, host=opened.host, path=opened.path, https=opened.https)
    )


def _pin(cert_name: str) -> bytes:
    try:
        return certificate_pin(cert_name)
    except ValueError as error:
        raise DialError(str(error)) from None
