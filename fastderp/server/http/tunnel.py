"""CONNECT to the vendor's control servers, for clients that reach nothing but a relay (ACE). PROTOCOL §9.8.

Loop thread only, and kept from loading it: so many tunnels, so many bytes and turns per second for all together, and who does
not take what the other side sends makes it wait.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from fastderp.server.accept.stream import Poller, Stream
from fastderp.server.observe.metrics import Value
from fastderp.tls.channel import Channel, close_notify
from fastderp.tls.errors import TlsError
from fastderp.util.token_bucket import TokenBucket

ESTABLISHED = b"HTTP/1.1 200 OK\r\n\r\n"

TUNNELS_LIMIT = 256
# The kernel closes what is dead; this is for what nobody uses any more. Control connections speak every minute.
IDLE_S = 900.0
# For the name and all its addresses, and for each of those.
DIAL_S = 15.0
ADDRESS_S = 5.0
# How long a side may take for the rest after the other has ended.
FAREWELL_S = 2.0

BYTES_PER_S = 8 * 1024 * 1024
BURST_BYTES = 1024 * 1024
# What a read costs at least: bytes that come one by one would load the loop as well.
READ_COST_BYTES = 4096

_TARGET = re.compile(r"([A-Za-z0-9.-]+\.tailscale\.com):(443|80)")


class Target(NamedTuple):
    """Where a client may be taken."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Target | None:
        """Read `host:port`; None when clients may not be taken there: relays are not, they would be taken in circles."""
        match = _TARGET.fullmatch(text)
        if match is None or "derp" in match[1]:
            return None
        return cls(match[1], int(match[2]))


Dial = Callable[[Target], Awaitable[socket.socket]]


async def dial(target: Target) -> socket.socket:
    """Connect to the first address of a target that answers, in the system's order. Raises OSError."""
    loop = asyncio.get_running_loop()
    failure = OSError(f"{target.host} has no address")
    for family, _, _, _, address in await loop.getaddrinfo(
        target.host, target.port, type=socket.SOCK_STREAM
    ):
        try:
            async with asyncio.timeout(ADDRESS_S):
                return await _connected(family, address)
        except OSError as error:
            failure = error
    raise failure


async def _connected(family: int, address: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


class Tunnels:
    """Every tunnel of a relay.

    Args:
        dial: connects to a target, or raises OSError.
        pace: the bytes that all tunnels together may move; an overdraft makes its side pause.
    """

    def __init__(self, dial: Dial = dial, pace: TokenBucket | None = None) -> None:
        self._dial = dial
        self._pace = pace or TokenBucket(BYTES_PER_S, BURST_BYTES)
        self._tunnels: set[Tunnel] = set()
        self._n_dialling = 0
        self._outcomes: Counter[str] = Counter()

    async def connect(self, target: Target) -> socket.socket:
        """Connect to a target, within DIAL_S. Raises OSError, also when there are too many tunnels."""
        if len(self._tunnels) + self._n_dialling >= TUNNELS_LIMIT:
            self._outcomes["refused"] += 1
            raise OSError(f"{TUNNELS_LIMIT} tunnels are open already")
        self._n_dialling += 1
        try:
            async with asyncio.timeout(DIAL_S):
                sock = await self._dial(target)
        except OSError:  # TimeoutError is one
            self._outcomes["failed"] += 1
            raise
        finally:
            self._n_dialling -= 1
        self._outcomes["connected"] += 1
        return sock

    def join(
        self, poller: Poller, client: Stream, channel: Channel, target: socket.socket, first: bytes
    ) -> None:
        """Tell the client that it is there, and pass on what it says, `first` of all what it has said already."""
        try:
            self._tunnels.add(
                Tunnel(poller, client, channel, target, first, self._pace, self._tunnels.discard)
            )
        except TlsError:
            client.close()
            target.close()

    def close(self) -> None:
        """End every tunnel at once."""
        for tunnel in list(self._tunnels):
            tunnel.close()

    def metrics(self) -> dict[str, Value]:
        """Return what was counted, by the names of `metrics.METRICS`."""
        return {
            "fastderp_ace_tunnels": len(self._tunnels),
            "fastderp_ace_connects_total": dict(self._outcomes),
        }


class Tunnel:
    """A client and its target, each fed by the other; ends when either does."""

    __slots__ = (
        "_channel",
        "_client",
        "_farewell",
        "_held",
        "_idle",
        "_loop",
        "_on_close",
        "_pace",
        "_target",
        "_used_s",
    )

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
        established = channel.seal(ESTABLISHED)
        self._loop = asyncio.get_running_loop()
        self._channel = channel
        self._client = client
        self._target = Stream(poller, target, self._from_target, self._ended, self._drained)
        self._pace = pace
        self._on_close = on_close
        self._held: asyncio.TimerHandle | None = None
        self._farewell: asyncio.TimerHandle | None = None
        self._used_s = self._loop.time()
        self._idle = self._loop.call_later(IDLE_S, self._look_at_idleness)
        client.on_bytes = self._from_client
        client.on_end = self._ended
        client.on_drained = self._drained
        client.send(established)
        self._target.send(first)
        if channel.eof:
            self._end()
        else:
            self._go_on()

    def close(self) -> None:
        """Close both sides; what is on its way is lost."""
        if self._client.closed:
            return
        for timer in (self._held, self._idle, self._farewell):
            if timer is not None:
                timer.cancel()
        self._client.close()
        self._target.close()
        self._on_close(self)

    def _from_client(self, data: bytes) -> None:
        try:
            self._target.send(self._channel.open(data))
        except TlsError:
            self.close()
            return
        self._after_read(len(data))

    def _from_target(self, data: bytes) -> None:
        try:
            self._client.send(self._channel.seal(data))
        except TlsError:
            self.close()
            return
        self._after_read(len(data))

    def _after_read(self, n_bytes: int) -> None:
        self._used_s = self._loop.time()
        wait_s = self._pace.overdraw(max(n_bytes, READ_COST_BYTES))
        if self._channel.eof:
            self._end()
        elif wait_s and self._held is None:
            self._held = self._loop.call_later(wait_s, self._release)
        self._go_on()

    def _release(self) -> None:
        self._held = None
        self._go_on()

    def _go_on(self) -> None:
        """Read each side while the other takes what it is sent, unless both have to wait for their turn."""
        if self._farewell is not None:
            return
        for side, other in ((self._client, self._target), (self._target, self._client)):
            if self._held is None and other.flushed:
                side.resume()
            else:
                side.pause()

    def _drained(self) -> None:
        if self._farewell is not None:
            self._hang_up()
        else:
            self._go_on()

    def _ended(self, error: OSError | None) -> None:
        if self._farewell is None and error is None:
            self._end()
        elif error is not None or self._target.closed:
            self.close()

    def _end(self) -> None:
        """Pass on no more; give both sides a moment to take what they have been sent."""
        if self._farewell is not None:
            return
        self._farewell = self._loop.call_later(FAREWELL_S, self.close)
        self._client.pause()
        self._target.pause()
        self._client.send(close_notify(self._channel))
        self._hang_up()

    def _hang_up(self) -> None:
        """Let go of whoever has taken everything. Closing on the client's unread input would reset it under that: it closes first."""
        if self._target.flushed:
            self._target.close()
        if self._client.flushed:
            self._client.end_output()
            self._client.on_bytes = _ignore
            self._client.resume()

    def _look_at_idleness(self) -> None:
        silent_s = self._loop.time() - self._used_s
        if silent_s >= IDLE_S:
            self._end()
        else:
            self._idle = self._loop.call_later(IDLE_S - silent_s, self._look_at_idleness)


def _ignore(data: bytes) -> None:
    """Take input that nobody wants any more."""
