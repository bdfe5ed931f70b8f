"""Delivers received bytes to a callback object, instead of answering calls of `read`.

Our own connections deliver from the transport's callback, which saves a task and a copy for each
read. `Delivery` does the same for any other object with a `read`. Event loop's thread only.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, runtime_checkable

# A burst of packets fits into one read, and the copy is quick.
READ_SIZE = 256 << 10


class Receiver(Protocol):
    """Takes the received bytes of a connection. Its methods do not raise."""

    def received(self, data: bytes | memoryview, /) -> None:
        """Take the next bytes. A memoryview is valid until the call returns."""

    def ended(self, error: Exception | None, /) -> None:
        """Take the end, once: None if it is orderly, else the error that broke the connection."""


@runtime_checkable
class Source(Protocol):
    """A connection that delivers to a receiver."""

    def deliver_to(self, receiver: Receiver, /) -> None:
        """Call `receiver` with the unread bytes, and with all that follow.

        Do not call `read` from then on.
        """

    def pause_reading(self) -> None:
        """Stop reading. The receiver may get some more bytes."""

    def resume_reading(self) -> None:
        """Resume reading. Has no effect unless paused."""


class Reader(Protocol):
    """The part of asyncio.StreamReader that a client needs."""

    async def read(self, n: int, /) -> bytes:
        """Return up to `n` bytes, at least one, or b"" at the end."""


class Delivery:
    """Delivers the bytes that a task reads from a Reader. Is a Source."""

    __slots__ = ("_reader", "_resumed", "_task")

    def __init__(self, reader: Reader) -> None:
        """Read from `reader` once `deliver_to` is called."""
        self._reader = reader
        self._resumed: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def deliver_to(self, receiver: Receiver, /) -> None:
        """Start the task."""
        self._task = asyncio.get_running_loop().create_task(self._read(receiver))

    def pause_reading(self) -> None:
        """Stop after the present read."""
        if self._resumed is None:
            self._resumed = asyncio.get_running_loop().create_future()

    def resume_reading(self) -> None:
        """Read again."""
        if self._resumed is not None:
            if not self._resumed.done():
                self._resumed.set_result(None)
            self._resumed = None

    def stop(self) -> None:
        """Cancel the task."""
        if self._task is not None:
            self._task.cancel()

    async def _read(self, receiver: Receiver) -> None:
        try:
            while data := await self._reader.read(READ_SIZE):
                receiver.received(data)
                if self._resumed is not None:
                    await self._resumed
        except Exception as error:  # the reader may be the caller's and raise any error
            receiver.ended(error)
        else:
            receiver.ended(None)
