"""Turns an authenticated connection into a data-plane session. PROTOCOL §3, §8.

Loop thread only.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Protocol

from fastderp.dataplane.plane import ClosedEvent, Plane, PlaneError
from fastderp.errors import LoginError
from fastderp.server.accept.bridge import Bridges
from fastderp.server.accept.deadlines import Deadlines
from fastderp.server.accept.derp_login import LoginTerms
from fastderp.server.accept.duplicate_keys import Duplicates
from fastderp.server.accept.handshake_queue import HandshakeQueue
from fastderp.server.accept.handshake_threads import HandshakeThreads
from fastderp.server.accept.login_memory import LoginMemory
from fastderp.server.accept.round_robin import RoundRobin
from fastderp.server.accept.waves import Waves
from fastderp.server.admission.address_limits import AddressLimits, Group
from fastderp.server.admission.client_rate import ClientRate
from fastderp.server.mesh.presence import Arrival
from fastderp.server.mesh.region import Region
from fastderp.server.net.stream import Poller
from fastderp.server.observe.connection_log import ConnectionLog
from fastderp.server.observe.supervisor import supervisor
from fastderp.server.observe.values import Value
from fastderp.tls.channel import Channel
from fastderp.tls.record import RecordLayer
from fastderp.util import bounds
from fastderp.util.net import address_bytes
from fastderp.wire.keys import NodePrivate, NodePublic
from fastderp.wire.login import ClientInfo, ClientLogin
from fastderp.wire.protocol import PROTOCOL_VERSION

if TYPE_CHECKING:
    from fastderp.server.mesh.dial import Attach

Verify = Callable[[NodePublic, ClientInfo, str], Awaitable[bool]]
"""Admits or refuses every client but mesh peers, by its key, its ClientInfo and its IP. A
LoginError is a refusal with its reason; `admission.Admission` is one."""


_PAIR_ENDS = frozenset({"eof", "reset", "write_error"})


class SocketPair(Protocol):
    """Joins a client's own connection to the descriptor of its session; a Bridge is one."""

    handle: int
    """The handle of the session; set after its begin."""

    @property
    def has_round_trips(self) -> bool:
        """Whether its client's round-trip time counts."""

    def round_trip_us(self) -> int | None:
        """Return that time in microseconds; None if it does not count."""

    def session_ended(self, reason: str) -> None:
        """Note that the session has ended, so that the data plane has closed its end."""

    def cause(self) -> tuple[str, str]:
        """Return why the client's connection ended: a reason and its detail."""


class Registrar:
    """Asks admission about clients, registers the admitted ones, and owns their shared state.

    Args:
        private_key: the relay's identity.
        plane: takes the sessions.
        region: decides whether a client is a mesh peer, and gets each new session.
        connection_log: counts and logs.
        client_rate: the rate limits of clients, for their sessions and their ServerInfo.
        duplicates: notifies clients that share a key; None for no notices.
        verify: admission; None to let every client in.
        disallowed_app_names: clients with one of these AppNames are refused. PROTOCOL §22.
        login_memory_bytes: memory of all connections before their login.
    """

    def __init__(
        self,
        private_key: NodePrivate,
        plane: Plane,
        region: Region,
        connection_log: ConnectionLog,
        client_rate: ClientRate,
        duplicates: Duplicates | None,
        verify: Verify | None,
        disallowed_app_names: Collection[str] = (),
        login_memory_bytes: int = bounds.LOGIN_MEMORY_BYTES,
    ) -> None:
        self.connection_log = connection_log
        self.addresses: AddressLimits = AddressLimits()
        self._client_rate = client_rate
        self.login_terms: LoginTerms = LoginTerms(
            private_key, region.is_mesh_peer, client_rate.server_info, disallowed_app_names
        )
        self.login_memory: LoginMemory = LoginMemory(login_memory_bytes)
        # `open` creates these, because they need the loop.
        self._is_open = False
        self.loop: asyncio.AbstractEventLoop
        self.poller: Poller
        self.requests: RoundRobin
        self.deadlines: Deadlines
        self.handshake_threads: HandshakeThreads
        self.handshake_queue: HandshakeQueue
        self.bridges: Bridges
        self._plane = plane
        self._region = region
        self._duplicates = duplicates
        # protocol versions by handle, for the few sessions with another version than ours
        self._versions: dict[int, int] = {}
        self._bridged: dict[int, SocketPair] = {}
        self.verify = verify
        # Set while the relay sends its clients away, and whether it lets none log in meanwhile.
        self.waves: Waves | None = None
        self.refuses_logins: bool = False

    @property
    def verify(self) -> Verify | None:
        """The admission; None admits every client. It may be assigned at any time."""
        return self._verify

    @verify.setter
    def verify(self, verify: Verify | None) -> None:
        if not (verify is None or callable(verify)):
            raise TypeError(f"verify must be an async function, not {type(verify).__name__}")
        self._verify = verify
        self.login_terms.asks_admission = verify is not None

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Create the objects that need this loop."""
        self.loop = loop
        self.poller = Poller(loop)
        self.requests = RoundRobin(loop)
        self.deadlines = Deadlines(loop)
        self.handshake_threads = HandshakeThreads(loop)
        self.handshake_queue = HandshakeQueue(loop, self.login_memory)
        self.bridges = Bridges(self.poller)
        self._is_open = True

    def close(self) -> None:
        """End the threads and stop watching sockets; call it after all connections are closed."""
        self.requests.close()
        self.deadlines.close()
        if self._duplicates is not None:
            self._duplicates.close()
        self.handshake_queue.close()
        self.handshake_threads.close()
        self.poller.close()

    async def refusal(self, login: ClientLogin, ip: str) -> str:
        """Ask admission about a client; return the reason of a refusal, or "".

        An error refuses the client.
        """
        if self._verify is None:
            return ""
        try:
            allowed = await self._verify(login.public, login.info, ip)
        except LoginError as error:
            return str(error)
        except Exception as error:
            supervisor.note("admission", error, f"{login.public.short} is refused")
            return f"{login.public.short} could not be verified: {error}"
        return "" if allowed else f"{login.public.short} is not allowed"

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
        bridge: SocketPair | None = None,
        behind_proxy: bool = False,
        address_group: Group | None = None,
    ) -> int:
        """Hand a logged-in connection, with descriptor and keys, to the data plane.

        Returns the session's handle, 0 when memory for it is out.

        Args:
            first: frames to write before any other.
            opened: plain bytes read after the login.
            records: the keys of a TLS 1.3 connection; what they have pending goes along.
            bridge: joins the client to the descriptor; gets the session's handle and its end, and
                nothing when the session never began.
            behind_proxy: keep-alives have to come before a proxy's usual time-out of 60 s.
            address_group: the session's place among the connections of its address, from
                `AddressLimits.enter`.
        """
        addr = address_bytes(remote[0])
        name = login.info.app_name
        app_name = name.encode()
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
                app_name=app_name,
                rate_class=self._client_rate.class_of(login.public.raw, name, addr),
                own_rtt=bridge is not None and bridge.has_round_trips,
                behind_proxy=behind_proxy,
            )
        except Exception as error:
            self.addresses.leave(address_group)
            if not isinstance(error, PlaneError):
                raise
            self.connection_log.note_refused("promote", "memory", remote, str(error))
            return 0
        self.addresses.keep(handle, address_group)
        if bridge is not None:
            self._attach(bridge, handle)
        if self.waves is not None and not mesh:
            self.waves.joined(handle)
        if login.info.version != PROTOCOL_VERSION:
            self._versions[handle] = login.info.version
        if login.info.is_prober:
            self.connection_log.note_prober(handle, login.public, remote)
        if self._duplicates is not None and not mesh:
            self._duplicates.joined(login.public.raw, handle)
        if mesh or self._region.is_watched:
            self._region.arrived(
                handle,
                Arrival(
                    login.public.raw,
                    addr,
                    remote[1],
                    mesh,
                    login.info.is_prober,
                    not_ideal,
                    app_name,
                ),
            )
        return handle

    def join_link(self, sock: socket.socket, channel: Channel) -> tuple[int, Attach]:
        """Bridge the connection of a mesh link; return the data plane's end."""
        descriptor, bridge = self.bridges.join_socket(sock, channel)
        return descriptor, partial(self._attach, bridge)

    def _attach(self, bridge: SocketPair, handle: int) -> None:
        """Join a bridge to its session: it gets the session's end, and knows the cause of it."""
        bridge.handle = handle
        self._bridged[handle] = bridge

    def version(self, handle: int) -> int:
        """Return the protocol version that a session's client has announced."""
        return self._versions.get(handle, PROTOCOL_VERSION)

    def explained(self, event: ClosedEvent) -> ClosedEvent:
        """Return the end of a session with the cause that its bridge knows.

        At the bridge's socket pair the data plane sees an end as one of _PAIR_ENDS.
        """
        bridge = self._bridged.get(event.handle)
        if bridge is None or event.reason not in _PAIR_ENDS:
            return event
        reason, detail = bridge.cause()
        return event._replace(reason=reason, detail=detail)

    def ended(self, event: ClosedEvent) -> None:
        """Note the end of a session; tell its bridge."""
        self._versions.pop(event.handle, None)
        self.addresses.ended(event.handle)
        if self.waves is not None:
            self.waves.closed(event)
        if self._duplicates is not None:
            self._duplicates.left(event.key, event.handle)
        bridge = self._bridged.pop(event.handle, None)
        if bridge is not None:
            bridge.session_ended(event.reason)

    def round_trip_us(self, handle: int) -> int | None:
        """Return a client's round-trip time by the kernel, in microseconds; None if unknown."""
        bridge = self._bridged.get(handle)
        if bridge is not None:
            return bridge.round_trip_us()
        info = self._plane.tcp_info(handle)
        return info.rtt_us if info is not None else None

    def bridged_round_trips_us(self) -> list[int]:
        """Return the round-trip times of the bridged clients that have one, in microseconds."""
        return self.bridges.round_trips_us() if self._is_open else []

    def bridged_bytes(self) -> dict[int, tuple[int, int]]:
        """Return the bytes sent and received of bridged clients over TCP, by session handle."""
        return self.bridges.bytes_moved() if self._is_open else {}

    @property
    def bridged_tls_versions(self) -> Counter[str]:
        """The number of bridged clients by TLS version."""
        return self.bridges.tls_versions if self._is_open else Counter()

    def metrics(self) -> dict[str, Value]:
        """Return the counters by the names of `metrics.METRICS`."""
        is_open = self._is_open
        return {
            "fastderp_login_memory_bytes": self.login_memory.held_bytes,
            "fastderp_handshakes_waiting": self.handshake_queue.n_waiting if is_open else 0,
            "fastderp_thread_shortages_total": self.handshake_threads.n_shortages if is_open else 0,
        }
