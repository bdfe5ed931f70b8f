"""The receiving side of a client: reads ahead and queues messages for one receiver at a time.

Belongs to the client's event loop.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import _get_running_loop as running_loop
from collections import deque
from collections.abc import Callable

from fastderp.errors import ConcurrencyError, ConnectionClosed, ConnectionLost, DerpError
from fastderp.net.stream import Stream
from fastderp.net.upgrade import refused_fast_start
from fastderp.util.reasons import own_text
from fastderp.wire.messages import Message

if sys.platform == "linux":
    from fastderp.wire.message_reader import MessageReader
else:
    from fastderp.wire.portable_reader import MessageReader

# Limit for bytes read ahead of `recv`. The read that reaches it, of up to 256 KiB, may exceed it.
LIMIT_BYTES = 256 << 10


class Inbox:
    """Queues the messages of a connection in order of arrival. The Receiver of its stream."""

    __slots__ = (
        "_loop",
        "_messages",
        "_n_bytes",
        "_on_failure",
        "_reader",
        "_receiver",
        "_stream",
        "is_full",
        "received_s",
    )

    def __init__(
        self,
        stream: Stream,
        on_frame: Callable[[int, bytes], Message | None],
        on_failure: Callable[[DerpError], object],
    ) -> None:
        """Read from `stream` once `start` is called.

        `on_frame` returns the message of a frame that is not a packet, or None; `on_failure` gets
        the error that ended the stream.
        """
        self._stream = stream
        self._on_failure = on_failure
        self._reader = MessageReader(on_frame)
        self._loop = asyncio.get_running_loop()
        self._messages: deque[Message] = deque()
        # bytes on the wire since the inbox was last empty
        self._n_bytes = 0
        self.is_full: bool = False
        """Whether reading pauses until the inbox is empty."""
        self.received_s: float = self._loop.time()
        """The time of the latest whole frame, or of the latest pause."""
        # Done when the task in `wait` must check again.
        self._receiver: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Begin to read."""
        self._stream.deliver_to(self)

    # As the stream's Receiver

    def received(self, data: bytes | memoryview, /) -> None:
        """Queue the messages that `data` completes; stop reading at the limit."""
        messages: list[Message] = []
        failure: DerpError | None = None
        try:
            if self._reader.feed(data, messages):
                self.received_s = self._loop.time()
        except DerpError as error:
            failure = refused_fast_start(data) or error
        if messages:
            self._messages += messages
            self.wake()
        if self._messages:
            self._n_bytes += len(data)
        if failure is not None:
            self._on_failure(failure)
        elif self._n_bytes >= LIMIT_BYTES:
            self.is_full = True
            self._stream.pause_reading()

    def ended(self, error: Exception | None, /) -> None:
        """Report the end of the stream."""
        try:
            if error is not None:
                raise error
            self._reader.end()
            raise ConnectionClosed("the connection was closed")
        except DerpError as failure:
            self._on_failure(failure)
        except Exception as broken:  # the caller's stream may raise any error
            what = own_text(broken) if isinstance(broken, OSError) else repr(broken)
            lost = ConnectionLost(f"reading failed: {what}")
            lost.__cause__ = broken
            self._on_failure(lost)

    # For the program

    @property
    def must_wait(self) -> bool:
        """Whether a receiver has to `wait` first."""
        return not self._messages or self._receiver is not None

    async def wait(self, check_alive: Callable[[], None]) -> None:
        """Return when there is a message.

        Raises ConcurrencyError while another task waits, and what `check_alive` raises.
        """
        if self._receiver is not None:
            raise ConcurrencyError("another task already receives from this client")
        while not self._messages:
            check_alive()
            self._receiver = self._loop.create_future()
            try:
                await self._receiver
            finally:
                self._receiver = None

    def wake(self) -> None:
        """Wake the task in `wait` to check again."""
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)

    def take_ready(self) -> Message | None:
        """Remove and return the first message; None where a receiver has to `wait`.

        None in another loop than the client's, too.
        """
        messages = self._messages
        if not messages or self._receiver is not None or running_loop() is not self._loop:
            return None
        message = messages.popleft()
        if not messages:
            self._note_empty()
        return message

    def take(self) -> Message:
        """Remove and return the first message."""
        message = self._messages.popleft()
        if not self._messages:
            self._note_empty()
        return message

    def take_many(self, limit: int | None = None) -> list[Message]:
        """Remove and return the first messages, at most `limit`."""
        if limit is not None and limit < len(self._messages):
            return [self._messages.popleft() for _ in range(limit)]
        messages = list(self._messages)
        self._messages.clear()
        self._note_empty()
        return messages

    def _note_empty(self) -> None:
        self._n_bytes = 0
        if self.is_full:
            self.is_full = False
            self.received_s = self._loop.time()
            self._stream.resume_reading()
