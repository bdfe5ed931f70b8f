"""The sending side of a client: orders and paces its frames (PROTOCOL §3.2, §4).

Frames are gathered and written many at a time by one task per connection. Memory is bounded: a
sender waits for room before its frame is accepted, so a cancelled wait sends nothing. Belongs to
the stream's event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from fastderp.errors import ConnectionLost, DerpError
from fastderp.net.stream import Stream
from fastderp.util.token_bucket import TokenBucket
from fastderp.wire.protocol import HEADER_SIZE, MAX_SEND_PACKET_SIZE

# Limit for accepted bytes that the transport has not taken; it buffers another 64 KiB. The frame
# that reaches the limit may exceed it.
LIMIT_BYTES = 64 << 10
# Minimum wait for the rate: some loops' timers have a resolution of milliseconds, and a wake-up per
# packet would be useless.
_PACE_S = 0.005


class SendRate(TokenBucket):
    """The budget of bytes that a relay announced. PROTOCOL §3.2."""

    __slots__ = ()

    def __init__(self, rate_bytes_s: int, burst_bytes: int, clock: Callable[[], float]) -> None:
        """Start full.

        A burst of 0 means not given: then it is one second at the rate, and at least the largest
        packet. `clock` returns seconds.
        """
        burst_bytes = burst_bytes or max(rate_bytes_s, HEADER_SIZE + MAX_SEND_PACKET_SIZE)
        super().__init__(rate_bytes_s, burst_bytes, clock=clock)

    def take(self, n: float = 1) -> bool:
        """Spend `n` bytes if the budget has them, or is full.

        A frame larger than the burst leaves a debt.
        """
        if self._refilled() < min(n, self._burst):
            return False
        self._tokens -= n
        return True

    def give_back(self, n: float) -> None:
        """Undo a `take`."""
        self._tokens += n

    def wait_s(self, n: float) -> float:
        """Return the seconds until `take` may succeed."""
        return max(0.0, min(n, self._burst) - self._refilled()) / self._per_s


class _Waiter:
    """A sender that waits for `n_bytes` of room."""

    __slots__ = ("granted", "n_bytes", "rated")

    def __init__(self, n_bytes: int, rated: bool, granted: asyncio.Future[None]) -> None:
        self.n_bytes = n_bytes
        self.rated = rated
        self.granted = granted


class Outbox:
    """The sending side of a connection.

    A frame is taken by `try_put`, or by `reserve` and `put` when it has to wait. It is on its way
    with the loop's next turn.
    """

    __slots__ = (
        "_error",
        "_frames",
        "_idle",
        "_loop",
        "_n_granted",
        "_on_failure",
        "_pacing",
        "_rate",
        "_stream",
        "_taken_bytes",
        "_task",
        "_waiting",
    )

    def __init__(self, stream: Stream, on_failure: Callable[[DerpError], object]) -> None:
        """Write to `stream` until `end`, or until it fails, which `on_failure` reports."""
        self._stream = stream
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        # Parts of whole frames in order. The reserved bytes of frames that are not put yet count as
        # taken.
        self._frames: list[bytes] = []
        self._taken_bytes = 0
        self._waiting: deque[_Waiter] = deque()
        # Number of senders whose wait is granted but that were not resumed yet; others must not
        # overtake them.
        self._n_granted = 0
        self._rate: SendRate | None = None
        self._pacing: asyncio.TimerHandle | None = None
        self._error: DerpError | None = None
        self._idle: asyncio.Future[None] | None = None
        self._task = self._loop.create_task(self._write())

    def set_rate(self, rate: SendRate | None) -> None:
        """Apply this rate limit from now on."""
        self._rate = rate
        self._grant()

    def try_put(self, parts: tuple[bytes, ...], n_bytes: int, *, rated: bool) -> bool:
        """Take the parts of a frame of `n_bytes`; return False where it would have to wait.

        A `rated` frame takes its share of the rate as well, and its turn behind all waiting senders.
        """
        if self._taken_bytes >= LIMIT_BYTES or (rated and (self._waiting or self._n_granted)):
            return False
        if rated and self._rate is not None and not self._rate.take(n_bytes):
            return False
        self._taken_bytes += n_bytes
        self._frames += parts
        if self._idle is not None:
            self._resume()
        return True

    async def reserve(self, n_bytes: int, *, rated: bool) -> None:
        """Wait for room for a frame of `n_bytes`, behind all tasks that wait already.

        The caller then calls `put` at once. A cancelled call reserves nothing.

        Raises the error that ended the connection.
        """
        waiter = _Waiter(n_bytes, rated, self._loop.create_future())
        self._waiting.append(waiter)
        self._grant()
        try:
            await waiter.granted
        except BaseException:
            if waiter.granted.done() and not waiter.granted.cancelled() and not self._error:
                self._n_granted -= 1
                self._taken_bytes -= n_bytes
                if rated and self._rate is not None:
                    self._rate.give_back(n_bytes)
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            self._grant()
            raise
        self._n_granted -= 1

    def put(self, *parts: bytes) -> None:
        """Take the parts of a frame for which there is a reservation.

        They are written in the next iteration of the loop.
        """
        self._frames += parts
        self._resume()

    def flush(self) -> None:
        """Write all queued frames to the stream at once, before it is closed.

        Raises ConnectionLost when the stream broke.
        """
        if self._frames:
            data = b"".join(self._frames)
            self._frames.clear()
            self._stream.write(data)

    def end(self, error: DerpError) -> None:
        """Stop sending; raise `error` in all tasks that wait for room."""
        if self._error is not None:
            return
        self._error = error
        if self._pacing is not None:
            self._pacing.cancel()
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            if not waiter.granted.done():
                waiter.granted.set_exception(error)
        self._frames.clear()
        self._task.cancel()

    def _resume(self) -> None:
        """Wake `_write` to check for frames."""
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        self._idle = None

    async def _write(self) -> None:
        """Write all queued frames at once whenever the stream accepts more."""
        try:
            while True:
                if not self._frames:
                    self._idle = self._loop.create_future()
                    await self._idle
                data = b"".join(self._frames)
                self._frames.clear()
                self._stream.write(data)
                await self._stream.drain()
                self._taken_bytes -= len(data)
                self._grant()
        except DerpError as error:
            self._on_failure(error)
        except Exception as error:  # the caller's stream may raise any error
            lost = ConnectionLost(f"writing failed: {error!r}")
            lost.__cause__ = error
            self._on_failure(lost)

    def _grant(self) -> None:
        """Grant waiting senders their room, in order, while there are room and rate."""
        while self._waiting and self._taken_bytes < LIMIT_BYTES:
            waiter = self._waiting[0]
            if waiter.granted.done():  # cancelled, and not resumed yet
                self._waiting.popleft()
                continue
            if waiter.rated and self._rate is not None and not self._rate.take(waiter.n_bytes):
                if self._pacing is None:
                    wait_s = max(self._rate.wait_s(waiter.n_bytes), _PACE_S)
                    self._pacing = self._loop.call_later(wait_s, self._paced)
                return
            self._waiting.popleft()
            self._taken_bytes += waiter.n_bytes
            self._n_granted += 1
            waiter.granted.set_result(None)

    def _paced(self) -> None:
        self._pacing = None
        self._grant()
