"""A bounded queue of received messages, for one receiver at a time.

Belongs to the client's event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from fastderp.errors import ConcurrencyError
from fastderp.wire.protocol import Message

# Limit for bytes read ahead of `recv`. The read that reaches it, of up to 256 KiB, may exceed it.
LIMIT_BYTES = 256 << 10


class Inbox:
    """Queues messages in order of arrival."""

    __slots__ = ("_emptied", "_n_bytes", "_receiver", "messages")

    def __init__(self) -> None:
        """Begin empty."""
        self.messages: deque[Message] = deque()
        # bytes on the wire since the inbox was last empty
        self._n_bytes = 0
        # Done when the task in `wait` must check again.
        self._receiver: asyncio.Future[None] | None = None
        # Done when the inbox is empty, for the task that waits in `wait_for_room`.
        self._emptied: asyncio.Future[None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether reading pauses until the inbox is empty."""
        return self._emptied is not None

    @property
    def must_wait(self) -> bool:
        """Whether a receiver has to `wait` first."""
        return not self.messages or self._receiver is not None

    def add(self, messages: list[Message], n_bytes: int) -> None:
        """Append messages that took `n_bytes` on the wire."""
        self._n_bytes += n_bytes
        if messages:
            self.messages += messages
            self.wake()
        elif not self.messages:
            self._n_bytes = 0

    async def wait_for_room(self) -> bool:
        """Wait until more may be read; return whether that took waiting."""
        if self._n_bytes < LIMIT_BYTES:
            return False
        self._emptied = asyncio.get_running_loop().create_future()
        await self._emptied
        return True

    async def wait(self, check_alive: Callable[[], None]) -> None:
        """Return when there is a message.

        Raises ConcurrencyError while another task waits, and what `check_alive` raises.
        """
        if self._receiver is not None:
            raise ConcurrencyError("another task receives from this client already")
        while not self.messages:
            check_alive()
            self._receiver = asyncio.get_running_loop().create_future()
            try:
                await self._receiver
            finally:
                self._receiver = None

    def wake(self) -> None:
        """Have the task in `wait` look again."""
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)

    def take_ready(self) -> Message | None:
        """Remove and return the first message; None where a receiver has to `wait`."""
        messages = self.messages
        if not messages or self._receiver is not None:
            return None
        message = messages.popleft()
        if not messages:
            self._note_empty()
        return message

    def take(self) -> Message:
        """Remove and return the first message."""
        message = self.messages.popleft()
        if not self.messages:
            self._note_empty()
        return message

    def take_many(self, limit: int | None = None) -> list[Message]:
        """Remove and return the first messages, at most `limit`."""
        if limit is not None and limit < len(self.messages):
            return [self.messages.popleft() for _ in range(limit)]
        messages = list(self.messages)
        self.messages.clear()
        self._note_empty()
        return messages

    def _note_empty(self) -> None:
        self._n_bytes = 0
        if self._emptied is not None:
            if not self._emptied.done():
                self._emptied.set_result(None)
            self._emptied = None
