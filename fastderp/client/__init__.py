"""The client library: `Client` over any stream, `HTTPClient` by URL or by DERP region."""

from fastderp.client.backoff import Backoff
from fastderp.client.client import Client
from fastderp.client.events import (
    ClientEvent,
    Connected,
    ConnectionState,
    DialFailed,
    Disconnected,
    EventStream,
)
from fastderp.client.http_client import HTTPClient
from fastderp.client.watch import run_watch_connection_loop
from fastderp.wire.derp_map import DerpMap, DerpNode, DerpRegion

__all__ = [
    "Backoff",
    "Client",
    "ClientEvent",
    "Connected",
    "ConnectionState",
    "DerpMap",
    "DerpNode",
    "DerpRegion",
    "DialFailed",
    "Disconnected",
    "EventStream",
    "HTTPClient",
    "run_watch_connection_loop",
]
