"""CONNECT to the vendor's control servers, for clients that can reach only a relay (ACE).

PROTOCOL §9.8. Loop thread only. The number of tunnels and the bytes per second of all tunnels are
limited.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from fastderp.net.connect import connect_tcp
from fastderp.server.net.pump import Pump
from fastderp.server.net.stream import Poller, Stream
from fastderp.server.observe.supervisor import supervisor
from fastderp.server.observe.values import Value
from fastderp.tls.channel import Channel
from fastderp.tls.errors import TlsError
from fastderp.util.token_bucket import TokenBucket

log: logging.Logger = logging.getLogger("fastderp")

ESTABLISHED = b"HTTP/1.1 200 OK\r\n\r\n"

TUNNELS_LIMIT = 256
# Limit for idle tunnels; the kernel closes those whose peer is gone. Control connections send every
# minute.
IDLE_S = 900.0
# Limit for a name lookup with all attempts to connect.
DIAL_S = 15.0
# Seconds that a side has to read the rest after the other has ended.
DRAIN_S = 2.0

BYTES_PER_S = 8 * 1024 * 1024
BURST_BYTES = 1024 * 1024
# Minimum charge of a read, because a read of one byte also costs loop time.
READ_COST_BYTES = 4096

_TARGET = re.compile(r"([A-Za-z0-9.-]+\.tailscale\.com):(443|80)")


class Target(NamedTuple):
    """The target of a tunnel."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Target | None:
        """Read `host:port`; None for a target that is not allowed.

        Relays are not allowed: tunnels could form a loop.
        """
        match = _TARGET.fullmatch(text)
        if match is None or "derp" in match[1].lower():
            return None
        return cls(match[1], int(match[2]))


Dial = Callable[[Target], Awaitable[socket.socket]]


async def dial(target: Target) -> socket.socket:
    """Connect to a target. Raises OSError."""
    sock = await connect_tcp(target.host, target.port)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock


class Tunnels:
    """All tunnels of a relay.

    Args:
        dial: connects to a target, or raises OSError.
        pace: the bytes that all tunnels together may move; a side that overdraws it pauses.
    """

    def __init__(self, dial: Dial = dial, pace: TokenBucket | None = None) -> None:
        self._dial = dial
        self._pace = pace or TokenBucket(BYTES_PER_S, BURST_BYTES)
        self._tunnels: set[Tunnel] = set()
        self._n_dialling = 0
        self._outcomes: Counter[str] = Counter()

    async def connect(self, target: Target, ip: str) -> socket.socket | None:
        """Connect to a target, within DIAL_S; None if that fails or there are too many tunnels.

        ip: the client's address, for the log.
        """
        if len(self._tunnels) + self._n_dialling >= TUNNELS_LIMIT:
            log.debug("%s: %d tunnels are open already", ip, TUNNELS_LIMIT)
            self._outcomes["refused"] += 1
            return None
        self._n_dialling += 1
        try:
            async with asyncio.timeout(DIAL_S):
                sock = await self._dial(target)
        except Exception as error:
            if isinstance(error, OSError):  # TimeoutError is one
                log.debug("%s: cannot connect to %s: %s", ip, target.host, error)
            else:
                supervisor.note("tunnel", error, f"{ip} is not connected to {target.host}")
            self._outcomes["failed"] += 1
            return None
        finally:
            self._n_dialling -= 1
        self._outcomes["connected"] += 1
        return sock

    def join(
        self,
        poller: Poller,
        client: Stream,
        channel: Channel,
        target: socket.socket,
        first: bytes,
        on_close: Callable[[], None],
    ) -> None:
        """Answer 200 and pump; close both sides if that fails.

        Args:
            client, channel: the client's connection.
            target: the connection to its target.
            first: the bytes that the client has sent already.
            on_close: called at the end of the tunnel.
        """

        def forget(tunnel: Tunnel) -> None:
            self._tunnels.discard(tunnel)
            on_close()

        try:
            self._tunnels.add(Tunnel(poller, client, channel, target, first, self._pace, forget))
        except Exception as error:
            client.close()
            target.close()
            on_close()
            if not isinstance(error, TlsError):
                raise

    def close(self) -> None:
        """End every tunnel at once."""
        for tunnel in list(self._tunnels):
            tunnel.close()

    def metrics(self) -> dict[str, Value]:
        """Return the counters by the names of `metrics.METRICS`."""
        return {
            "fastderp_ace_tunnels": len(self._tunnels),
            "fastderp_ace_connects_total": dict(self._outcomes),
        }


class Tunnel(Pump):
    """A client and its target; each gets the bytes of the other.

    Ends with either, and when both are silent for IDLE_S.
    """

    __slots__ = ("_first", "_held", "_idle", "_on_close", "_pace", "_used_s")

    def __init__(
        self,
        poller: Poller,
        client: Stream,
        channel: Channel,
        target: socket.socket,
        first: bytes,
        pace: TokenBucket,
        on_close: Callable[[Tunnel], None],
    ) -> None:
        client.send(channel.seal(ESTABLISHED))
        super().__init__(poller, client, channel, target, DRAIN_S)
        self._pace = pace
        self._on_close = on_close
        self._held: asyncio.TimerHandle | None = None
        self._used_s = self._loop.time()
        self._first = first
        self._idle = self._loop.call_later(
            IDLE_S, supervisor.guarded("tunnel", self._look_at_idleness)
        )
        self.start()

    def _begin(self) -> None:
        self._other.send(self._first)
        self._first = b""
        super()._begin()

    def _may_read_client(self) -> bool:
        return self._held is None

    def _may_read_other(self) -> bool:
        return self._held is None

    def _moved(self, n_bytes: int) -> None:
        self._used_s = self._loop.time()
        wait_s = self._pace.overdraw(max(n_bytes, READ_COST_BYTES))
        if wait_s and self._held is None:
            self._held = self._loop.call_later(wait_s, supervisor.guarded("tunnel", self._release))

    def _release(self) -> None:
        self._held = None
        self._go_on()

    def _client_ended(self, error: OSError | None) -> None:
        self._other_ended(error)

    def _other_ended(self, error: OSError | None) -> None:
        if not self._is_ending and error is None:
            self._end()
        elif error is not None or self._other.closed:
            self.close()

    def _closed(self) -> None:
        for timer in (self._held, self._idle):
            if timer is not None:
                timer.cancel()
        self._on_close(self)

    def _look_at_idleness(self) -> None:
        silent_s = self._loop.time() - self._used_s
        if silent_s >= IDLE_S:
            self._end()
        else:
            self._idle = self._loop.call_later(
                IDLE_S - silent_s, supervisor.guarded("tunnel", self._look_at_idleness)
            )
