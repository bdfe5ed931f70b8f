"""A relay for the tests of a program: in the same process and event loop, on a port of loopback.

A fixture for pytest-asyncio, and a test with it.

    import pytest
    import fastderp.testing

    @pytest.fixture
    async def relay():
        async with fastderp.testing.relay() as relay:
            yield relay

    async def test_my_program(relay):
        async with relay.client() as peer:
            await my_program(relay.url, peer.public_key)
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastderp.client import HTTPClient
from fastderp.server.certificates.manual import manual_certificate
from fastderp.server.server import Server
from fastderp.tls.context import ServerContext
from fastderp.wire.keys import NodePrivate, NodePublic

__all__ = ["LocalRelay", "relay"]

_HOST = "127.0.0.1"


class LocalRelay:
    """A relay on loopback that can be stopped and started again. `relay` makes one. PROTOCOL §9."""

    def __init__(self, *, tls: bool = False, **server: Any) -> None:
        """Prepare a relay; `start` starts it.

        Args:
            tls: speak TLS 1.3 with a certificate made for this run; clients of `client` accept it.
            server: further arguments of `Server`; `workers` is 1 by default.
        """
        self._options: dict[str, Any] = {"workers": 1, "private_key": NodePrivate.generate()}
        self._options |= server
        self._tls = tls
        self._port = 0
        self._server: Server | None = None

    @property
    def server(self) -> Server:
        """The running relay. Raises RuntimeError while it is stopped."""
        if self._server is None:
            raise RuntimeError("the relay is stopped")
        return self._server

    @property
    def public_key(self) -> NodePublic:
        """The relay's key, the same after every start."""
        key: NodePrivate = self._options["private_key"]
        return key.public_key

    @property
    def url(self) -> str:
        """The URL for clients, the same after every start. Raises RuntimeError before the first."""
        if not self._port:
            raise RuntimeError("the relay was never started")
        return f"{'https' if self._tls else 'http'}://{_HOST}:{self._port}/derp"

    def client(self, private_key: NodePrivate | None = None, **options: Any) -> HTTPClient:
        """Return a client of this relay, not connected yet: `async with` connects it.

        Args:
            private_key: the client's key; None generates a new one.
            options: further arguments of `HTTPClient`.
        """
        options = {"insecure": self._tls} | options
        return HTTPClient(self.url, private_key or NodePrivate.generate(), **options)

    async def start(self) -> None:
        """Accept clients, on the port of the first start."""
        server = Server(**self._options)
        try:
            listener = server.listen(_HOST, self._port, tls=self._context(server))
        except BaseException:
            await server.close()
            raise
        self._port = listener.port
        self._server = server

    async def stop(self) -> None:
        """Close every connection and stop accepting. A no-op when stopped."""
        server, self._server = self._server, None
        if server is not None:
            await server.close()

    async def restart(self) -> None:
        """Stop and start: clients lose their connections and can connect to the relay again."""
        await self.stop()
        await self.start()

    def _context(self, server: Server) -> ServerContext | None:
        if not self._tls:
            return None
        with tempfile.TemporaryDirectory() as directory:
            certificate = manual_certificate(Path(directory), _HOST)
        return certificate.server_context(server.meta_cert)


@asynccontextmanager
async def relay(*, tls: bool = False, **server: Any) -> AsyncIterator[LocalRelay]:
    """Run a relay while the block lasts; `tls` and what `Server` takes are those of LocalRelay.

    PROTOCOL §9.
    """
    local = LocalRelay(tls=tls, **server)
    await local.start()
    try:
        yield local
    finally:
        await local.stop()
