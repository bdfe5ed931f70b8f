"""fastderp: a DERP relay and client library, wire-compatible with tailscale's derper.

The public names are imported when they are first used, so that a program loads only the modules
that it needs.
"""

import sys

# Type checkers treat it as true. Importing typing would cost more than the rest of this module.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from fastderp.client import (
        Backoff,
        Client,
        ClientEvent,
        Connected,
        ConnectionState,
        DerpMap,
        DerpNode,
        DerpRegion,
        DialFailed,
        Disconnected,
        EventStream,
        HTTPClient,
        run_watch_connection_loop,
    )
    from fastderp.errors import (
        BoxError,
        ConcurrencyError,
        ConfigError,
        ConnectionClosed,
        ConnectionLost,
        DerpError,
        DerpMapError,
        DialError,
        KeyFileError,
        ListenError,
        LoginError,
        PingTimeout,
        ProtocolError,
        WrongLoopError,
    )
    from fastderp.server.accept.listener import Listener
    from fastderp.server.admission.admission import Admission
    from fastderp.server.admission.connected_client import ConnectedClient
    from fastderp.server.admission.key_lists import KeyLists
    from fastderp.server.admission.limits import AddressLimit, ClientClass, Limits
    from fastderp.server.admission.rate_limit import RateLimit
    from fastderp.server.admission.verifiers import AdmissionUrl, Tailscaled
    from fastderp.server.mesh.forwarders import PacketForwarder
    from fastderp.server.mesh.links import MeshPeer
    from fastderp.server.observe.traffic import BytesSentRecv
    from fastderp.server.server import Server
    from fastderp.tls.errors import TlsError
    from fastderp.wire.keys import MeshKey, NodePrivate, NodePublic, load_or_create_server_key
    from fastderp.wire.login import ClientInfo, ServerInfo
    from fastderp.wire.messages import (
        Health,
        KeepAlive,
        Message,
        PeerGone,
        PeerPresent,
        Ping,
        Pong,
        ReceivedPacket,
        ServerRestarting,
    )
    from fastderp.wire.protocol import (
        MAX_PACKET_SIZE,
        PROTOCOL_VERSION,
        PeerGoneReason,
        PeerPresentFlags,
    )

# The build reads it, too, without importing the module.
__version__ = "0.1.0"

_NAMES_OF = {
    "fastderp.client": (
        "Backoff",
        "Client",
        "Connected",
        "ConnectionState",
        "DerpMap",
        "DerpNode",
        "DerpRegion",
        "DialFailed",
        "Disconnected",
        "EventStream",
        "HTTPClient",
        "run_watch_connection_loop",
    ),
    "fastderp.client.events": ("ClientEvent",),
    "fastderp.errors": (
        "BoxError",
        "ConcurrencyError",
        "ConfigError",
        "ConnectionClosed",
        "ConnectionLost",
        "DerpError",
        "DerpMapError",
        "DialError",
        "KeyFileError",
        "ListenError",
        "LoginError",
        "PingTimeout",
        "ProtocolError",
        "WrongLoopError",
    ),
    "fastderp.wire.keys": ("MeshKey", "NodePrivate", "NodePublic", "load_or_create_server_key"),
    "fastderp.wire.login": ("ClientInfo", "ServerInfo"),
    "fastderp.wire.messages": (
        "Health",
        "KeepAlive",
        "Message",
        "PeerGone",
        "PeerPresent",
        "Ping",
        "Pong",
        "ReceivedPacket",
        "ServerRestarting",
    ),
    "fastderp.wire.protocol": (
        "MAX_PACKET_SIZE",
        "PROTOCOL_VERSION",
        "PeerGoneReason",
        "PeerPresentFlags",
    ),
    "fastderp.server.accept.listener": ("Listener",),
    "fastderp.server.admission.admission": ("Admission",),
    "fastderp.server.admission.connected_client": ("ConnectedClient",),
    "fastderp.server.admission.verifiers": ("AdmissionUrl", "Tailscaled"),
    "fastderp.server.mesh.forwarders": ("PacketForwarder",),
    "fastderp.server.admission.key_lists": ("KeyLists",),
    "fastderp.server.admission.limits": ("AddressLimit", "ClientClass", "Limits"),
    "fastderp.server.admission.rate_limit": ("RateLimit",),
    "fastderp.server.mesh.links": ("MeshPeer",),
    "fastderp.server.server": ("Server",),
    "fastderp.server.observe.traffic": ("BytesSentRecv",),
    "fastderp.tls.errors": ("TlsError",),
}
_HOME_OF = {name: module for module, names in _NAMES_OF.items() for name in names}

__all__ = [
    "MAX_PACKET_SIZE",
    "PROTOCOL_VERSION",
    "AddressLimit",
    "Admission",
    "AdmissionUrl",
    "Backoff",
    "BoxError",
    "BytesSentRecv",
    "Client",
    "ClientClass",
    "ClientEvent",
    "ClientInfo",
    "ConcurrencyError",
    "ConfigError",
    "Connected",
    "ConnectedClient",
    "ConnectionClosed",
    "ConnectionLost",
    "ConnectionState",
    "DerpError",
    "DerpMap",
    "DerpMapError",
    "DerpNode",
    "DerpRegion",
    "DialError",
    "DialFailed",
    "Disconnected",
    "EventStream",
    "HTTPClient",
    "Health",
    "KeepAlive",
    "KeyFileError",
    "KeyLists",
    "Limits",
    "ListenError",
    "Listener",
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
    "TlsError",
    "WrongLoopError",
    "load_or_create_server_key",
    "run_watch_connection_loop",
]

if sys.platform != "linux":  # the others raise ImportError there
    __all__ = [name for name in __all__ if not _HOME_OF[name].startswith("fastderp.server.")]


def __getattr__(name: str) -> object:
    """Import a public name from its module and keep it in this one."""
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
