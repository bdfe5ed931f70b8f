"""A client as a relay lists it for admission and for programs. Any thread."""

from __future__ import annotations

from typing import NamedTuple

from fastderp.wire.keys import NodePublic


class ConnectedClient(NamedTuple):
    """A client that is connected to a relay, once per connection. PROTOCOL §6.1.

    Args:
        key: the client's public key.
        ip: its address as text; "" when the relay does not know it.
    """

    key: NodePublic
    ip: str
