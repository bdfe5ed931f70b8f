"""The client library: `Client` over any stream, `HTTPClient` by URL or by DERP region."""

from fastderp.client.client import Client
from fastderp.client.http_client import HTTPClient
from fastderp.client.watch import run_watch_connection_loop
from fastderp.wire.derp_map import DerpMap, DerpNode, DerpRegion

__all__ = [
    "Client",
    "DerpMap",
    "DerpNode",
    "DerpRegion",
    "HTTPClient",
    "run_watch_connection_loop",
]
