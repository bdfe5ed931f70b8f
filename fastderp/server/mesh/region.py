"""The mesh side of a relay: watchers, links and packet forwarders. PROTOCOL §6.2, §7.

Connects presence, mesh links and packet forwarders to the data plane. Loop thread only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from fastderp.dataplane.plane import ClosedEvent, FrameEvent, Plane
from fastderp.server.mesh.dial import JoinSocket
from fastderp.server.mesh.forwarders import Forwarders
from fastderp.server.mesh.links import Mesh
from fastderp.server.mesh.presence import Arrival, Presence
from fastderp.server.observe.log_throttle import LogThrottle
from fastderp.server.observe.metrics import Value
from fastderp.tls.context import ClientContext
from fastderp.wire.keys import MeshKey, NodePrivate, NodePublic
from fastderp.wire.login import ClientInfo
from fastderp.wire.protocol import FrameType

log: logging.Logger = logging.getLogger("fastderp")


class Region:
    """The state of a relay as a member of its region, without the packets."""

    def __init__(
        self,
        plane: Plane,
        private_key: NodePrivate,
        keys: Iterable[MeshKey],
        join: JoinSocket,
        tls: ClientContext | None,
    ) -> None:
        """Begin without links. `keys` as in `set_keys`; `join` and `tls` as in `Mesh`."""
        self.keys: list[MeshKey] = []
        self.set_keys(keys)
        self.presence: Presence = Presence(plane)
        self.forwarders: Forwarders = Forwarders(plane)
        self.mesh: Mesh = Mesh(plane, private_key, lambda: self.key, join, tls)
        self._plane = plane
        self._own_key = private_key.public_key
        self._throttle = LogThrottle(log)
        # The logged-in mesh peers by session; their key decides their rights.
        self._peers: dict[int, NodePublic] = {}

    @property
    def key(self) -> MeshKey:
        """The secret that our links send; the zero key without a secret."""
        return self.keys[0] if self.keys else MeshKey()

    def set_keys(self, keys: Iterable[MeshKey]) -> None:
        """Accept mesh peers that send any of these keys, and send the first; skip zero keys."""
        self.keys = [key for key in keys if key]

    def is_mesh_peer(self, info: ClientInfo) -> bool:
        """Whether a client has sent a mesh key; the comparison takes constant time."""
        equal = [info.mesh_key == key for key in self.keys]
        return any(equal)

    # Events of sessions

    def arrived(self, handle: int, arrival: Arrival) -> None:
        """Note a client that has logged in."""
        if arrival.mesh:
            self._peers[handle] = key = NodePublic(arrival.key)
            self.mesh.peer_arrived(key)
        self.presence.arrived(arrival)

    def received(self, event: FrameEvent) -> None:
        """Act on a frame of a link or a mesh peer that the data plane reports."""
        if self.mesh.received(event):
            return
        peer = self._peers.get(event.handle)
        if peer is None:
            return
        if event.type == FrameType.WATCH_CONNS and peer != self._own_key:
            self.presence.watch(event.handle)
        elif event.type == FrameType.CLOSE_PEER:
            self._close_peer(peer, NodePublic(event.payload))

    @property
    def on_closed(self) -> list[Callable[[ClosedEvent], object]]:
        """The handlers of a session's end; each is called even when others fail."""
        return [
            lambda event: self._peers.pop(event.handle, None),
            lambda event: self.presence.left(event.handle, event.key),
            self.mesh.closed,
            lambda event: self.forwarders.closed(event.handle),
        ]

    def _close_peer(self, peer: NodePublic, target: NodePublic) -> None:
        n_closed = self._plane.close_key(target.raw)
        what = f"{n_closed} connections" if n_closed else "it is not connected"
        self._throttle.log(
            "close_peer", "mesh: %s wants %s closed: %s", peer.short, target.short, what
        )

    # Metrics and close

    def metrics(self) -> dict[str, Value]:
        """Return the metrics of watchers and links."""
        return {
            **self.presence.metrics(),
            **self.mesh.metrics(),
            "fastderp_mesh_ignored_total": {
                ("keys",): self.mesh.n_keys_ignored,
                ("watch",): self.presence.n_refused,
            },
        }

    @property
    def announced(self) -> set[bytes]:
        """The keys that are reachable through other relays."""
        return self.mesh.keys | self.forwarders.keys

    async def close(self) -> None:
        """End every link and every forwarder."""
        await self.mesh.close()
        await self.forwarders.close()
