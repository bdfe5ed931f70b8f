"""The way in, from a client that wants to talk DERP to a session of the data plane. PROTOCOL §3, §8.

Connections and streams come here at the end of their login, in the order of the methods: greeting, ClientInfo, who may use the
relay, ServerInfo, hand-over. Loop thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fastderp.dataplane.plane import Plane, PlaneError
from fastderp.errors import LoginError
from fastderp.server.accept.bridge import Bridges
from fastderp.server.accept.duplicate_keys import Duplicates
from fastderp.server.accept.stream import Poller
from fastderp.server.accept.tls_handshake import HandshakeThreads
from fastderp.server.admission.client_rate import ClientRate
from fastderp.server.http import message as http
from fastderp.server.mesh.presence import Arrival
from fastderp.server.mesh.region import Region
from fastderp.server.observe.connection_log import ConnectionLog
from fastderp.tls.record import RecordLayer
from fastderp.util.net import address_bytes
from fastderp.wire.keys import NodePrivate, NodePublic
from fastderp.wire.login import ClientInfo, ClientLogin, open_client_info, server_key_frame
from fastderp.wire.protocol import ServerInfo

Verify = Callable[[NodePublic, ClientInfo, str], Awaitable[bool]]
"""Asked for every client but mesh peers, with its key, what it says of itself and its IP: may it use the relay? A LoginError is a no that
says why; `admission.Admission` is one."""


class Entrance:
    """What connections on their way in share, and what is decided about each.

    Args:
        private_key: the relay's identity.
        plane: where sessions go.
        region: knows mesh peers, and hears of who has come in.
        journal: counts and logs.
        client_rate: what each client may send, which it is told.
        duplicates: tells clients that share a key; None for nobody.
        verify: asked who may come in; None for everybody.
    """

    def __init__(
        self,
        private_key: NodePrivate,
        plane: Plane,
        region: Region,
        journal: ConnectionLog,
        client_rate: ClientRate,
        duplicates: Duplicates | None,
        verify: Verify | None,
    ) -> None:
        self.journal = journal
        self.verify = verify
        # Made by `open`, which knows the loop.
        self.poller: Poller
        self.handshakes: HandshakeThreads
        self.bridges: Bridges
        self._private_key = private_key
        self._plane = plane
        self._region = region
        self._client_rate = client_rate
        self._duplicates = duplicates
        self._on_end: dict[int, Callable[[], None]] = {}
        public_key = private_key.public_key
        self._server_key = server_key_frame(public_key)
        self._switching = http.switching_protocols(public_key.hex) + self._server_key

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let connections in, from this loop on."""
        self.poller = Poller(loop)
        self.handshakes = HandshakeThreads(loop)
        self.bridges = Bridges(self.poller)

    def close(self) -> None:
        """End the threads and stop watching sockets, when no connection is left."""
        self.handshakes.close()
        self.poller.close()

    # One login

    def greeting(self, fast_start: bool) -> bytes:
        """Return what a client is told first: the 101 response unless it asked for a fast start, and the relay's key."""
        return self._server_key if fast_start else self._switching

    def open_client_info(self, payload: bytes) -> ClientLogin:
        """Return who a client says it is. Raises LoginError."""
        return open_client_info(self._private_key, payload)

    def is_mesh_peer(self, login: ClientLogin) -> bool:
        """Whether a client has shown the mesh key: it is let in unasked, with a mesh peer's rights."""
        return self._region.is_mesh_peer(login.info)

    async def refusal(self, login: ClientLogin, ip: str) -> str:
        """Ask whether a client may use the relay; return why not, "" when it may. An error means no."""
        if self.verify is None:
            return ""
        try:
            allowed = await self.verify(login.public, login.info, ip)
        except LoginError as error:
            return str(error)
        except Exception as error:
            return f"{login.public.short} could not be verified: {error}"
        return "" if allowed else f"{login.public.short} is not allowed"

    def server_info(self, login: ClientLogin, mesh: bool) -> bytes:
        """Return the frame that ends a login, with the limit the client has to keep."""
        return login.server_info_frame(ServerInfo() if mesh else self._client_rate.server_info())

    def promote(
        self,
        descriptor: int,
        login: ClientLogin,
        remote: tuple[str, int],
        *,
        first: bytes,
        opened: bytes = b"",
        records: RecordLayer | None = None,
        mesh: bool = False,
        not_ideal: bool = False,
        on_end: Callable[[], None] | None = None,
        own_rtt: bool = False,
    ) -> int:
        """Hand a logged-in connection to the data plane, which owns the descriptor and the keys from now on.

        Returns the session's handle, 0 when there is none because memory is out.

        Args:
            first: frames to write before any other.
            opened: plain bytes read behind the login.
            records: the keys of a TLS 1.3 connection; what they have pending goes along.
            on_end: called when the session is over; not when it never began.
            own_rtt: its round-trip time is not looked at in the data plane but here (`Bridges.round_trips_us`).
        """
        addr = address_bytes(remote[0])
        try:
            handle = self._plane.promote(
                descriptor,
                login.public.raw,
                first=first,
                unread=records.pending if records is not None else opened,
                opened=opened if records is not None else b"",
                records=records,
                mesh=mesh,
                prober=login.info.is_prober,
                not_ideal=not_ideal,
                addr=addr,
                port=remote[1],
                own_rtt=own_rtt,
            )
        except PlaneError as error:
            self.journal.note_refused("promote", "memory", remote, str(error))
            return 0
        if on_end is not None:
            self._on_end[handle] = on_end
        if login.info.is_prober:
            self.journal.note_prober(handle, login.public, remote)
        if self._duplicates is not None and not mesh:
            self._duplicates.joined(login.public.raw)
        self._region.arrived(
            handle,
            Arrival(login.public.raw, addr, remote[1], mesh, login.info.is_prober, not_ideal),
        )
        return handle

    def ended(self, handle: int) -> None:
        """Tell whoever wants to know that a session is over."""
        on_end = self._on_end.pop(handle, None)
        if on_end is not None:
            on_end()
