"""The upgrade from HTTP to DERP: its request and its response.

PROTOCOL §9.3. Sans I/O.
"""

from __future__ import annotations

from typing import NamedTuple

from fastderp.server.http.message import Request
from fastderp.wire.protocol import PROTOCOL_VERSION

# Few kinds of clients exist, and a relay has few names.
KNOWN_HEADS = 64
KNOWN_HEAD_BYTES = 512


class Upgrade(NamedTuple):
    """The options of an upgrade request.

    Args:
        fast_start: leave the response head out.
        not_ideal: the client prefers another node of the region.
    """

    fast_start: bool
    not_ideal: bool


def derp_upgrade(request: Request) -> Upgrade | None:
    """Return the raw upgrade that a request for `/derp` asks for; None for any other request.

    As lenient as the reference: `Connection`, GET and HTTP/1.1 are not required. A WebSocket with
    a derp subprotocol is not a raw upgrade. PROTOCOL §9.3.
    """
    if request.header("upgrade").lower() not in ("derp", "websocket") or wants_websocket(request):
        return None
    return Upgrade(
        fast_start=request.header("derp-fast-start") == "1",
        not_ideal=bool(request.header("ideal-node")),
    )


def wants_websocket(request: Request) -> bool:
    """Return whether a request for `/derp` opens a WebSocket.

    Without a derp subprotocol it does not: old clients request a raw upgrade that way.
    """
    return request.header("upgrade").lower() == "websocket" and "derp" in request.header(
        "sec-websocket-protocol"
    )


class KnownUpgrades:
    """A cache of request heads by their bytes, since clients of one kind all send the same.

    It is bounded and drops the oldest head first. A client that varies its heads only causes
    cache misses for others.
    """

    __slots__ = ("_upgrades",)

    def __init__(self) -> None:
        self._upgrades: dict[bytes, Upgrade] = {}

    def find(self, data: bytes) -> tuple[Upgrade, bytes] | None:
        """Return the upgrade that `data` begins with, and the bytes after it.

        None for a head that is not cached.
        """
        end = data.find(b"\r\n\r\n") + 4
        upgrade = self._upgrades.get(data[:end])
        return None if upgrade is None else (upgrade, data[end:])

    def remember(self, head: bytes, upgrade: Upgrade) -> None:
        """Cache the upgrade that a whole head asks for."""
        if len(head) <= KNOWN_HEAD_BYTES:
            if len(self._upgrades) >= KNOWN_HEADS:
                del self._upgrades[next(iter(self._upgrades))]
            self._upgrades[head] = upgrade


def switching_protocols(server_key_hex: str) -> bytes:
    """Return the 101 response: exactly these headers in this order (PROTOCOL §9.3)."""
    return (
        "HTTP/1.1 101 Switching Protocols\r\n"
        "Upgrade: DERP\r\n"
        "Connection: Upgrade\r\n"
        f"Derp-Version: {PROTOCOL_VERSION}\r\n"
        f"Derp-Public-Key: {server_key_hex}\r\n"
        "\r\n"
    ).encode("ascii")
