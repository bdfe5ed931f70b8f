"""The interface of a WebSocket channel, without loading its library. PROTOCOL §9.3.

`websocket` implements it and is imported with the first client that opens one. Loop thread only.
"""

from __future__ import annotations

from fastderp.tls.channel import Channel


class MessageChannel(Channel):
    """A channel on top of another one, whose plain bytes are the payload of messages."""

    __slots__ = ()

    violation: str
    """Code and reason of a close for a fault of the client; "" without one."""

    @property
    def owes_replies(self) -> bool:
        """Whether answers to the client's pings are unsent; it is not read before they are sent."""
        raise NotImplementedError

    @property
    def held_bytes(self) -> int:
        """The number of bytes of an incomplete frame."""
        raise NotImplementedError

    def refuse_memory(self) -> bytes:
        """Close because a message takes too much memory; return the bytes to send."""
        raise NotImplementedError

    def refuse_protocol(self) -> bytes:
        """Close because DERP was not agreed on; return the bytes to send."""
        raise NotImplementedError

    def leave(self) -> None:
        """Announce that the relay goes away when it closes the channel."""
        raise NotImplementedError


def leave(channel: Channel) -> None:
    """Make the close frame of a MessageChannel announce that the relay goes away.

    Other channels are left unchanged.
    """
    if isinstance(channel, MessageChannel):
        channel.leave()
