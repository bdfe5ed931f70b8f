"""The mesh side of a relay: watchers, links and packet forwarders. PROTOCOL §6.2, §7.

Connects presence, mesh links and packet forwarders to the data plane. Loop thread only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING

from fastderp.dataplane.plane import ClosedEvent, FrameEvent, Plane
from fastderp.server.mesh.forwarders import Forwarders
from fastderp.server.mesh.presence import Arrival, Presence
from fastderp.server.observe.log_throttle import LogThrottle
from fastderp.server.observe.values import Value
from fastderp.tls.context import ClientContext
from fastderp.util.arguments import check_type
from fastderp.wire.keys import MeshKey, NodePrivate, NodePublic
from fastderp.wire.login import ClientInfo
from fastderp.wire.protocol import FrameType

if TYPE_CHECKING:
    from fastderp.server.mesh.dial import JoinSocket
    from fastderp.server.mesh.links import Mesh, MeshPeer

log: logging.Logger = logging.getLogger("fastderp")

# the metrics of links, which are empty without any
_LINK_METRICS = (
    "fastderp_mesh_links",
    "fastderp_mesh_keys",
    "fastderp_mesh_connects_total",
    "fastderp_mesh_failures_total",
)


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
        self._mesh: Mesh | None = None
        self._make_mesh = partial(_mesh, plane, private_key, lambda: self.key, join, tls)
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
        """Accept mesh peers that send any of these keys, and send the first; skip zero keys.

        Raises TypeError for anything but a key, such as a key's text.
        """
        keys = list(keys)
        for key in keys:
            check_type("mesh_key", key, MeshKey)
        self.keys = [key for key in keys if key]

    @property
    def mesh(self) -> Mesh:
        """The links, created when they are first needed: a relay alone does not load their code."""
        if self._mesh is None:
            self._mesh = self._make_mesh()
        return self._mesh

    @property
    def has_other_relays(self) -> bool:
        """Whether another relay of the region serves clients now."""
        return self._mesh is not None and self._mesh.has_other_relays

    def set_peers(self, peers: Collection[MeshPeer]) -> None:
        """Replace the members that this relay has links to."""
        if peers or self._mesh is not None:
            self.mesh.set_peers(peers)

    def is_mesh_peer(self, info: ClientInfo) -> bool:
        """Whether a client has sent a mesh key; the comparison takes constant time."""
        if not self.keys:
            return False
        equal = [info.mesh_key == key for key in self.keys]
        return any(equal)

    # Events of sessions

    @property
    def is_watched(self) -> bool:
        """Whether clients other than mesh peers have to be noted when they arrive."""
        return self.presence.n_watchers > 0

    def arrived(self, handle: int, arrival: Arrival) -> None:
        """Note a client that has logged in."""
        if arrival.mesh:
            self._peers[handle] = key = NodePublic(arrival.key)
            if self._mesh is not None:
                self._mesh.peer_arrived(key)
        self.presence.arrived(arrival)

    def received(self, event: FrameEvent) -> None:
        """Act on a frame of a link or a mesh peer that the data plane reports."""
        if self._mesh is not None and self._mesh.received(event):
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
            self._link_closed,
            lambda event: self.forwarders.closed(event.handle),
        ]

    def _link_closed(self, event: ClosedEvent) -> None:
        if self._mesh is not None:
            self._mesh.closed(event)

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
            **(self._mesh.metrics() if self._mesh is not None else _no_links()),
            "fastderp_mesh_ignored_total": {
                ("keys",): self._mesh.n_keys_ignored if self._mesh is not None else 0,
                ("watch",): self.presence.n_refused,
            },
        }

    @property
    def announced(self) -> set[bytes]:
        """The keys that are reachable through other relays."""
        by_links = self._mesh.keys if self._mesh is not None else set()
        return by_links | self.forwarders.keys

    async def close(self) -> None:
        """End every link and every forwarder."""
        if self._mesh is not None:
            await self._mesh.close()
        await self.forwarders.close()


def mesh_peers(peers: Iterable[MeshPeer | str]) -> list[MeshPeer]:
    """Return the members, those in text parsed by `MeshPeer.parse`.

    Raises ValueError for a malformed member, TypeError for one text instead of several.
    """
    if isinstance(peers, str):
        raise TypeError("peers must be a list of members, not one str")
    members = list(peers)
    if not members:
        return []
    from fastderp.server.mesh.links import MeshPeer

    return [MeshPeer.parse(peer) if isinstance(peer, str) else peer for peer in members]


def _no_links() -> dict[str, Value]:
    return {name: {} for name in _LINK_METRICS}


def _mesh(
    plane: Plane,
    private_key: NodePrivate,
    mesh_key: Callable[[], MeshKey],
    join: JoinSocket,
    tls: ClientContext | None,
) -> Mesh:
    # Imported on use, because it loads all modules for dialling.
    from fastderp.server.mesh.links import Mesh

    return Mesh(plane, private_key, mesh_key, join, tls)
