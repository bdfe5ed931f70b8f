"""The clients of a relay as it lists them for admission and for programs. Any thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fastderp.dataplane.plane import Plane
from fastderp.util.net import address_text
from fastderp.wire.keys import NodePublic


class ConnectedClient(NamedTuple):
    """A client that is connected to a relay, once per connection. PROTOCOL §6.1.

    Args:
        key: the client's public key.
        ip: its address as text; "" when the relay does not know it.
    """

    key: NodePublic
    ip: str


def connected_clients(plane: Plane) -> Iterator[tuple[int, ConnectedClient]]:
    """Yield session handle and client per connection, mesh peers excepted."""
    for session in plane.sessions():
        if not session.mesh and not session.link:
            client = ConnectedClient(NodePublic(session.key), address_text(session.addr))
            yield session.handle, client
