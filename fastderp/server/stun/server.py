"""STUN: answers clients with the source address of their UDP packets (PROTOCOL §11).

Binds the sockets of each `StunResponder`, which answers in a separate thread. Sockets are separate
for IPv4 and IPv6, so an IPv4 client is answered with an IPv4 address. Loop thread only.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from functools import partial
from ipaddress import IPv4Address

from fastderp.errors import ListenError
from fastderp.server.net.gateway import private_gateway
from fastderp.server.net.listen import datagram_sockets, tune
from fastderp.server.observe.supervisor import supervisor
from fastderp.server.observe.values import Value
from fastderp.server.stun.responder import StunResponder
from fastderp.util.log_lines import logger
from fastderp.util.machine import n_cores

log: logging.Logger = logger("fastderp.stun")

# Receive buffer for a burst of some 2,500 requests; net.core.rmem_max limits it. The kernel doubles
# it, and counts a request with its own structures.
RECEIVE_BYTES = 1 << 20
# A thread fills one core with some 200,000 answers per second, beside a data plane that needs most
# cores.
CORES_PER_THREAD = 4
THREADS_MAX = 8
# Linux's number; Python's socket module has it from 3.14 on.
IP_PKTINFO = 8
# The kernel's memory counters of a socket (linux/sock_diag.h), which Python has no names for.
SO_MEMINFO = 55
MEMINFO = struct.Struct("9I")
MEMINFO_DROPS = 8


def stun_metrics(counters: dict[str, int]) -> dict[str, Value]:
    """Return the counters of a responder, or zeros for {}, under the names of `metrics.METRICS`."""
    dispositions = ("success", "not_stun", "read_error", "write_error")
    return {
        "stun_requests": {name: counters.get(name, 0) for name in dispositions},
        "stun_addrfamily": {name: counters.get(name, 0) for name in ("ipv4", "ipv6")},
        "stun_no_local_addr": counters.get("no_local_addr", 0),
        "fastderp_stun_unanswered_total": counters.get("unanswered", 0),
        "fastderp_stun_dropped_total": counters.get("dropped", 0),
    }


class StunServer:
    """Answers STUN on the sockets it is given, from `start` to `close`; made by `bind_stun`.

    With several threads, each has such sockets of its own, and the kernel shares the clients out.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        gateway: IPv4Address | None = None,
        n_threads: int = 1,
    ) -> None:
        """Make the threads and their sockets. Requests from `gateway` are counted."""
        self.sockets: list[socket.socket] = sockets
        self.gateway: IPv4Address | None = gateway
        # The sockets of the other threads, to which the kernel gives their share of the clients.
        self._twins: list[socket.socket] = []
        self._responders: list[StunResponder] = []
        self._is_running = False
        self._n_dropped = 0  # by the sockets that are closed
        packed = gateway.packed if gateway is not None else b""
        own = sockets
        for _ in range(n_threads):
            self._responders.append(StunResponder([sock.fileno() for sock in own], packed))
            if len(self._responders) < n_threads:
                own = [_twin(sock) for sock in sockets]
                self._twins += own

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The (host, port) of every bound socket."""
        return [sock.getsockname()[:2] for sock in self.sockets]

    @property
    def is_silent(self) -> bool:
        """Whether requests are read and not answered. May be assigned at any time."""
        return self._responders[0].is_silent

    @is_silent.setter
    def is_silent(self, is_silent: bool) -> None:
        for responder in self._responders:
            responder.is_silent = is_silent

    @property
    def request_counts(self) -> tuple[int, int]:
        """The number of answered requests, and of those from the gateway."""
        counters = self._counters()
        return counters["success"], counters["from_gateway"]

    def start(self) -> None:
        """Begin to answer. Raises OSError when the system refuses a thread."""
        loop = asyncio.get_running_loop()
        self._is_running = True
        for responder in self._responders:
            responder.start()
            on_error = supervisor.guarded("STUN", partial(_log_read_error, responder))
            loop.add_reader(responder.fileno(), on_error)

    def close(self) -> None:
        """Stop answering and close the sockets."""
        if self._is_running:
            loop = asyncio.get_running_loop()
            for responder in self._responders:
                loop.remove_reader(responder.fileno())
            self._is_running = False
        for responder in self._responders:
            responder.stop()
        for sock in (*self.sockets, *self._twins):
            self._n_dropped += _n_dropped(sock)
            sock.close()
        self.sockets.clear()
        self._twins.clear()

    def metrics(self) -> dict[str, Value]:
        """Return the counters under the names of `metrics.METRICS`."""
        return stun_metrics(self._counters())

    def _counters(self) -> dict[str, int]:
        """Return the sums over the threads."""
        each = [responder.counters() for responder in self._responders]
        sums = {name: sum(counters[name] for counters in each) for name in each[0]}
        sums["dropped"] = self._n_dropped + sum(map(_n_dropped, (*self.sockets, *self._twins)))
        return sums


def bind_stun(host: str, port: int, *, reuse_port: bool = False, n_threads: int = 0) -> StunServer:
    """Bind the STUN sockets for every address of a host, by the rules of `net.listen`.

    `n_threads` is 0 for one per CORES_PER_THREAD cores.

    Needs no running loop; call `start` on the result. Raises ListenError when an address cannot be
    bound.
    """
    try:
        sockets = datagram_sockets(host, port, _prepare, reuse_port=reuse_port)
        return StunServer(sockets, private_gateway(), n_threads or _n_threads())
    except OSError as error:
        raise ListenError(f"STUN: {error.strerror}") from error


def stun_on(sockets: list[socket.socket]) -> StunServer:
    """Answer on sockets that are bound already. Needs no running loop, as `bind_stun`."""
    for sock in sockets:
        _prepare(sock)
    return StunServer(sockets, private_gateway())


def _n_threads() -> int:
    """Return the number of threads for the cores that this process may use."""
    return max(1, min(n_cores() // CORES_PER_THREAD, THREADS_MAX))


def _twin(sock: socket.socket) -> socket.socket:
    """Return another socket that is bound to the same address. Raises OSError."""
    # Not before it was bound: it must not join the port of another program.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    twin = socket.socket(sock.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if sock.family == socket.AF_INET6:
            only_ipv6 = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            twin.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
        twin.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _prepare(twin)
        twin.bind(sock.getsockname())
    except OSError:
        twin.close()
        raise
    return twin


def _n_dropped(sock: socket.socket) -> int:
    """Return how many datagrams the kernel has dropped for want of room in the buffer."""
    try:
        found = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, MEMINFO.size)
        return int(MEMINFO.unpack(found)[MEMINFO_DROPS])
    except (OSError, struct.error):  # a kernel without the option
        return 0


def _log_read_error(responder: StunResponder) -> None:
    number = responder.take_error()
    log.warning("STUN: cannot read: %s; next attempt in 1 s", os.strerror(number))


def _prepare(sock: socket.socket) -> None:
    """Have the kernel report the destination of each datagram, and buffer a burst of them."""
    tune(sock, socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    # Without the destination the answer leaves from the address that the kernel chooses.
    if sock.family == socket.AF_INET:
        tune(sock, socket.IPPROTO_IP, IP_PKTINFO, 1)
    else:
        tune(sock, socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
