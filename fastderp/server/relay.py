"""The relay: listeners and logins in front, the data plane behind. What `fastderp-relay` runs and a program can embed. DESIGN §2, §7.

Loop thread only, except that the data plane's workers do their work without it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

from fastderp.dataplane.plane import ClosedEvent, Plane, PlaneError
from fastderp.dataplane.record import RecordLayer
from fastderp.errors import LoginError
from fastderp.keys import MeshKey, NodePrivate, NodePublic
from fastderp.login import (
    ClientInfo,
    ClientLogin,
    check_client_info_header,
    open_client_info,
    server_info_json,
    server_key_frame,
)
from fastderp.protocol import HEADER, HEADER_SIZE, FrameType, ServerInfo, frame, restarting_payload
from fastderp.server import certs, http, traffic
from fastderp.server.address import address_bytes, address_text
from fastderp.server.admission import Client
from fastderp.server.bridge import Bridge, Reader, Writer, bridge, pump_streams
from fastderp.server.channel import Channel
from fastderp.server.duplicates import Duplicates
from fastderp.server.forwarders import PacketForwarder
from fastderp.server.handshakes import HandshakeThreads
from fastderp.server.http import Routes, Site
from fastderp.server.listener import IDLE_S, LOGIN_BUDGET_S, Listener, format_address, listen_sockets
from fastderp.server.logs import Summariser
from fastderp.server.mesh import MeshPeer
from fastderp.server.metrics import Value, expvar
from fastderp.server.presence import Arrival
from fastderp.server.ratelimit import AcceptLimiter, RateLimit
from fastderp.server.region import Region
from fastderp.server.stream import Poller, Stream
from fastderp.server.traffic import BytesSentRecv
from fastderp.server.upkeep import Upkeep
from fastderp.tls.handshake import ClientContext, ServerContext

log = logging.getLogger("fastderp")

Verify = Callable[[NodePublic, ClientInfo, str], Awaitable[bool]]
"""Asked for every client but mesh peers, with its key, what it says of itself and its IP: may it use the relay? A LoginError is a no that
says why; `admission.Admission` is one."""

# Ends of a connection that are everyday life on the internet: counted, and logged only when debugging.
_QUIET = frozenset({"end", "reset", "idle", "shutdown"})
# The same of sessions. PROTOCOL §5: an end of the stream is not logged by default.
_UNREMARKABLE = frozenset({"eof", "shutdown"})

CONSISTENCY_LOOKS = 5

# Clients read the limit they are told as a signed number.
_TOLD_MAX = (1 << 63) - 1

# Counters of the data plane that derper has no name for.
_PLANE_OWN = frozenset({"reads", "writes", "backlog_bytes", "events_lost", "packets_forwarded_lost"})


class Server:
    """A DERP relay.

    Listen on any number of addresses, or hand it connections with `accept`; `async with` starts and closes it.

    Args:
        private_key: the relay's identity; None makes a new one.
        write_timeout: how long in seconds a client may refuse to take a frame; 0 for ever.
        mesh_key: the secret of the region's relays; clients that know it get a mesh peer's rights. A sequence while it is
            being changed: our links show the first, clients may show any.
        mesh_tls: what our links to other relays trust; None for the system's roots.
        verify: asked about every other client before it is let in.
        rate_limit: what each client may send; None leaves it out of the metrics, too. `set_rate_limit` changes it.
        rtt_stats: look at the clients' round-trip times every 10 seconds.
        duplicate_health: tell clients that share a key that they do.
        disable_fighters: send nothing to clients that fight over a key, instead of to the last one that spoke. PROTOCOL §6.3.
        workers: threads of the data plane; 0 for one per core.
        login_timeout: seconds from accept to login.
    """

    def __init__(
        self,
        private_key: NodePrivate | None = None,
        *,
        write_timeout: float = 2.0,
        mesh_key: MeshKey | Sequence[MeshKey] | None = None,
        mesh_tls: ClientContext | None = None,
        verify: Verify | None = None,
        rate_limit: RateLimit | None = None,
        rtt_stats: bool = True,
        duplicate_health: bool = True,
        disable_fighters: bool = False,
        workers: int = 0,
        login_timeout: float = LOGIN_BUDGET_S,
    ) -> None:
        self.private_key = private_key or NodePrivate.generate()
        self.public_key = self.private_key.public()
        self.verify = verify
        self.write_timeout = write_timeout
        self.login_timeout = login_timeout
        self.bridges: set[Bridge] = set()
        self.websocket_failures: Counter[str] = Counter()
        # Made by `start`, which knows the loop.
        self.poller: Poller
        self.handshakes: HandshakeThreads
        self._plane = Plane(workers=workers, write_timeout_s=write_timeout, disable_fighters=disable_fighters)
        self._duplicates = Duplicates(self._plane.handles, self._plane.send) if duplicate_health else None
        self._round_trips = traffic.RoundTrips(self._plane) if rtt_stats else None
        self._upkeep = Upkeep(self._plane, self._round_trips)
        mesh_keys = [mesh_key] if isinstance(mesh_key, MeshKey) else mesh_key or ()
        self._region = Region(self._plane, self.private_key, mesh_keys, self._join, mesh_tls)
        self._listeners: list[Listener] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = asyncio.Event()
        self._server_key = server_key_frame(self.public_key)
        self._switching = http.switching_protocols(self.public_key.hex) + self._server_key
        self._n_accepts = 0
        self._n_websockets = 0
        self._n_shortages = 0
        self._refused: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()
        self._summary = Summariser(log)
        self._rate_limit: RateLimit | None = None
        self._telling: asyncio.Task[None] | None = None
        if rate_limit is not None:
            self.set_rate_limit(rate_limit)

    # Life

    def start(self) -> None:
        """Start the data plane and watch it from the running event loop; a no-op when started. `listen` and `accept` do it themselves."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self.poller = Poller(self._loop)
            self.handshakes = HandshakeThreads(self._loop)
            self._plane.start()
            self._upkeep.start(self._loop)
            self._loop.add_reader(self._plane.fileno(), self._on_plane_events)

    def listen(
        self,
        host: str = "",
        port: int = 3340,
        *,
        tls: ServerContext | None = None,
        routes: Routes | None = None,
        keepalive_idle_s: float = 600.0,
        user_timeout_s: float = 15.0,
        idle_s: float = IDLE_S,
        accept_limiter: AcceptLimiter | None = None,
    ) -> Listener:
        """Accept connections on an address from now on.

        Args:
            host: "" for every address, IPv4 and IPv6.
            port: TCP port, 0 for a free one.
            tls: certificates; None for plain HTTP.
            routes: who answers which path; None for the relay's own (`http.relay_routes`).
            keepalive_idle_s, user_timeout_s: TCP settings of the clients' sockets.
            idle_s: how long an HTTP connection may wait with its next request.
            accept_limiter: who comes too fast is closed at once.

        Raises OSError that names the address when it cannot be had.
        """
        self.start()
        sockets = listen_sockets(host, port, keepalive_idle_s=keepalive_idle_s, user_timeout_s=user_timeout_s)
        listener = Listener(
            self,
            sockets,
            routes or http.relay_routes(Site()),
            tls,
            login_budget_s=self.login_timeout,
            idle_s=idle_s,
            accept_limiter=accept_limiter,
        )
        self._listeners.append(listener)
        return listener

    async def serve(self, host: str = "", port: int = 3340, *, tls: ServerContext | None = None) -> None:
        """Listen on an address and serve until `close` is called elsewhere or this task is cancelled."""
        self.listen(host, port, tls=tls)
        try:
            await self._closed.wait()
        finally:
            await self.close()

    async def close(self) -> None:
        """Close every listener and connection and end the data plane's threads. Safe to repeat."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._upkeep.stop()
        if self._telling is not None:
            self._telling.cancel()
        for listener in self._listeners:
            listener.close()
        await self._region.close()
        if self._loop is not None:
            self._loop.remove_reader(self._plane.fileno())
        self._plane.close()
        self._on_plane_events()
        for bridge in list(self.bridges):
            bridge.close()
        if self._loop is not None:
            self.handshakes.close()
            self.poller.close()

    async def __aenter__(self) -> Server:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # One connection from elsewhere

    async def accept(self, reader: Reader, writer: Writer, remote: tuple[str, int] = ("", 0)) -> None:
        """Serve one DERP conversation over a pair of streams, after whatever HTTP there was, until it ends.

        Args:
            reader, writer: asyncio streams or objects with the same methods; closed at the end.
            remote: (ip, port) to tell watchers and logs.

        Raises LoginError when the client breaks the rules of the login, TimeoutError when it takes too long,
        asyncio.IncompleteReadError when it leaves before.
        """
        self.start()
        self.note_accept()
        try:
            async with asyncio.timeout(self.login_timeout):
                writer.write(self._server_key)
                await writer.drain()
                login = await self._read_login(reader)
                mesh = self.is_mesh_peer(login.info)
                if self.verify is not None and not mesh and not await self.verify(login.public, login.info, remote[0]):
                    raise LoginError("denied", f"{login.public.short} is not allowed")
        except BaseException as error:
            self.note_refused("login", _reason(error), remote, str(error))
            writer.close()
            raise
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.promote(theirs.detach(), login, remote, first=self.server_info(login, mesh), mesh=mesh)
        await pump_streams(reader, writer, ours)

    async def _read_login(self, reader: Reader) -> ClientLogin:
        frame_type, length = HEADER.unpack(await reader.readexactly(HEADER_SIZE))
        check_client_info_header(frame_type, length)
        return open_client_info(self.private_key, await reader.readexactly(length))

    # The region

    @property
    def mesh_keys(self) -> list[MeshKey]:
        """The secrets a mesh peer may show; our links show the first. May be assigned at any time; zero keys are left out."""
        return list(self._region.keys)

    @mesh_keys.setter
    def mesh_keys(self, keys: Iterable[MeshKey]) -> None:
        self._region.set_keys(keys)

    @property
    def mesh_key(self) -> MeshKey:
        """The secret our links show; the zero key when there is none. Assigned, it is the only one."""
        return self._region.key

    @mesh_key.setter
    def mesh_key(self, key: MeshKey) -> None:
        self._region.set_keys([key])

    @property
    def has_mesh_key(self) -> bool:
        """Whether a mesh key is set."""
        return bool(self._region.keys)

    def set_mesh_peers(self, peers: Iterable[MeshPeer | str]) -> None:
        """Be linked to these relays of the region from now on, whatever was before. PROTOCOL §7.

        Args:
            peers: members, or what `MeshPeer.parse` takes: `host[:port]`, `host[:port]/dialhost` or a URL. This relay
                itself may be among them.

        Raises ValueError for a member that cannot be, and without a mesh key.
        """
        members = [MeshPeer.parse(peer) if isinstance(peer, str) else peer for peer in peers]
        if members and not self.has_mesh_key:
            raise ValueError("a relay without a mesh key cannot be linked to others")
        self.start()
        self._region.mesh.set_peers(members)

    def add_packet_forwarder(self, key: NodePublic, forwarder: PacketForwarder) -> None:
        """Hand packets for a key that is not connected here to an object, as to another relay of the region. PROTOCOL §7.5.

        Of several forwarders for one key the oldest is used. Adding the same object again changes nothing.
        """
        self.start()
        self._region.forwarders.add(key.raw, forwarder)

    def remove_packet_forwarder(self, key: NodePublic, forwarder: PacketForwarder) -> None:
        """Undo `add_packet_forwarder`; a no-op for what was not added. Receivers learn when a key has left the region."""
        self._region.forwarders.remove(key.raw, forwarder)

    def _join(self, outside: socket.socket, channel: Channel) -> int:
        """Bridge a connection that we dialled; the bridge sets the stream's callbacks."""
        stream = Stream(self.poller, outside, _unset, _unset, _unset)
        return bridge(self.poller, stream, channel, self.bridges)

    # For connections on their way in

    def greeting(self, fast_start: bool) -> bytes:
        """Return what a client is told first: the 101 response unless it asked for a fast start, and the relay's key."""
        return self._server_key if fast_start else self._switching

    def is_mesh_peer(self, info: ClientInfo) -> bool:
        """Whether a client has shown the mesh key."""
        return self._region.is_mesh_peer(info)

    def server_info(self, login: ClientLogin, mesh: bool) -> bytes:
        """Return the frame that ends a login, with the limit the client has to keep."""
        return login.server_info_frame(ServerInfo() if mesh else self._client_server_info())

    def _client_server_info(self) -> ServerInfo:
        limit = self._rate_limit or RateLimit()
        return ServerInfo(
            token_bucket_bytes_per_second=min(limit.bytes_per_s, _TOLD_MAX),
            token_bucket_bytes_burst=min(limit.burst_bytes, _TOLD_MAX),
        )

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
    ) -> None:
        """Hand a logged-in connection to the data plane, which owns the descriptor and the keys from now on.

        Args:
            first: frames to write before any other.
            opened: plain bytes read behind the login.
            records: the keys of a TLS 1.3 connection; what they have pending goes along.
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
            )
        except PlaneError as error:
            self.note_refused("promote", "memory", remote, str(error))
            return
        if self._duplicates is not None and not mesh:
            self._duplicates.joined(login.public.raw)
        self._region.arrived(handle, Arrival(login.public.raw, addr, remote[1], mesh, login.info.is_prober, not_ideal))

    def note_accept(self) -> None:
        """Count a connection that begins a login."""
        self._n_accepts += 1

    def note_websocket(self) -> None:
        """Count a WebSocket that was opened."""
        self._n_websockets += 1

    def note_refused(self, stage: str, reason: str, remote: tuple[str, int], detail: str) -> None:
        """Count and log a connection that ended before its login was complete."""
        self._refused[f"{stage}_{reason}"] += 1
        if reason in _QUIET and not detail:
            log.debug("%s: closed at %s: %s", format_address(remote), stage, reason)
        else:
            self._summary.say((stage, reason), "%s: refused at %s: %s", format_address(remote), stage, detail or reason)

    def note_request(self, tls_version: str) -> None:
        """Count an HTTP request over TLS by version, "1.2" or "1.3"."""
        self._requests[tls_version] += 1

    def note_shortage(self, error: OSError) -> None:
        """Count and log that accepting had to pause."""
        self._n_shortages += 1
        self._summary.say("shortage", "cannot accept connections for the moment: %s", os.strerror(error.errno or 0))

    def note_too_fast(self, remote: tuple[str, int]) -> None:
        """Log a connection that was closed because too many are accepted; its listener counts it."""
        self._summary.say("too fast", "%s: closed: connections come faster than they are accepted", format_address(remote))

    # What changes while it runs

    def set_rate_limit(self, limit: RateLimit) -> None:
        """Limit what each client may send from now on, each with a full burst, and tell them; mesh peers are exempt. PROTOCOL §6.8."""
        self._rate_limit = limit
        self._plane.set_rate_limit(limit.bytes_per_s, limit.burst_bytes)
        if self._telling is not None:
            self._telling.cancel()
        if self._loop is not None:
            self._telling = self._loop.create_task(self._tell_limit())

    async def _tell_limit(self) -> None:
        """Send everybody a new ServerInfo, a few at a time: each costs a key agreement."""
        text = server_info_json(self._client_server_info())
        for number, (handle, client) in enumerate(self._clients()):
            sealed = self.private_key.seal_to(client.key, text)
            self._plane.send(handle, frame(FrameType.SERVER_INFO, sealed))
            if number % 32 == 31:
                await asyncio.sleep(0)

    def announce_restart(self, reconnect_in_s: float, try_for_s: float, *, spread_s: float = 0.0) -> int:
        """Tell every client that the relay goes away for a moment; return how many were told.

        Args:
            reconnect_in_s: when to come back.
            try_for_s: how long to go on trying before looking for another relay.
            spread_s: each is given up to so much longer, so that they do not come back all at once.
        """
        return sum(
            self._plane.send(
                session.handle,
                frame(FrameType.RESTARTING, restarting_payload(reconnect_in_s + random.uniform(0, spread_s), try_for_s)),
            )
            for session in self._plane.sessions()
            if not session.link
        )

    # Looking in

    @cached_property
    def meta_cert(self) -> bytes:
        """The certificate (DER) to append to a chain: it tells TLS 1.3 clients our key before the first frame. PROTOCOL §10."""
        return certs.meta_cert(self.public_key.hex)

    @property
    def listeners(self) -> list[Listener]:
        """Where it listens."""
        return list(self._listeners)

    @property
    def rate_limit(self) -> RateLimit | None:
        """What each client may send; None when nobody has said anything about it."""
        return self._rate_limit

    def is_client_connected(self, key: NodePublic) -> bool:
        """Whether a client with this key is logged in here."""
        return self._plane.is_connected(key.raw)

    def clients(self) -> list[Client]:
        """Return who is connected, with the address it came from; mesh peers left out."""
        return [client for _, client in self._clients()]

    def disconnect(self, unwanted: Callable[[Client], bool]) -> list[Client]:
        """Close the connections of clients for which `unwanted` says so; return whose they were. Mesh peers are not asked about."""
        closed = []
        for handle, client in self._clients():
            if unwanted(client) and self._plane.close_session(handle):
                closed.append(client)
        return closed

    def _clients(self) -> Iterator[tuple[int, Client]]:
        for session in self._plane.sessions():
            if not session.mesh and not session.link:
                yield session.handle, Client(NodePublic(session.key), address_text(session.addr))

    def metrics(self) -> dict[str, Value]:
        """Return everything counted, by the names of PROTOCOL §14; labelled metrics are dicts by label. For `server.debug.DebugPages`."""
        plane: dict[str, Any] = self._plane.counters()
        if self._rate_limit is None:
            del plane["rate_limit_per_client_waited"]
        else:
            plane["rate_limit_per_client_bytes_per_second"] = self._rate_limit.bytes_per_s
            plane["rate_limit_per_client_burst_bytes"] = self._rate_limit.burst_bytes
        plane["peer_gone_disconnected_frames"] += self._region.presence.n_gone_sent
        return {
            **{f"{'fastderp' if name in _PLANE_OWN else 'derp'}_{name}": value for name, value in plane.items()},
            **self._region.metrics(),
            "derp_accepts": self._n_accepts,
            "derp_websocket_accepts": self._n_websockets,
            "derper_tls_request_version": dict(self._requests),
            "tls_listener_accepted_connections": sum(listener.n_accepted for listener in self._listeners if listener.tls),
            "tls_listener_rejected_connections": sum(listener.n_rejected for listener in self._listeners if listener.tls),
            "derp_tcp_rtt": dict(self._round_trips.counts) if self._round_trips else {},
            "fastderp_closed": dict(self._refused),
            "fastderp_session_closed": dict(self._ended),
            "fastderp_websocket_failures": dict(self.websocket_failures),
            "fastderp_accept_shortages": self._n_shortages,
            "fastderp_connections_not_logged_in": sum(listener.n_pending for listener in self._listeners),
        }

    def expvar(self) -> dict[str, Any]:
        """Return the relay's own metrics as the "derp" object of `/debug/vars` has them."""
        tree: dict[str, Any] = expvar(self.metrics())["derp"]
        return tree

    async def debug_traffic(self, interval_s: float = traffic.ROUND_S) -> AsyncIterator[BytesSentRecv]:
        """Yield what connections have moved, now and after each interval: those that moved anything since the last. PROTOCOL §6.10."""
        async for moved in traffic.rounds(self._plane, interval_s):
            for one in moved:
                yield one

    def traffic_lines(self) -> AsyncIterator[bytes]:
        """Return the endless body of `/debug/traffic`."""
        return traffic.lines(self._plane)

    def consistency_check(self) -> list[str]:
        """Compare the data plane's tables; return what does not fit, in words. PROTOCOL §6.9."""
        problems: list[str] = []
        # The workers do not stop for this: what is only a login or a departure in between is gone at the next look.
        for _ in range(CONSISTENCY_LOOKS):
            problems = self._inconsistencies()
            if not problems:
                break
        return problems

    def _inconsistencies(self) -> list[str]:
        clients = [session for session in self._plane.sessions() if not session.link]
        problems = [
            f"session of {NodePublic(key).short} has no route"
            for key in {client.key for client in clients}
            if not self._plane.is_connected(key)
        ]
        return problems + self._region.inconsistencies(clients, self._plane.counters())

    # What the data plane reports

    def _on_plane_events(self) -> None:
        for event in self._plane.events():
            if isinstance(event, ClosedEvent):
                self._ended[event.reason] += 1
                self._log_closed(event)
                if self._duplicates is not None:
                    self._duplicates.left(event.key, event.handle)
                self._region.closed(event)
            else:
                self._region.received(event)

    def _log_closed(self, event: ClosedEvent) -> None:
        level = logging.DEBUG if event.reason in _UNREMARKABLE else logging.INFO
        if not log.isEnabledFor(level):
            return
        totals = event.totals
        log.log(
            level,
            "%s %s: closed after %.1f s: %s; in %d packets %d bytes, out %d packets %d bytes, dropped %d",
            NodePublic(event.key).short,
            format_address((address_text(event.addr), event.port)),
            totals.seconds,
            f"{event.reason} ({event.detail})" if event.detail else event.reason,
            totals.rx_packets,
            totals.rx_bytes,
            totals.tx_packets,
            totals.tx_bytes,
            totals.dropped,
        )


def _reason(error: BaseException) -> str:
    """Return what a failed login counts as."""
    if isinstance(error, LoginError):
        return error.reason
    return "timeout" if isinstance(error, TimeoutError) else "end"


def _unset(*_: object) -> None:
    """Stand in for a callback that is set later."""
