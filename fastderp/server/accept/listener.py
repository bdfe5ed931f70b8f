"""Listening sockets, and the connections accepted there that are not logged in yet. PROTOCOL §9.1.

Loop thread only. Accepting survives every shortage: existing clients are not touched, and it goes on when there are descriptors again.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import Counter

from fastderp.server.accept.connection import Connection
from fastderp.server.accept.registrar import Entrance
from fastderp.server.certificates.certificate import CertificateSource
from fastderp.server.http.message import KnownUpgrades, Routes
from fastderp.server.http.tunnel import Tunnels
from fastderp.tls.context import ServerContext
from fastderp.util.net import format_address
from fastderp.util.token_bucket import TokenBucket

# So many at once, then other work gets its turn.
ACCEPTS_PER_TURN = 64
# Out of descriptors or memory: look again after this long.
SHORTAGE_PAUSE_S = 0.25
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# What connections before their login may hold together: sockets (the oldest goes first), and bytes of oversized ClientInfos.
PENDING_LIMIT = 16384
RESERVE_LIMIT_BYTES = 16 * 1024 * 1024

LOGIN_BUDGET_S = 10.0
IDLE_S = 30.0


class Listener:
    """Accepts on one address (both families) and sees each connection through to its login.

    Args:
        entrance: where they log in.
        sockets: listening, non-blocking.
        routes: who answers which path.
        tls: a certificate, or who has one for each client; None to speak plain HTTP.
        login_budget_s: from accept to login, whatever trickles in.
        idle_s: how long a connection that was answered may wait with its next request.
        accept_limiter: who comes too fast is closed at once.
        tunnels: takes clients that ask for it elsewhere; None refuses.
    """

    def __init__(
        self,
        entrance: Entrance,
        sockets: list[socket.socket],
        routes: Routes,
        tls: ServerContext | CertificateSource | None = None,
        *,
        login_budget_s: float = LOGIN_BUDGET_S,
        idle_s: float = IDLE_S,
        accept_limiter: TokenBucket | None = None,
        tunnels: Tunnels | None = None,
    ) -> None:
        self.entrance = entrance
        self.loop = asyncio.get_running_loop()
        self.routes = routes
        self.tls = tls
        self.login_budget_s = login_budget_s
        self.idle_s = idle_s
        self._sockets = sockets
        self._pending: dict[Connection, None] = {}
        self._reserved_bytes = 0
        self.tunnels = tunnels
        self._accept_limiter = accept_limiter
        self.known_upgrades = KnownUpgrades()
        self.n_accepted = 0
        self.n_rejected = 0
        self._shortage: dict[socket.socket, asyncio.TimerHandle] = {}
        for sock in sockets:
            self._watch(sock)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._sockets[0].getsockname()[1])

    @property
    def addresses(self) -> list[str]:
        """The addresses it listens on, as `ip:port`."""
        return [format_address(sock.getsockname()) for sock in self._sockets]

    @property
    def n_pending(self) -> int:
        """How many accepted connections are not logged in."""
        return len(self._pending)

    @property
    def tls_versions(self) -> Counter[str]:
        """How many connections are at their login, or watch an endless page, by their TLS version."""
        return Counter(
            connection.tls_version for connection in self._pending if connection.is_at_request
        )

    def close(self) -> None:
        """Stop listening and close every connection that is not logged in."""
        for timer in self._shortage.values():
            timer.cancel()
        for sock in self._sockets:
            if sock.fileno() >= 0:
                self.loop.remove_reader(sock.fileno())
                sock.close()
        for connection in list(self._pending):
            connection.leave()

    def forget(self, connection: Connection) -> None:
        """Strike a connection that is logged in or closed from the list of the pending."""
        self._pending.pop(connection, None)

    def reserve(self, n_bytes: int) -> bool:
        """Take `n_bytes` from the memory all pending logins share; False when it is used up."""
        if self._reserved_bytes + n_bytes > RESERVE_LIMIT_BYTES:
            return False
        self._reserved_bytes += n_bytes
        return True

    def unreserve(self, n_bytes: int) -> None:
        """Give back what `reserve` gave."""
        self._reserved_bytes -= n_bytes

    def _watch(self, sock: socket.socket) -> None:
        self._shortage.pop(sock, None)
        self.loop.add_reader(sock.fileno(), self._accept, sock)

    def _accept(self, sock: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                accepted, address = sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in SHORTAGES:
                    self._pause(sock, error)
                    return
                # A connection that died in the queue (ECONNABORTED, EPROTO, ENETDOWN …): the next may be well.
                continue
            self._admit(accepted, (address[0].partition("%")[0], address[1]))

    def _admit(self, accepted: socket.socket, remote: tuple[str, int]) -> None:
        if self._accept_limiter is not None and not self._accept_limiter.take():
            accepted.close()
            self.n_rejected += 1
            self.entrance.journal.note_too_fast(remote)
            return
        self.n_accepted += 1
        if len(self._pending) >= PENDING_LIMIT:
            # The newest has the best chance to be a good client: those are logged in within a second.
            next(iter(self._pending)).close("crowded", "too many connections are not logged in")
        self._pending[Connection(self, accepted, remote)] = None

    def _pause(self, sock: socket.socket, error: OSError) -> None:
        """Stop asking for a moment: the socket stays readable, and asking again and again would eat the processor."""
        self.loop.remove_reader(sock.fileno())
        self._shortage[sock] = self.loop.call_later(SHORTAGE_PAUSE_S, self._watch, sock)
        self.entrance.journal.note_shortage(error)
