"""STUN: answers clients with the source address of their UDP packets (PROTOCOL §11).

Binds the sockets for a `StunResponder`, which answers in a separate thread. Sockets
are separate for IPv4 and IPv6, so an IPv4 client is answered with an IPv4 address. Loop thread
only.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from fastderp.errors import ListenError
from fastderp.server.net.gateway import private_gateway
from fastderp.server.net.listen import datagram_sockets
from fastderp.server.observe.metrics import Value
from fastderp.server.observe.supervisor import supervisor
from fastderp.server.stun.responder import StunResponder

log: logging.Logger = logging.getLogger("fastderp.stun")

# Receive buffer for a burst of requests. The kernel limits it, and half of it is overhead.
RECEIVE_BYTES = 1 << 20
# Linux's number; Python's socket module has it from 3.14 on.
IP_PKTINFO = 8


def stun_metrics(counters: dict[str, int]) -> dict[str, Value]:
    """Return the counters of a responder, or zeros for {}, under the names of `metrics.METRICS`."""
    dispositions = ("success", "not_stun", "read_error", "write_error")
    return {
        "stun_requests": {name: counters.get(name, 0) for name in dispositions},
        "stun_addrfamily": {name: counters.get(name, 0) for name in ("ipv4", "ipv6")},
        "stun_no_local_addr": counters.get("no_local_addr", 0),
        "fastderp_stun_unanswered_total": counters.get("unanswered", 0),
    }


@dataclass(slots=True)
class StunServer:
    """Answers STUN on the sockets it is given, from `start` to `close`; made by `bind_stun`."""

    sockets: list[socket.socket]
    gateway: IPv4Address | None = None  # its requests are counted
    _responder: StunResponder = field(init=False)
    _is_running: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        gateway = self.gateway.packed if self.gateway is not None else b""
        self._responder = StunResponder([sock.fileno() for sock in self.sockets], gateway)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The (host, port) of every bound socket."""
        return [sock.getsockname()[:2] for sock in self.sockets]

    @property
    def is_silent(self) -> bool:
        """Whether requests are read and not answered. May be assigned at any time."""
        return self._responder.is_silent

    @is_silent.setter
    def is_silent(self, is_silent: bool) -> None:
        self._responder.is_silent = is_silent

    @property
    def askers(self) -> tuple[int, int]:
        """The number of answered requests, and of those from the gateway."""
        counters = self._responder.counters()
        return counters["success"], counters["from_gateway"]

    def start(self) -> None:
        """Begin to answer. Raises OSError when the system refuses a thread."""
        self._responder.start()
        asyncio.get_running_loop().add_reader(
            self._responder.fileno(), supervisor.guarded("STUN", self._log_read_error)
        )
        self._is_running = True

    def close(self) -> None:
        """Stop answering and close the sockets."""
        if self._is_running:
            asyncio.get_running_loop().remove_reader(self._responder.fileno())
            self._is_running = False
        self._responder.stop()
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()

    def metrics(self) -> dict[str, Value]:
        """Return the counters under the names of `metrics.METRICS`."""
        return stun_metrics(self._responder.counters())

    def _log_read_error(self) -> None:
        number = self._responder.take_error()
        log.warning("STUN: cannot read: %s; next attempt in 1 s", os.strerror(number))


def bind_stun(host: str, port: int, *, reuse_port: bool = False) -> StunServer:
    """Bind the STUN sockets for every address of a host, by the rules of `net.listen`.

    Needs no running loop; call `start` on the result. Raises ListenError when an address cannot be
    bound.
    """
    try:
        sockets = datagram_sockets(host, port, _prepare, reuse_port=reuse_port)
        return StunServer(sockets, private_gateway())
    except OSError as error:
        raise ListenError(f"STUN: {error.strerror}") from error


def stun_on(sockets: list[socket.socket]) -> StunServer:
    """Answer on sockets that are bound already. Needs no running loop, as `bind_stun`."""
    for sock in sockets:
        _prepare(sock)
    return StunServer(sockets, private_gateway())


def _prepare(sock: socket.socket) -> None:
    """Have the kernel report the destination of each datagram, and buffer a burst of them."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
