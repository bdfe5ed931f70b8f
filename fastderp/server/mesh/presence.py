"""Sends watchers the clients that connect and disconnect. PROTOCOL §6.2, §7.2.

No state is kept without watchers. Each watcher gets the changes of one loop iteration in one write,
and the list of all clients a few hundred per iteration: a list of 10,000 takes 20 ms. Loop thread
only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from fastderp.dataplane.plane import Plane
from fastderp.server.observe.supervisor import supervisor
from fastderp.server.observe.values import Histogram, Value
from fastderp.util.token_bucket import TokenBucket
from fastderp.wire.protocol import (
    FrameType,
    PeerGoneReason,
    PeerPresentFlags,
    frame,
    peer_gone_payload,
    peer_present_payload,
)

BATCH_BOUNDS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
LOOP_BOUNDS = (0, 1, 2, 5, 10, 20, 50, 100)
# The list of all clients is a thousand times longer than its request; real watchers send one
# request per connection.
FLOODS_PER_S = 10.0
# Clients of a list that one watcher is sent per iteration of the loop.
CLIENTS_PER_TURN = 250


class Arrival(NamedTuple):
    """A connection in presence frames: key, address and AppName as on the wire, and kind."""

    key: bytes
    addr: bytes
    port: int
    mesh: bool
    prober: bool
    not_ideal: bool
    app_name: bytes = b""

    def frame(self) -> bytes:
        """Return the PeerPresent frame."""
        flags = PeerPresentFlags(0)
        if self.mesh:
            flags |= PeerPresentFlags.MESH_PEER
        if self.prober:
            flags |= PeerPresentFlags.PROBER
        if self.not_ideal:
            flags |= PeerPresentFlags.NOT_IDEAL
        return frame(
            FrameType.PEER_PRESENT,
            peer_present_payload(
                self.key,
                self.addr,
                self.port,
                flags or PeerPresentFlags.REGULAR,
                self.app_name,
            ),
        )


class Presence:
    """Reports every new connection, and the end of a key's last connection, to the watchers."""

    def __init__(self, plane: Plane, clock: Callable[[], float] = time.monotonic) -> None:
        """Watch the clients of this data plane."""
        self._plane = plane
        self._clock = clock
        # The budget of full lists of each watcher.
        self._watchers: dict[int, TokenBucket] = {}
        # The remaining entries of unfinished lists, by watcher and key.
        self._lists: dict[int, dict[bytes, Arrival]] = {}
        # Keys announced to the watchers as present; empty without watchers.
        self._present: set[bytes] = set()
        self._pending: list[bytes] = []
        self._n_gone_pending = 0
        self._batch_sizes = Histogram(BATCH_BOUNDS)
        self._loop_counts = Histogram(LOOP_BOUNDS)
        self._n_gone_sent = 0
        self._n_refused = 0

    @property
    def n_watchers(self) -> int:
        """The number of watchers."""
        return len(self._watchers)

    @property
    def n_gone_sent(self) -> int:
        """The number of PeerGone frames sent to watchers."""
        return self._n_gone_sent

    @property
    def n_refused(self) -> int:
        """The number of requests to watch that came too fast and were ignored."""
        return self._n_refused

    def metrics(self) -> dict[str, Value]:
        """Return the metrics about watchers by the names of PROTOCOL §14."""
        return {
            "derp_watchers": self.n_watchers,
            "derp_mesh_update_batch_size": self._batch_sizes,
            "derp_mesh_update_loop_count": self._loop_counts,
        }

    def watch(self, handle: int) -> None:
        """Send a session the list of all clients, at each request, and later changes."""
        watcher = self._watchers.get(handle) or TokenBucket(
            FLOODS_PER_S, FLOODS_PER_S, clock=self._clock
        )
        if not watcher.take():
            self._n_refused += 1
            return
        self.flush()
        clients = self._all_clients(handle)
        self._watchers[handle] = watcher
        self._present.update(clients)
        self._lists[handle] = clients
        self._send_list(handle)

    def _send_list(self, handle: int) -> None:
        """Send the next clients of a list; the rest follows in later iterations of the loop."""
        clients = self._lists.get(handle)
        if clients is None:  # the watcher has left
            return
        frames = [clients.pop(key).frame() for key in list(islice(clients, CLIENTS_PER_TURN))]
        if not clients:
            del self._lists[handle]
        if not supervisor.guard("presence", self._send, handle, b"".join(frames), len(frames)):
            self._plane.close_session(handle)
        elif clients:
            asyncio.get_running_loop().call_soon(
                supervisor.guarded("presence", self._send_list), handle
            )

    def _all_clients(self, asking: int) -> dict[bytes, Arrival]:
        """Return the active connection of each key; for the watcher's key, the watcher."""
        listed: dict[bytes, Arrival] = {}
        own_key = b""
        for session in self._plane.sessions():
            if session.handle == asking:
                own_key = session.key
            elif not session.active or session.key == own_key:
                continue
            listed[session.key] = Arrival(
                session.key,
                session.addr,
                session.port,
                session.mesh,
                session.prober,
                session.not_ideal,
                session.app_name,
            )
        return listed

    def arrived(self, arrival: Arrival) -> None:
        """Note a new connection, even when its key has others."""
        if self._watchers:
            self._forget(arrival.key)
            self._present.add(arrival.key)
            self._add(arrival.frame())

    def left(self, handle: int, key: bytes) -> None:
        """Note that a connection has ended."""
        self._lists.pop(handle, None)
        if self._watchers.pop(handle, None) is not None and not self._watchers:
            self._present.clear()
            self._pending.clear()
            self._n_gone_pending = 0
        if key in self._present and not self._plane.is_connected(key):
            self._forget(key)
            self._present.remove(key)
            self._add(
                frame(FrameType.PEER_GONE, peer_gone_payload(key, PeerGoneReason.DISCONNECTED))
            )
            self._n_gone_pending += 1

    def _forget(self, key: bytes) -> None:
        """Remove a key whose change is about to be sent from the lists under way."""
        for clients in self._lists.values():
            clients.pop(key, None)

    def flush(self) -> None:
        """Send the changes since the last call."""
        if not self._pending:
            return
        frames, n_frames, n_gone = b"".join(self._pending), len(self._pending), self._n_gone_pending
        self._pending.clear()
        self._n_gone_pending = 0
        for handle in list(self._watchers):
            if not supervisor.guard(
                "presence", self._send_pending, handle, frames, n_frames, n_gone
            ):
                # The watcher missed a change; after a reconnect it gets the whole list.
                self._plane.close_session(handle)

    def _send_pending(self, handle: int, frames: bytes, n_frames: int, n_gone: int) -> None:
        if self._send(handle, frames, n_frames):
            self._n_gone_sent += n_gone

    def _add(self, change: bytes) -> None:
        if not self._pending:
            asyncio.get_running_loop().call_soon(supervisor.guarded("presence", self.flush))
        self._pending.append(change)

    def _send(self, handle: int, frames: bytes, n_frames: int) -> bool:
        self._batch_sizes.observe(n_frames)
        self._loop_counts.observe(1)
        return self._plane.send(handle, frames)
