"""fastderp: a DERP relay and client library, wire-compatible with tailscale's derper.

The public names are imported when they are first used, so that a program pays only for
the half it needs.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastderp.client import (
        Client,
        DerpMap,
        DerpNode,
        DerpRegion,
        HTTPClient,
        run_watch_connection_loop,
    )
    from fastderp.errors import (
        ConnectionClosed,
        ConnectionLost,
        DerpError,
        DialError,
        LoginError,
        PingTimeout,
        ProtocolError,
    )
    from fastderp.keys import MeshKey, NodePrivate, NodePublic, load_or_create_server_key
    from fastderp.protocol import (
        MAX_PACKET_SIZE,
        PROTOCOL_VERSION,
        Health,
        KeepAlive,
        Message,
        PeerGone,
        PeerGoneReason,
        PeerPresent,
        PeerPresentFlags,
        Ping,
        Pong,
        ReceivedPacket,
        ServerInfo,
        ServerRestarting,
    )
    from fastderp.server.admission import Admission
    from fastderp.server.authority import AdmissionUrl, Tailscaled
    from fastderp.server.forwarders import PacketForwarder
    from fastderp.server.keylists import KeyLists
    from fastderp.server.ratelimit import RateLimit
    from fastderp.server.mesh import MeshPeer
    from fastderp.server.relay import Server
    from fastderp.server.traffic import BytesSentRecv

# Read by the build as well, without importing anything.
__version__ = "0.1.0"

_NAMES_OF = {
    "fastderp.client": (
        "Client",
        "DerpMap",
        "DerpNode",
        "DerpRegion",
        "HTTPClient",
        "run_watch_connection_loop",
    ),
    "fastderp.errors": (
        "ConnectionClosed",
        "ConnectionLost",
        "DerpError",
        "DialError",
        "LoginError",
        "PingTimeout",
        "ProtocolError",
    ),
    "fastderp.keys": ("MeshKey", "NodePrivate", "NodePublic", "load_or_create_server_key"),
    "fastderp.protocol": (
        "MAX_PACKET_SIZE",
        "PROTOCOL_VERSION",
        "Health",
        "KeepAlive",
        "Message",
        "PeerGone",
        "PeerGoneReason",
        "PeerPresent",
        "PeerPresentFlags",
        "Ping",
        "Pong",
        "ReceivedPacket",
        "ServerInfo",
        "ServerRestarting",
    ),
    "fastderp.server.admission": ("Admission",),
    "fastderp.server.authority": ("AdmissionUrl", "Tailscaled"),
    "fastderp.server.forwarders": ("PacketForwarder",),
    "fastderp.server.keylists": ("KeyLists",),
    "fastderp.server.ratelimit": ("RateLimit",),
    "fastderp.server.mesh": ("MeshPeer",),
    "fastderp.server.relay": ("Server",),
    "fastderp.server.traffic": ("BytesSentRecv",),
}
_HOME_OF = {name: module for module, names in _NAMES_OF.items() for name in names}

__all__ = [
    "MAX_PACKET_SIZE",
    "PROTOCOL_VERSION",
    "Admission",
    "AdmissionUrl",
    "BytesSentRecv",
    "Client",
    "ConnectionClosed",
    "ConnectionLost",
    "DerpError",
    "DerpMap",
    "DerpNode",
    "DerpRegion",
    "DialError",
    "HTTPClient",
    "Health",
    "KeepAlive",
    "KeyLists",
    "LoginError",
    "MeshKey",
    "MeshPeer",
    "Message",
    "NodePrivate",
    "NodePublic",
    "PacketForwarder",
    "PeerGone",
    "PeerGoneReason",
    "PeerPresent",
    "PeerPresentFlags",
    "Ping",
    "PingTimeout",
    "Pong",
    "ProtocolError",
    "RateLimit",
    "ReceivedPacket",
    "Server",
    "ServerInfo",
    "ServerRestarting",
    "Tailscaled",
    "load_or_create_server_key",
    "run_watch_connection_loop",
]


def __getattr__(name: str) -> object:
    """Import a public name from where it lives and keep it here."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Show the public names to interactive users, imported or not."""
    return sorted({*globals(), *__all__, "__version__"})
