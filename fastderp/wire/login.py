"""The login, both sides: ServerKey, ClientInfo and ServerInfo (PROTOCOL §3).

Pure functions for any thread. A relay calls `check_client_info_header`, `open_client_info` and
`ClientLogin.server_info_frame`; a client calls `parse_server_key`, `client_info_frame`
and `open_server_info`. Each side makes one `Box` and uses it for both directions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

from fastderp.errors import BoxError, LoginError, ProtocolError
from fastderp.wire.keys import Box, MeshKey, NodePrivate, NodePublic
from fastderp.wire.protocol import (
    KEY_SIZE,
    MAGIC,
    MAX_APP_NAME_BYTES,
    MAX_CLIENT_INFO_SIZE,
    MAX_SERVER_INFO_SIZE,
    MAX_SERVER_KEY_SIZE,
    MIN_CLIENT_INFO_SIZE,
    MIN_SERVER_INFO_SIZE,
    MIN_SERVER_KEY_SIZE,
    PROTOCOL_VERSION,
    FrameType,
    frame,
    parse_key_text,
)

REASONS: Final = (
    "frame_type",
    "frame_size",
    "client_key",
    "box",
    "json",
    "mesh_key",
    "app_name",
    "app_name_disallowed",
)
"""Every `LoginError.reason`, so that counters can start at zero."""

Agree = Callable[[bytes], bytes | None]
"""Returns the box key of a private and a raw public key; None for a public key of low order."""


class ServerInfo(NamedTuple):
    """The relay's description of itself, the first message on a connection. PROTOCOL §3.2.

    Args:
        version: of the protocol; it has no effect.
        token_bucket_bytes_per_second: rate limit for the client, framing included; 0 = not given.
        token_bucket_bytes_burst: bytes at once after a pause; 0 = not given.
    """

    version: int = PROTOCOL_VERSION
    token_bucket_bytes_per_second: int = 0
    token_bucket_bytes_burst: int = 0


class ClientInfo(NamedTuple):
    """A client's description of itself. PROTOCOL §3.1.

    Args:
        version: of the protocol; every value is accepted.
        can_ack_pings: it answers every Ping with a Pong.
        is_prober: the client only measures.
        mesh_key: the region's secret; a zero key means none.
        app_name: name of the program, up to 32 bytes of printable ASCII; it is visible to operators
            and mesh peers.
    """

    version: int = PROTOCOL_VERSION
    can_ack_pings: bool = False
    is_prober: bool = False
    mesh_key: MeshKey = MeshKey()
    app_name: str = ""

    def to_json(self) -> bytes:
        """Return the compact JSON, members in the reference's order."""
        members: dict[str, Any] = {}
        if self.mesh_key:
            members["meshKey"] = self.mesh_key.text
        if self.version:
            members["version"] = self.version
        members["CanAckPings"] = self.can_ack_pings
        if self.is_prober:
            members["IsProber"] = True
        if self.app_name:
            members["AppName"] = self.app_name
        return _to_json(members)


class ClientLogin(NamedTuple):
    """A decrypted ClientInfo: the client's key, its contents, and the box for the answer."""

    public: NodePublic
    info: ClientInfo
    box: Box

    def server_info_frame(self, info: ServerInfo = ServerInfo()) -> bytes:
        """Return the whole ServerInfo frame, sealed for this client."""
        return frame(FrameType.SERVER_INFO, self.box.seal(server_info_json(info)))


def server_key_frame(public: NodePublic) -> bytes:
    """Return the whole ServerKey frame, the relay's first."""
    return frame(FrameType.SERVER_KEY, MAGIC, public.raw)


def check_client_info_header(frame_type: int, length: int) -> None:
    """Judge the first frame's header before its payload is read. LoginError closes."""
    if frame_type != FrameType.CLIENT_INFO:
        raise LoginError("frame_type", f"first frame has type {frame_type:#04x}, not ClientInfo")
    _check_client_info_size(length)


def _check_client_info_size(length: int) -> None:
    if not MIN_CLIENT_INFO_SIZE <= length <= MAX_CLIENT_INFO_SIZE:
        raise LoginError("frame_size", f"ClientInfo of {length} bytes")


def open_client_info(
    server_private: NodePrivate, payload: bytes, agree: Agree | None = None
) -> ClientLogin:
    """Open and parse the payload of a ClientInfo frame; `agree` makes the box's key.

    Raises LoginError, with one of REASONS, for a wrong size, an invalid key, a box that does not
    open, JSON that the reference refuses and an invalid AppName (PROTOCOL §22). The relay closes
    without a reply.
    """
    _check_client_info_size(len(payload))
    public = NodePublic(payload[:KEY_SIZE])
    try:
        box = Box(server_private, public) if agree is None else Box.of(agree(public.raw))
    except BoxError as error:
        raise LoginError("client_key", str(error)) from None
    try:
        text = box.open(payload[KEY_SIZE:])
    except BoxError as error:
        raise LoginError("box", str(error)) from None
    return ClientLogin(public, parse_client_info(text), box)


def check_app_name_allowed(info: ClientInfo, disallowed: Collection[str]) -> None:
    """Check the AppName of a client that is not a mesh peer (PROTOCOL §22). LoginError closes."""
    if info.app_name in disallowed:
        raise LoginError("app_name_disallowed", f'the app name "{info.app_name}" is not allowed')


def parse_server_key(frame_type: int, payload: bytes) -> NodePublic:
    """Return the key in the relay's first frame. Raises ProtocolError for any other frame."""
    if frame_type != FrameType.SERVER_KEY:
        raise ProtocolError(f"first frame has type {frame_type:#04x}, not ServerKey")
    if not MIN_SERVER_KEY_SIZE <= len(payload) <= MAX_SERVER_KEY_SIZE:
        raise ProtocolError(f"ServerKey of {len(payload)} bytes")
    if not payload.startswith(MAGIC):
        raise ProtocolError("ServerKey without the DERP magic")
    key = NodePublic(payload[len(MAGIC) : MIN_SERVER_KEY_SIZE])
    if key.is_zero:
        raise ProtocolError("the relay's key is all zeros")
    return key


def client_info_frame(public: NodePublic, box: Box, info: ClientInfo) -> bytes:
    """Return the whole ClientInfo frame of the client `public`, sealed in the relay's `box`."""
    return frame(FrameType.CLIENT_INFO, public.raw, box.seal(info.to_json()))


def open_server_info(box: Box, payload: bytes) -> ServerInfo:
    """Open and parse the payload of a ServerInfo frame. ProtocolError ends the connection."""
    if not MIN_SERVER_INFO_SIZE <= len(payload) <= MAX_SERVER_INFO_SIZE:
        raise ProtocolError(f"ServerInfo of {len(payload)} bytes")
    try:
        return parse_server_info(box.open(payload))
    except BoxError as error:
        raise ProtocolError(f"ServerInfo: {error}") from None


def parse_client_info(text: bytes) -> ClientInfo:
    """Read ClientInfo JSON; accept and refuse the same texts as the reference (PROTOCOL §3.1).

    Raises LoginError with the reason "json", "mesh_key" or "app_name".
    """
    return _short_client_info(text) if len(text) <= _SHORT_BYTES else _client_info(text)


# Nearly all clients send the same text. A mesh key does not fit into this length, so no secret is
# cached.
_SHORT_BYTES: Final = 64


@lru_cache(maxsize=64)
def _short_client_info(text: bytes) -> ClientInfo:
    return _client_info(text)


def _client_info(text: bytes) -> ClientInfo:
    try:
        values = _read_members(text, _CLIENT_INFO_MEMBERS)
    except _MeshKeyError:
        raise LoginError("mesh_key", "malformed mesh key") from None
    except ValueError as error:
        raise LoginError("json", f"ClientInfo: {error}") from None
    _check_app_name(values.get("appname", ""))
    return ClientInfo(
        version=values.get("version", 0),
        can_ack_pings=values.get("canackpings", False),
        is_prober=values.get("isprober", False),
        mesh_key=values.get("meshkey") or MeshKey(),
        app_name=values.get("appname", ""),
    )


def is_app_name(name: str) -> bool:
    """Return whether relays accept a text as an AppName (PROTOCOL §22)."""
    return len(name) <= MAX_APP_NAME_BYTES and name.isascii() and name.isprintable()


def _check_app_name(name: str) -> None:
    if not is_app_name(name):
        raise LoginError(
            "app_name", f"want an AppName of up to {MAX_APP_NAME_BYTES} printable ASCII characters"
        )


def parse_server_info(text: bytes) -> ServerInfo:
    """Read ServerInfo JSON (PROTOCOL §3.2). Raises ProtocolError when it is malformed."""
    try:
        values = _read_members(text, _SERVER_INFO_MEMBERS)
    except ValueError as error:
        raise ProtocolError(f"ServerInfo: {error}") from None
    return ServerInfo(
        version=values.get("version", 0),
        token_bucket_bytes_per_second=values.get("tokenbucketbytespersecond", 0),
        token_bucket_bytes_burst=values.get("tokenbucketbytesburst", 0),
    )


@lru_cache(maxsize=8)  # a relay sends the same text to nearly all clients
def server_info_json(info: ServerInfo) -> bytes:
    """Return the compact JSON of `info`; members that are 0 are left out."""
    members = {
        "version": info.version,
        "TokenBucketBytesPerSecond": info.token_bucket_bytes_per_second,
        "TokenBucketBytesBurst": info.token_bucket_bytes_burst,
    }
    return _to_json({name: value for name, value in members.items() if value})


_Kind = Literal["int", "bool", "text", "mesh key"]
# Names are compared case-folded, which also folds U+017F and U+212A as the reference does.
_CLIENT_INFO_MEMBERS: Final[Mapping[str, _Kind]] = {
    "meshkey": "mesh key",
    "version": "int",
    "canackpings": "bool",
    "isprober": "bool",
    "appname": "text",
}
_SERVER_INFO_MEMBERS: Final[Mapping[str, _Kind]] = {
    "version": "int",
    "tokenbucketbytespersecond": "int",
    "tokenbucketbytesburst": "int",
}


class _MeshKeyError(ValueError):
    pass


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# Objects come as tuples of pairs, so that duplicate members are all checked;
# arrays stay lists, which distinguishes the two.
_DECODER: Final = json.JSONDecoder(object_pairs_hook=tuple, parse_constant=_refuse_constant)


def _to_json(members: Mapping[str, Any]) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode()


def _read_members(text: bytes, kinds: Mapping[str, _Kind]) -> dict[str, Any]:
    """Return the known members, checked, by case-folded name. The last duplicate counts.

    Raises ValueError without quoting the text, which may hold a mesh key.
    """
    try:
        # Bytes that are not UTF-8 are allowed inside strings, as replacement characters.
        document = _DECODER.decode(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if document is None:
        return {}
    if not isinstance(document, tuple):
        raise ValueError("not a JSON object")
    values: dict[str, Any] = {}
    for name, value in document:
        folded = name.casefold()
        kind = kinds.get(folded)
        if kind == "mesh key":
            values[folded] = _mesh_key(value)
        elif kind is not None and value is not None:
            values[folded] = _checked(folded, kind, value)
    return values


def _checked(name: str, kind: _Kind, value: object) -> int | bool | str:
    """Return the value when it has the wanted type; an int is one of 64 bits."""
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "int" and type(value) is int and -(1 << 63) <= value < 1 << 63:
        return value
    if kind == "text" and isinstance(value, str):
        # A lone surrogate is a replacement character to the reference, and could not be printed.
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    raise ValueError(f"{name!r} has the wrong type")


def _mesh_key(value: object) -> MeshKey:
    """Parse a value that, unlike other members, must not be null or have white space around it."""
    if not isinstance(value, str):
        raise _MeshKeyError
    try:
        return MeshKey(parse_key_text(value, ""))
    except ValueError:
        raise _MeshKeyError from None
