"""The client library: `Client` over any stream, `HTTPClient` by URL or by DERP region."""

from fastderp.client.client import Client

__all__ = ["Client"]
