"""Tracks the clients of a relay across broken connections (PROTOCOL §7.3).

Used by mesh links and monitoring. Runs as a task in the client's event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from fastderp.client.http_client import HTTPClient
from fastderp.errors import DerpError
from fastderp.net.settling import Settling
from fastderp.util.log_lines import logger
from fastderp.wire.keys import NodePublic
from fastderp.wire.messages import Message, PeerGone, PeerPresent
from fastderp.wire.protocol import PeerGoneReason

RETRY_S = 5.0

_log = logger("fastderp.client")


async def run_watch_connection_loop(
    client: HTTPClient,
    *,
    on_present: Callable[[PeerPresent], None],
    on_gone: Callable[[PeerGone], None],
    on_error: Callable[[DerpError], None] | None = None,
    ignore_server_key: NodePublic | None = None,
    retry_s: float = RETRY_S,
) -> None:
    """Report every client that connects to or leaves the relay, until `client` is closed.

    Args:
        client: has the region's mesh key and no other receiver. A relay closes the connection of a
            client with another key: `on_error` then gets a ConnectionClosed each time.
        on_present: called for each client that is connected or connects; the same key may come more
            than once.
        on_gone: called for each that leaves and, with MESH_LINK_BROKEN, for every key reported so
            far when the connection breaks or the loop ends.
        on_error: gets the reason why the connection broke or could not be made, after `on_gone`.
        ignore_server_key: return at once when this is the relay's key: a relay that watches itself.
        retry_s: seconds from a failure to the next connection, which lists all clients again.

    The event loop calls the callbacks, which must not block. An exception of a callback ends the
    loop; this function raises it after `on_gone` for the remaining keys. PROTOCOL §7.3.

    Logs every failure, and for each connection the number of listed clients.
    """
    presence = _Presence(
        on_present, on_gone, lambda n: _log.info("watching %r: connected; %d peers", client, n)
    )
    try:
        while not client.is_closed:
            failure = await _watch(client, presence, ignore_server_key)
            presence.withdraw()
            if failure is None or client.is_closed:
                return
            _log.info("watching %r: %s", client, failure)
            if on_error is not None:
                on_error(failure)
            await _pause(client, retry_s)
    finally:
        presence.withdraw()


async def _pause(client: HTTPClient, pause_s: float) -> None:
    """Wait for `pause_s` seconds, or until the client is closed."""
    with suppress(TimeoutError):
        async with asyncio.timeout(pause_s):
            async for _ in client.events():
                pass


async def _watch(
    client: HTTPClient, presence: _Presence, ignore: NodePublic | None
) -> DerpError | None:
    """Follow connections until one fails; return the error, or None for a relay to ignore.

    Raises only the exceptions of the callbacks.
    """
    try:
        await client.watch_connection_changes()
    except DerpError as error:
        return error
    generation = None
    while True:
        try:
            message, came_with = await client.recv_with_generation()
        except DerpError as error:
            return error
        if came_with != generation:
            # The first message of a connection, which another user of the client may have made.
            generation = came_with
            presence.begin()
            if ignore is not None and client.server_public_key == ignore:
                _log.info("watching %r: it is this relay", client)
                return None
        presence.note(message)


class _Presence:
    """The keys that were reported present and not yet gone."""

    def __init__(
        self,
        on_present: Callable[[PeerPresent], None],
        on_gone: Callable[[PeerGone], None],
        on_listed: Callable[[int], None],
    ) -> None:
        self._on_present = on_present
        self._on_gone = on_gone
        self._on_listed = on_listed
        self._keys: set[NodePublic] = set()
        self._settling: Settling | None = None

    def begin(self) -> None:
        """Reset the state for a new connection, on which the relay lists all its clients."""
        self.withdraw()
        self._settling = Settling(lambda: self._on_listed(len(self._keys)))

    def note(self, message: Message) -> None:
        if isinstance(message, PeerPresent):
            if self._settling is not None:
                self._settling.arrived()
            self._keys.add(message.key)
            self._on_present(message)
        elif isinstance(message, PeerGone):
            self._keys.discard(message.key)
            self._on_gone(message)

    def withdraw(self) -> None:
        if self._settling is not None:
            self._settling.stop()
        while self._keys:
            self._on_gone(PeerGone(self._keys.pop(), PeerGoneReason.MESH_LINK_BROKEN))
