"""The mesh component: the region's secret and its other relays (PROTOCOL §12).

Reads the files of `-mesh-psk-file` and `-mesh-with @FILE` at the start and on SIGHUP, then in
another thread. Otherwise loop thread only.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastderp.errors import ConfigError, UsageError
from fastderp.server.components.component import Component, readable_by_all
from fastderp.server.server import Server
from fastderp.server.settings import MeshSettings, SecretsSettings
from fastderp.util import files
from fastderp.util.text import printable
from fastderp.util.threads import in_thread
from fastderp.wire.keys import MeshKey, load_mesh_keys, parse_mesh_keys

if TYPE_CHECKING:
    from fastderp.server.mesh.links import MeshPeer
    from fastderp.server.mesh.setec import SecretsServer

log: logging.Logger = logging.getLogger("fastderp")

DEV_MESH_KEY = "TAILSCALE_DERPER_MESH_KEY"


class MeshMembership(Component):
    """The configured mesh keys and members, as last read."""

    name = "mesh"

    def __init__(self, settings: MeshSettings) -> None:
        """Start with no keys. Raises UsageError for settings that cannot work together."""
        self.keys: list[MeshKey] = []
        self.peers: list[MeshPeer] = []
        self._settings = settings
        self._secrets = _secrets_server(settings.secrets) if settings.secrets is not None else None
        self._server: Server | None = None

    def __str__(self) -> str:
        return f"mesh: {self._text}"

    async def open(self) -> None:
        """Read keys and members. Raises ConfigError, SecretsError or UsageError."""
        await self._take(*self._read_files())

    async def check(self) -> list[str]:
        """Read the files; query no secrets server."""
        if self._secrets is not None:
            _, peers = self._read_files()
            return [f"{len(peers)} members; the secrets server was not queried"]
        await self.open()
        return [self._text]

    async def start(self, server: Server) -> None:
        """Link the server to the members."""
        self._server = server
        server.set_mesh_peers(self.peers)

    async def close(self) -> None:
        """Close the secrets client."""
        if self._secrets is not None:
            await self._secrets.close()

    def describe(self) -> list[str]:
        """Return the number of keys and members; nothing without keys."""
        return [str(self)] if self.keys else []

    def warnings(self) -> list[str]:
        """Return a warning when every user can read the secret."""
        return readable_by_all(self._settings.psk_file)

    @property
    def reloadable(self) -> bool:
        """Whether keys or members come from a file or a server."""
        settings = self._settings
        return bool(self._secrets or settings.psk_file) or settings.members.startswith("@")

    @property
    def files(self) -> list[Path]:
        """The files of the secret and the members."""
        members = self._settings.members
        found = [self._settings.psk_file] if self._settings.psk_file is not None else []
        return found + ([Path(members[1:])] if members.startswith("@") else [])

    async def reload(self) -> str:
        """Read and apply keys and members."""
        assert self._server is not None
        before = self.keys, self.peers
        await self._take(*await in_thread("mesh", partial(self._read_files, reloading=True)))
        self._server.mesh_keys = self.keys
        self._server.set_mesh_peers(self.peers)
        return f"{self._text}{', unchanged' if before == (self.keys, self.peers) else ''}"

    @property
    def _text(self) -> str:
        return f"{len(self.keys)} keys, {len(self.peers)} members"

    def _read_files(self, *, reloading: bool = False) -> tuple[list[MeshKey], list[MeshPeer]]:
        """Return the keys in the settings or their file, and the members. Any thread.

        When `reloading`, an empty file of members is an error, as for lists of keys.
        """
        settings = self._settings
        keys = _keys(settings) if self._secrets is None else []
        return keys, _peers(settings.members, reloading=reloading)

    async def _take(self, keys: list[MeshKey], peers: list[MeshPeer]) -> None:
        """Use these keys, or those of the secrets server, and members; or change nothing."""
        if self._secrets is not None:
            keys = await self._secrets.fetch(parse_mesh_keys)
        if self._settings.members and not keys:
            raise UsageError(
                "-mesh-with needs the region's secret: -mesh-psk-file or -secrets-url, or with "
                f"-dev ${DEV_MESH_KEY}"
            )
        self.keys, self.peers = keys, peers


def _secrets_server(settings: SecretsSettings) -> SecretsServer:
    # Imported on use, because it loads aiohttp.
    from fastderp.server.mesh.setec import SecretsServer

    try:
        return SecretsServer(settings.url, settings.name, settings.cache)
    except ValueError as error:
        raise UsageError(f"-secrets-url: {error}") from None


def _keys(settings: MeshSettings) -> list[MeshKey]:
    if settings.psk_file is not None:
        return load_mesh_keys(settings.psk_file)
    try:
        return [MeshKey.from_text(settings.dev_key)] if settings.dev_key else []
    except ValueError as error:
        raise ConfigError(f"${DEV_MESH_KEY}: {error}") from None


def _peers(mesh_with: str, *, reloading: bool) -> list[MeshPeer]:
    in_file = mesh_with.startswith("@")
    items = (
        _members_in(Path(mesh_with[1:]), reloading=reloading) if in_file else mesh_with.split(",")
    )
    texts = [item.strip() for item in items if item.strip()]
    if not texts:
        return []
    # Imported on use, because it loads all modules for dialling.
    from fastderp.server.mesh.links import MeshPeer

    try:
        return [MeshPeer.parse(text) for text in texts]
    except ValueError as error:
        raise (ConfigError if in_file else UsageError)(
            f"-mesh-with {printable(mesh_with)}: {error}"
        ) from None


def _members_in(path: Path, *, reloading: bool) -> list[str]:
    """Return the lines of a file of members without comments."""
    try:
        text = files.read(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(f"-mesh-with @{path}: {reason}") from None
    if reloading and not text.strip():
        # An editor may truncate the file before it writes: no members would split the region.
        raise ConfigError(f"-mesh-with @{path}: it is empty (write a # comment to mean none)")
    return [line.partition("#")[0] for line in text.splitlines()]
