"""Moves bytes between a client's connection, through its channel, and another stream.

Bridges and tunnels are pumps. Loop thread only. A pump reads one side only while the other has no
unsent bytes, so it holds up to one read of each side.
"""

from __future__ import annotations

import asyncio
import socket

from fastderp.server.net.stream import Poller, Stream
from fastderp.server.observe.supervisor import supervisor
from fastderp.tls.channel import Channel, close_notify
from fastderp.tls.errors import TlsError


class Pump:
    """Two streams that pass bytes to each other until either ends.

    After the end the client has `drain_s` to read the rest and to close: closing with unread
    input would reset the connection and discard the data sent to it. Subclasses add further
    conditions that end or delay a pump.
    """

    __slots__ = ("_channel", "_client", "_deadline", "_drain_s", "_is_ending", "_loop", "_other")

    def __init__(
        self,
        poller: Poller,
        client: Stream,
        channel: Channel,
        other: socket.socket,
        drain_s: float,
    ) -> None:
        """Take over both sides; `start` begins to read them."""
        self._loop = asyncio.get_running_loop()
        self._channel = channel
        self._client = client
        self._other = Stream(poller, other, self._from_other, self._other_ended, self._drained)
        self._drain_s = drain_s
        # The timer that closes both sides after an end; and whether the end was announced.
        self._deadline: asyncio.TimerHandle | None = None
        self._is_ending = False
        client.on_bytes = self._from_client
        client.on_end = self._client_ended
        client.on_drained = self._drained

    def start(self) -> None:
        """Begin to read in the next iteration of the loop.

        The caller hands the other end over first: the client's input may have ended already.
        """
        self._loop.call_soon(self._begin_or_close)

    def close(self) -> None:
        """Close both sides and discard unsent bytes."""
        if self._client.closed:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._client.close()
        self._close_other()
        self._closed()

    def start_deadline(self) -> None:
        """Close both sides in `drain_s`, even if the end cannot be announced before."""
        if self._deadline is None and not self._client.closed:
            self._deadline = self._loop.call_later(
                self._drain_s, supervisor.guarded("bridge", self.close)
            )

    # For subclasses

    def _may_read_client(self) -> bool:
        """Return whether the subclass allows reading from the client."""
        return True

    def _may_read_other(self) -> bool:
        """Return whether the subclass allows reading from the other side."""
        return True

    def _moved(self, n_bytes: int) -> None:
        """Note a read of either side."""

    def _opened(self) -> None:
        """Note that the channel has opened bytes of the client."""

    def _close_other(self) -> None:
        """Close the other side; it may be called again."""
        self._other.close()

    def _closed(self) -> None:
        """Note that both sides are closed."""

    def _client_ended(self, error: OSError | None) -> None:
        """Handle the end of the client's input."""
        self.close()

    def _other_ended(self, error: OSError | None) -> None:
        """Handle the end of the other side's input."""
        self._end()

    # Both ways

    def _begin_or_close(self) -> None:
        if not supervisor.guard("bridge", self._begin):
            self.close()

    def _begin(self) -> None:
        """Pass on what the previous owner of the channel has left in it."""
        if self._channel.has_more and not self._client.closed:
            self._from_client(b"")
        else:
            self._go_on()

    def _from_client(self, data: bytes) -> None:
        try:
            plain = self._channel.open(data)
        except TlsError:
            plain = b""  # the channel keeps its failure
        self._opened()
        self._other.send(plain)
        self._moved(len(data))
        self._go_on()

    def _from_other(self, data: bytes) -> None:
        try:
            wire = self._channel.seal(data)
        except TlsError:
            self.close()
            return
        self._client.send(wire)
        self._moved(len(data))
        self._go_on()

    def _drained(self) -> None:
        if self._is_ending:
            self._hang_up()
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Read each side while the other has no unsent bytes.

        End after the end or a failure of the client's input, once its last bytes were passed on.
        """
        if self._is_ending or self._client.closed:
            return
        is_over = self._channel.eof or self._channel.failure is not None
        if is_over and self._other.flushed:
            self._end()
            return
        _read_if(self._client, self._other.flushed and self._may_read_client())
        _read_if(self._other, self._client.flushed and self._may_read_other())

    # The end

    def _end(self) -> None:
        """Stop passing bytes; announce the end, and let both sides read the rest."""
        if self._is_ending or self._client.closed:
            return
        self._is_ending = True
        self.start_deadline()
        self._client.pause()
        self._other.pause()
        self._client.send(close_notify(self._channel))
        self._hang_up()

    def _hang_up(self) -> None:
        """End the output of each side that has no unsent bytes.

        The client closes first; input from it is ignored until then.
        """
        if self._other.flushed:
            self._close_other()
        if self._client.flushed:
            self._client.end_output()
            self._client.on_bytes = _ignore
            self._client.resume()


def _read_if(stream: Stream, wanted: bool) -> None:
    if wanted:
        stream.resume()
    else:
        stream.pause()


def _ignore(data: bytes) -> None:
    """Discard input."""
