"""fastderp's own clients over each transport of a Go client."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

from fastderp.client import Client, HTTPClient
from fastderp.wire.keys import NodePrivate

from .conversation import UPGRADE
from .relays import Relay, Transport


@contextlib.asynccontextmanager
async def connected(
    relay: Relay, transport: Transport, private: NodePrivate
) -> AsyncIterator[Client | HTTPClient]:
    """Log a client in for the block.

    HTTPClient chooses TLS and its start itself; for the other combinations this uses
    Client over a stream of Python's ssl.
    """
    client: Client | HTTPClient
    if transport in (Transport.PLAIN, Transport.FAST_START):
        client = HTTPClient(relay.url, private, cafile=relay.root)
    else:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", relay.port, ssl=tls_context(relay, transport)
        )
        writer.write(UPGRADE)
        await reader.readuntil(b"\r\n\r\n")
        client = await Client.handshake((reader, writer), private)
    async with client:
        await client.recv()
        yield client


def tls_context(relay: Relay, transport: Transport) -> ssl.SSLContext:
    """Return a context that trusts the relay's certificate, with the transport's TLS version."""
    context = ssl.create_default_context(cafile=relay.root)
    version = ssl.TLSVersion.TLSv1_2 if transport is Transport.TLS_1_2 else ssl.TLSVersion.TLSv1_3
    context.minimum_version = context.maximum_version = version
    return context
