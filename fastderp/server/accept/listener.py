"""Accepts connections and keeps them until they are logged in. PROTOCOL §9.1.

Loop thread only. A shortage pauses accepting only: connected clients stay, and accepting resumes
when descriptors are free.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections import Counter
from collections.abc import Sequence
from heapq import nlargest
from typing import TYPE_CHECKING

from fastderp.server.accept.connection import Connection
from fastderp.server.accept.context import AcceptContext
from fastderp.server.accept.registrar import Registrar
from fastderp.server.admission.address_limits import AddressLimitError
from fastderp.server.certificates.certificate import CertificateSource
from fastderp.server.http.routes import Routes
from fastderp.server.http.upgrade import KnownUpgrades
from fastderp.server.net.listen import BACKLOG, Prepare, steer_to_successor
from fastderp.server.net.stream import accept, has_waiting
from fastderp.server.observe.supervisor import supervisor
from fastderp.server.observe.values import Value
from fastderp.server.settings import ProxySettings
from fastderp.tls.context import ServerContext
from fastderp.util.net import format_address
from fastderp.util.shortage import SHORTAGES, first_reserved_descriptor, reserve_is_touched
from fastderp.util.token_bucket import TokenBucket

if TYPE_CHECKING:
    from fastderp.server.http.tunnel import Tunnels

# Maximum of connections accepted per iteration of the loop.
ACCEPTS_PER_TURN = 16
# Seconds without accepting after descriptors or memory ran out.
SHORTAGE_PAUSE_S = 0.25

# Seconds for the TCP handshakes that clients have begun before another process took the port over.
HANDSHAKES_S = 1.0

# Maximum of connections before their login; above it the oldest is closed.
PENDING_LIMIT = 16384
# While descriptors are short, connections before their login are closed once they have waited this
# long for their client. A client repeats a lost segment after a second.
SILENT_S = 2.0
# Maximum closed by one search, which looks at all connections before their login: this number, or
# one in SILENT_SHARE of them if that is more.
SILENT_ENDS = 16
SILENT_SHARE = 8

LOGIN_BUDGET_S = 10.0
IDLE_S = 30.0

_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class Listener:
    """Accepts on one address (both families) and keeps each connection until its login.

    `Server.listen` returns it. PROTOCOL §9.1.

    Args:
        registrar: turns logins into sessions.
        sockets: listening, non-blocking.
        routes: the handlers of paths.
        tls: a certificate, or a `CertificateSource` that picks one for each client; None for plain
            HTTP.
        login_budget_s: seconds from accept to login; bytes that arrive do not extend them.
        idle_s: seconds that an answered connection may wait with its next request.
        accept_limiter: closes connections that come too fast.
        tunnels: serves CONNECT; None refuses it.
        proxies: which peers are proxies, and what they send.
        reuse_port: another process may listen on the same port.
        listeners: all of the relay; this one joins them.
        options: sets the options of a client's connection, for sockets of another owner, such as
            those of socket activation: they stay open there, and may have queued connections before
            they got the options. None for sockets of our own.
    """

    def __init__(
        self,
        registrar: Registrar,
        sockets: list[socket.socket],
        routes: Routes,
        tls: ServerContext | CertificateSource | None = None,
        *,
        listeners: list[Listener],
        reuse_port: bool = False,
        options: Prepare | None = None,
        login_budget_s: float = LOGIN_BUDGET_S,
        idle_s: float = IDLE_S,
        accept_limiter: TokenBucket | None = None,
        tunnels: Tunnels | None = None,
        proxies: ProxySettings = ProxySettings(),
    ) -> None:
        self._context = AcceptContext(
            registrar, routes, tls, login_budget_s, idle_s, tunnels, KnownUpgrades(), proxies
        )
        self._loop = registrar.loop
        self._connection_log = registrar.connection_log
        self._sockets = sockets
        self._names = [sock.getsockname() for sock in sockets]
        # Of the paths of our unix sockets: another relay may have taken a path over by our end.
        self._inodes = {
            name: os.stat(name).st_ino
            for name in self._names
            if isinstance(name, str) and options is None
        }
        self.reuse_port: bool = reuse_port
        self.owns_sockets: bool = options is None
        self._options = options
        # sockets whose queue was never empty yet
        self._unprepared = set(sockets) if options is not None else set()
        self._pending: dict[Connection, None] = {}
        self._listeners = listeners
        listeners.append(self)
        self._accept_limiter = accept_limiter
        self._touches_reserve = True
        self.n_accepted: int = 0
        self.n_rejected: int = 0
        self._shortage: dict[socket.socket, asyncio.TimerHandle] = {}
        for sock in sockets:
            self._watch(sock)

    @property
    def routes(self) -> Routes:
        """The handlers of paths."""
        return self._context.routes

    @property
    def tls(self) -> ServerContext | CertificateSource | None:
        """The certificate for later connections, None without TLS. May be assigned."""
        return self._context.tls

    @tls.setter
    def tls(self, tls: ServerContext | CertificateSource) -> None:
        self._context = self._context._replace(tls=tls)

    @property
    def login_budget_s(self) -> float:
        """Seconds that connections accepted from now on have until their login. May be assigned."""
        return self._context.login_budget_s

    @login_budget_s.setter
    def login_budget_s(self, seconds: float) -> None:
        self._context = self._context._replace(login_budget_s=seconds)

    @property
    def is_main(self) -> bool:
        """Whether clients log in at this listener."""
        return self._context.routes.derp

    @property
    def port(self) -> int:
        """The TCP port, 0 for a unix socket."""
        address = self._names[0]
        return 0 if isinstance(address, str) else int(address[1])

    @property
    def addresses(self) -> list[str]:
        """The listening addresses, as `ip:port` or `unix:PATH`."""
        return [
            f"unix:{name}" if isinstance(name, str) else format_address(name)
            for name in self._names
        ]

    def __repr__(self) -> str:
        return f"<Listener on {', '.join(self.addresses)}>"

    @property
    def n_pending(self) -> int:
        """The number of accepted connections that are not logged in."""
        return len(self._pending)

    @property
    def tls_versions(self) -> Counter[str]:
        """The number of connections at their login, or with an endless page, by TLS version."""
        return Counter(
            connection.tls_version for connection in self._pending if connection.is_at_request
        )

    def close(self) -> None:
        """Stop listening and close every connection that is not logged in."""
        for sock in self._sockets:
            self._close(sock)
        for connection in list(self._pending):
            supervisor.guard("connection", connection.leave)

    async def stop_accepting(self) -> None:
        """Stop listening; keep the accepted connections and those that the kernel has queued.

        On a shared port, running handshakes end in this process, while new ones go to the other
        process.
        """
        if self.reuse_port:
            for sock in self._sockets:
                steer_to_successor(sock)
            await asyncio.sleep(HANDSHAKES_S)
        for sock in self._sockets:
            for _ in range(BACKLOG // ACCEPTS_PER_TURN):
                if sock.fileno() < 0 or not self._accept(sock):
                    break
                await asyncio.sleep(0)
            self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        if sock.fileno() >= 0:
            self._unwatch(sock)
            if sock.family is socket.AF_UNIX and self.owns_sockets:
                self._remove_path(sock.getsockname())
            sock.close()

    def _remove_path(self, path: str) -> None:
        """Remove the path of a unix socket, unless another relay listens there by now."""
        with contextlib.suppress(OSError):
            if os.stat(path).st_ino == self._inodes.get(path):
                os.unlink(path)

    def _watch(self, sock: socket.socket) -> None:
        self._shortage.pop(sock, None)
        self._loop.add_reader(sock.fileno(), supervisor.guarded("accept", self._accept), sock)

    def _unwatch(self, sock: socket.socket) -> None:
        """Undo `_watch`, also one that follows a pause."""
        self._loop.remove_reader(sock.fileno())
        if (timer := self._shortage.pop(sock, None)) is not None:
            timer.cancel()

    def _accept(self, sock: socket.socket) -> bool:
        """Accept up to ACCEPTS_PER_TURN connections; return whether more may wait."""
        # Check only after a connection that used a reserved descriptor: one connection may.
        if self._touches_reserve and reserve_is_touched() and not self._end_silent():
            self._pause(sock, OSError(errno.EMFILE, "the rest is reserved"))
            return False
        first_reserved = first_reserved_descriptor()
        accepted: list[tuple[int, tuple[str, int]]] = []
        may_wait = True
        for _ in range(ACCEPTS_PER_TURN):
            try:
                found = accept(sock.fileno())
            except OSError as error:
                if error.errno not in SHORTAGES:
                    # This connection failed in the queue (ECONNABORTED, EPROTO, …).
                    continue
                may_wait = error.errno in _OF_DESCRIPTORS and self._end_silent()
                if not may_wait:
                    self._pause(sock, error)
                break
            if found is None:
                may_wait = False
                break
            accepted.append(found)
            if sock in self._unprepared:
                self._prepare(found[0])
            self._touches_reserve = found[0] >= first_reserved
            # Near the reserve, each is served before the next: it may have ended already.
            if found[0] >= first_reserved - ACCEPTS_PER_TURN:
                break
            if not has_waiting(sock.fileno()):
                self._unprepared.discard(sock)
                may_wait = False
                break
        # A connection that comes alone is served at once: its first bytes usually are there.
        at_once = len(accepted) == 1 and not self._context.registrar.poller.is_busy
        for descriptor, remote in accepted:
            supervisor.guard("accept", self._admit, descriptor, remote, at_once)
        return may_wait

    def _end_silent(self) -> bool:
        """End the connections, of any listener, that have waited longest for their clients.

        Returns whether there were any.
        """
        pending = [one for listener in self._listeners for one in listener._pending]
        n_most = max(SILENT_ENDS, len(pending) // SILENT_SHARE)
        silent = nlargest(n_most, pending, key=lambda one: one.silent_s)
        silent = [one for one in silent if one.silent_s >= SILENT_S]
        for connection in silent:
            connection.close("shortage", f"silent for {SILENT_S:g} s while descriptors are short")
        return bool(silent)

    def _prepare(self, descriptor: int) -> None:
        """Set the options of a connection that an inherited socket may have queued without them."""
        assert self._options is not None
        connection = socket.socket(fileno=descriptor)
        # A system may refuse them once the peer has ended the connection.
        with contextlib.suppress(OSError):
            if connection.family is not socket.AF_UNIX:
                self._options(connection)
        connection.detach()

    def _admit(self, descriptor: int, remote: tuple[str, int], at_once: bool) -> None:
        place = self._context.registrar.addresses.place()
        # An address over its limit takes nothing from the limiter, which all addresses share. A
        # proxy's own address does not count; its clients do when they are known.
        if not self._context.proxies.trusted.trusts(remote[0]):
            try:
                place.enter(remote[0])
            except AddressLimitError as error:
                os.close(descriptor)
                self._connection_log.note_refused("accept", "address", remote, str(error))
                return
        if self._accept_limiter is not None and not self._accept_limiter.take():
            place.leave()
            os.close(descriptor)
            self.n_rejected += 1
            self._connection_log.note_too_fast(remote)
            return
        self.n_accepted += 1
        if len(self._pending) >= PENDING_LIMIT:
            # A normal client logs in within a second, so the oldest is the least likely to log in.
            next(iter(self._pending)).close("crowded", "too many connections are not logged in")
        try:
            connection = Connection(self._context, descriptor, remote, place, self._forget)
        except BaseException:
            place.leave()
            raise
        self._pending[connection] = None
        connection.start(at_once=at_once)

    def _forget(self, connection: Connection) -> None:
        """Remove a connection that is logged in or closed from the pending ones."""
        self._pending.pop(connection, None)

    def _pause(self, sock: socket.socket, error: OSError) -> None:
        """Stop accepting for SHORTAGE_PAUSE_S: retrying at once would use up the CPU."""
        self._unwatch(sock)
        self._shortage[sock] = self._loop.call_later(SHORTAGE_PAUSE_S, self._watch, sock)
        self._connection_log.note_shortage(error)


def listener_metrics(
    listeners: Sequence[Listener], registrar: Registrar, tls_versions: Counter[str]
) -> dict[str, Value]:
    """Return the metrics of all listeners, and the client connections for DERP by TLS version.

    Args:
        listeners: all of a relay.
        registrar: has the bridged connections.
        tls_versions: the connections in the data plane, by version.
    """
    counts = tls_versions + registrar.bridged_tls_versions
    for listener in listeners:
        counts.update(listener.tls_versions)
    seen = registrar.connection_log.tls_versions
    metrics: dict[str, Value] = {
        "derper_tls_active_version": {version: counts[version] for version in seen},
        "fastderp_connections_not_logged_in": sum(listener.n_pending for listener in listeners),
    }
    if over_tls := [listener for listener in listeners if listener.tls]:
        metrics["tls_listener_accepted_connections"] = sum(one.n_accepted for one in over_tls)
        metrics["tls_listener_rejected_connections"] = sum(one.n_rejected for one in over_tls)
    return metrics
