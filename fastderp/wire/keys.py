"""Node, mesh and server keys, NaCl boxes, and the relay's key file (PROTOCOL §1, §12).

Immutable values for any thread. Texts and reprs of errors and objects never show a secret.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import ClassVar

from fastderp.errors import BoxError, KeyFileError
from fastderp.util import files
from fastderp.util.arguments import check_type
from fastderp.util.json_members import folded
from fastderp.wire.protocol import KEY_SIZE, NONCE_SIZE, NodePublic, key_bytes, parse_key_text

if sys.platform == "linux":
    from fastderp.wire import sodium
else:
    from fastderp.wire import portable_sodium as sodium

__all__ = [
    "Box",
    "MeshKey",
    "NodePrivate",
    "NodePublic",
    "load_mesh_keys",
    "load_or_create_server_key",
]

_PRIVATE_PREFIX = "privkey:"
_NO_MESH = bytes(KEY_SIZE)


class Box:
    """Seals and opens messages between one private and one public key.

    The constructor is expensive (an X25519 agreement); `seal` and `open` cost microseconds.
    A box holds a secret, so keep it no longer than the login it serves.
    """

    __slots__ = ("_shared",)

    def __init__(self, private: NodePrivate, peer: NodePublic) -> None:
        """Agree on the shared key. BoxError for a zero or low-order `peer`."""
        shared = sodium.shared_key(peer.raw, private._raw)
        if shared is None:
            raise BoxError("the public key is of low order")
        self._shared = shared

    @classmethod
    def of(cls, shared: bytes | None) -> Box:
        """Return the box of a key that another library agreed on; BoxError without one."""
        if shared is None:
            raise BoxError("the public key is of low order")
        box = cls.__new__(cls)
        box._shared = shared
        return box

    def seal(self, message: bytes, nonce: bytes | None = None) -> bytes:
        """Return nonce 24 ‖ box(message). A given `nonce` must not have been used before."""
        if nonce is None:
            nonce = os.urandom(NONCE_SIZE)
        return nonce + sodium.seal(self._shared, nonce, message)

    def open(self, sealed: bytes) -> bytes:
        """Return the message in nonce 24 ‖ box. BoxError when it was not made by the peer."""
        message = sodium.open_sealed(self._shared, sealed[:NONCE_SIZE], sealed[NONCE_SIZE:])
        if message is None:
            raise BoxError("the box does not open")
        return message

    def __repr__(self) -> str:
        return "<Box>"


class NodePrivate:
    """The private key of a node or a relay. PROTOCOL §1.

    `raw` is its 32 bytes and `text` its typed form, both secret. Comparison takes constant time; it
    has no hash.
    """

    __slots__ = ("_public_key", "_raw")

    def __init__(self, raw: bytes | bytearray | memoryview) -> None:
        """Take the 32 bytes of `raw` as they are.

        Raises ValueError for another length and for all zeros, TypeError for another type.
        """
        self._raw = key_bytes("a private key", raw)
        if not any(self._raw):
            raise ValueError("a private key must not be all zeros")
        self._public_key: NodePublic | None = None

    @classmethod
    def generate(cls) -> NodePrivate:
        """Make a new random key, clamped as X25519 requires."""
        raw = bytearray(os.urandom(KEY_SIZE))
        raw[0] &= 248
        raw[31] = (raw[31] & 127) | 64
        return cls(bytes(raw))

    @classmethod
    def from_text(cls, text: str) -> NodePrivate:
        """Parse a `text` of `privkey:` and 64 hex digits of either case.

        Raises ValueError for any other text, without quoting it.
        """
        return cls(parse_key_text(text, _PRIVATE_PREFIX))

    @property
    def raw(self) -> bytes:
        """The 32 secret bytes."""
        return self._raw

    @property
    def text(self) -> str:
        """The typed form, a secret: `privkey:` and 64 lower-case hex digits."""
        return _PRIVATE_PREFIX + self._raw.hex()

    @property
    def public_key(self) -> NodePublic:
        """The public half: the address of the node. Computed once, in about 50 µs."""
        if self._public_key is None:
            self._public_key = NodePublic(sodium.public_key(self._raw))
        return self._public_key

    def box(self, peer: NodePublic) -> Box:
        """Return the box shared with `peer`. BoxError for a zero or low-order key."""
        return Box(self, peer)

    def seal_to(self, peer: NodePublic, message: bytes) -> bytes:
        """Return nonce 24 ‖ box(`message`) that only `peer` opens.

        Raises BoxError for a zero or low-order key.
        """
        return self.box(peer).seal(message)

    def open_from(self, peer: NodePublic, sealed: bytes) -> bytes:
        """Return the message that `peer` sealed; `sealed` is nonce 24 ‖ box.

        Raises BoxError when it does not open.
        """
        return self.box(peer).open(sealed)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NodePrivate):
            return NotImplemented
        return sodium.are_equal(self._raw, other._raw)

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<NodePrivate of {self.public_key.short}>"


class MeshKey:
    """The secret that the relays of one region share. PROTOCOL §1, §7.1.

    The zero key means "no mesh" and makes no client a mesh peer. Comparison takes constant time; it
    has no hash.
    """

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes | bytearray | memoryview = bytes(KEY_SIZE)) -> None:
        """Take the 32 bytes of `raw`; without them make the zero key.

        Raises ValueError for another length, TypeError for another type.
        """
        self._raw = key_bytes("a mesh key", raw)

    @classmethod
    def generate(cls) -> MeshKey:
        """Make a new random key."""
        return cls(os.urandom(KEY_SIZE))

    @classmethod
    def from_text(cls, text: str) -> MeshKey:
        """Parse a `text` of 64 hex digits of either case, with or without white space around it.

        Raises ValueError for any other text, without quoting it.
        """
        return cls(parse_key_text(text.strip() if isinstance(text, str) else text, ""))

    @property
    def is_zero(self) -> bool:
        """Whether this is the zero key: no mesh."""
        return self._raw == _NO_MESH

    @property
    def raw(self) -> bytes:
        """The 32 secret bytes."""
        return self._raw

    @property
    def text(self) -> str:
        """The text form, a secret: 64 lower-case hex digits."""
        return self._raw.hex()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MeshKey):
            return NotImplemented
        return sodium.are_equal(self._raw, other._raw)

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return not self.is_zero

    def __repr__(self) -> str:
        return "<MeshKey (none)>" if self.is_zero else "<MeshKey>"


def raw_key(name: str, key: NodePublic) -> bytes:
    """Return the bytes of a public key, the argument `name`. Raises TypeError for anything else."""
    check_type(name, key, NodePublic)
    return key.raw


def load_or_create_server_key(path: str | os.PathLike[str]) -> NodePrivate:
    """Return the relay's key from its key file at `path`; generate the file if it is missing.

    PROTOCOL §12.

    The file is JSON, `{"PrivateKey": "privkey:<64 hex digits>"}`. A new one is created atomically,
    with mode 0600, in directories that are created as needed. Of several processes that start at
    once without a file, one creates it, and all return its key.

    Raises KeyFileError naming the file and the reason, never its contents.
    """
    path = Path(path)
    key = _read_key_file(path)
    if key is not None:
        return key
    _create_key_file(path, NodePrivate.generate())
    key = _read_key_file(path)
    if key is None:
        raise KeyFileError(f"key file {path}: a dangling link, or removed during its creation")
    return key


def load_key(path: str | os.PathLike[str]) -> NodePrivate:
    """Return the key from an existing key file, as `load_or_create_server_key` reads it.

    PROTOCOL §12. Raises KeyFileError naming the file and the reason, never its contents.
    """
    key = _read_key_file(Path(path))
    if key is None:
        raise KeyFileError(f"key file {path}: no such file")
    return key


def load_mesh_keys(path: str | os.PathLike[str]) -> list[MeshKey]:
    """Return the region's secret from its file, as `parse_mesh_keys` reads it (PROTOCOL §12).

    Raises KeyFileError naming the file and the reason, never its contents.
    """
    try:
        return parse_mesh_keys(files.read(path).decode())
    except OSError as error:
        raise KeyFileError(f"mesh key file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"mesh key file {path}: not a text file") from None
    except ValueError as error:
        raise KeyFileError(f"mesh key file {path}: {error}") from None


def parse_mesh_keys(text: str) -> list[MeshKey]:
    """Read the region's secret, 64 hex digits.

    During a change there are two, separated by white space.

    A `#` and what follows it in the line is a comment. Relays send the first to each other and
    accept either. Raises ValueError that does not quote the text.
    """
    words = [word for line in text.splitlines() for word in line.partition("#")[0].split()]
    if not 1 <= len(words) <= 2:
        raise ValueError(f"want one mesh key, or two during a change, not {len(words)}")
    keys = [MeshKey.from_text(word) for word in words]
    if not all(keys):
        raise ValueError("a key must not be all zeros")
    return keys


def _read_key_file(path: Path) -> NodePrivate | None:
    """Return the key in the file, or None if the file is missing."""
    try:
        text = files.read(path).decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise KeyFileError(f"key file {path}: not a text file") from None
    except OSError as error:
        raise KeyFileError(f"key file {path}: cannot read it: {error.strerror}") from error
    try:
        return _parse_key_file(text)
    except ValueError as error:
        # `from None`, because a JSON error contains the whole text with the secret.
        raise KeyFileError(f"key file {path}: {error}") from None


def _parse_key_file(text: str) -> NodePrivate:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("not valid JSON") from None
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    # The reference matches names in any case, and operators edit these files by hand.
    value = folded(content).get("privatekey")
    if not isinstance(value, str):
        raise ValueError('it has no "PrivateKey" text')
    return NodePrivate.from_text(value)


def _create_key_file(path: Path, key: NodePrivate) -> None:
    """Write a new key file unless another process has just made one."""
    text = json.dumps({"PrivateKey": key.text}, indent="\t")
    try:
        files.create_private(path, text.encode())
    except OSError as error:
        raise KeyFileError(f"key file {path}: cannot create it: {error.strerror}") from error
