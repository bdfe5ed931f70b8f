"""What makes `fastderp-relay` a member of a region: the secret, the other relays, and both again on SIGHUP (PROTOCOL §12).

Opens the files that `-mesh-psk-file` and `-mesh-with @FILE` name.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fastderp.cli.config import DEV_MESH_KEY, RelayConfig, SecretsConfig
from fastderp.cli.flags import printable
from fastderp.errors import ConfigError, DerpError, UsageError
from fastderp.server.mesh.links import MeshPeer
from fastderp.server.observe.reloads import RETRY_S
from fastderp.server.observe.supervisor import supervisor
from fastderp.server.server import Server
from fastderp.util import files
from fastderp.util.shortage import shortage_of
from fastderp.wire.keys import MeshKey, load_mesh_keys, parse_mesh_keys

if TYPE_CHECKING:
    from fastderp.server.mesh.setec import SecretsServer

log: logging.Logger = logging.getLogger("fastderp")


class RegionSettings:
    """The mesh keys and members that the command line asks for, as they were when they were read."""

    def __init__(self, config: RelayConfig) -> None:
        """Begin with none; `read` them. Raises UsageError for what makes no sense whatever the files say."""
        self.keys: list[MeshKey] = []
        self.peers: list[MeshPeer] = []
        self._config = config
        self._secrets = _secrets_server(config.secrets) if config.secrets is not None else None
        self._reloading: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"mesh: {len(self.keys)} keys, {len(self.peers)} members"

    @property
    def reloadable(self) -> bool:
        """Whether any of it comes from a file or a server."""
        return bool(
            self._secrets or self._config.mesh_psk_file
        ) or self._config.mesh_with.startswith("@")

    async def read(self, *, reloading: bool = False) -> None:
        """Read everything; when `reloading`, an empty file of members is a mistake, as for lists of keys.

        Raises ConfigError, SecretsError or UsageError for what cannot be used, and changes nothing then.
        """
        keys = (
            _keys(self._config)
            if self._secrets is None
            else await self._secrets.fetch(parse_mesh_keys)
        )
        peers = _peers(self._config.mesh_with, reloading=reloading)
        if self._config.mesh_with and not keys:
            raise UsageError(
                f"-mesh-with needs the region's secret: -mesh-psk-file or -secrets-url, or with -dev ${DEV_MESH_KEY}"
            )
        self.keys, self.peers = keys, peers

    def reload(self, server: Server) -> None:
        """Read everything again and use it, soon; what cannot be used changes nothing."""
        if self._reloading is not None:
            self._reloading.cancel()
        self._reloading = supervisor.start("reload", lambda: self._reload(server))

    async def close(self) -> None:
        """Read nothing any more."""
        if self._reloading is not None:
            self._reloading.cancel()
            await asyncio.gather(self._reloading, return_exceptions=True)
        if self._secrets is not None:
            await self._secrets.close()

    async def _reload(self, server: Server) -> None:
        while True:
            try:
                await self.read(reloading=True)
                break
            except DerpError as error:
                if not shortage_of(error):
                    log.error("mesh: keys and members stay as they are: %s", error)
                    return
                log.error(
                    "mesh: keys and members stay as they are until the next attempt in %g s: %s",
                    RETRY_S,
                    error,
                )
            await asyncio.sleep(RETRY_S)
        server.mesh_keys = self.keys
        server.set_mesh_peers(self.peers)
        log.info("%s", self)


def _secrets_server(config: SecretsConfig) -> SecretsServer:
    # Only now: it brings aiohttp.
    from fastderp.server.mesh.setec import SecretsServer

    try:
        return SecretsServer(config.url, config.name, config.cache)
    except ValueError as error:
        raise UsageError(f"-secrets-url: {error}") from None


def _keys(config: RelayConfig) -> list[MeshKey]:
    if config.mesh_psk_file is not None:
        return load_mesh_keys(config.mesh_psk_file)
    text = os.environ.get(DEV_MESH_KEY, "") if config.dev else ""
    try:
        return [MeshKey.from_text(text)] if text else []
    except ValueError as error:
        raise ConfigError(f"${DEV_MESH_KEY}: {error}") from None


def _peers(mesh_with: str, *, reloading: bool) -> list[MeshPeer]:
    in_file = mesh_with.startswith("@")
    items = (
        _members_in(Path(mesh_with[1:]), reloading=reloading) if in_file else mesh_with.split(",")
    )
    try:
        return [MeshPeer.parse(item.strip()) for item in items if item.strip()]
    except ValueError as error:
        raise (ConfigError if in_file else UsageError)(
            f"-mesh-with {printable(mesh_with)}: {error}"
        ) from None


def _members_in(path: Path, *, reloading: bool) -> list[str]:
    """Return the lines of a file of members, one each, without comments."""
    try:
        text = files.read(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(f"-mesh-with @{path}: {reason}") from None
    if reloading and not text.strip():
        # An editor that truncates before it writes would part the region.
        raise ConfigError(f"-mesh-with @{path}: it is empty (write a # comment to mean none)")
    return [line.partition("#")[0] for line in text.splitlines()]
