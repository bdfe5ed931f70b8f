"""What makes `fastderp-relay` a member of a region: the secret, the other relays, and both again on SIGHUP (PROTOCOL §12).

Opens the files that `-mesh-psk-file` and `-mesh-with @FILE` name.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from fastderp.cli.config import DEV_MESH_KEY, RelayConfig
from fastderp.cli.flags import printable
from fastderp.errors import ConfigError, DerpError, UsageError
from fastderp.keys import MeshKey, load_mesh_keys
from fastderp.server.mesh import MeshPeer
from fastderp.server.relay import Server

log = logging.getLogger("fastderp")


class RegionSettings:
    """The mesh keys and members that the command line asks for, as they are in the files now."""

    def __init__(self, config: RelayConfig) -> None:
        """Read everything. Raises ConfigError or UsageError for what cannot be used."""
        self._config = config
        self.keys: list[MeshKey] = []
        self.peers: list[MeshPeer] = []
        self._read()

    @property
    def reloadable(self) -> bool:
        """Whether any of it comes from a file."""
        return self._config.mesh_psk_file is not None or self._config.mesh_with.startswith("@")

    def reload(self, server: Server) -> None:
        """Read everything again and use it; what cannot be used changes nothing."""
        try:
            self._read()
        except DerpError as error:
            log.error("nothing changes: %s", error)
            return
        server.mesh_keys = self.keys
        server.set_mesh_peers(self.peers)
        log.info("mesh: %d keys, %d members", len(self.keys), len(self.peers))

    def _read(self) -> None:
        keys, peers = _keys(self._config), _peers(self._config.mesh_with)
        if self._config.mesh_with and not keys:
            raise UsageError(f"-mesh-with needs the region's secret: -mesh-psk-file, or with -dev ${DEV_MESH_KEY}")
        self.keys, self.peers = keys, peers


def _keys(config: RelayConfig) -> list[MeshKey]:
    if config.mesh_psk_file is not None:
        return load_mesh_keys(config.mesh_psk_file)
    text = os.environ.get(DEV_MESH_KEY, "") if config.dev else ""
    try:
        return [MeshKey.from_text(text)] if text else []
    except ValueError as error:
        raise ConfigError(f"${DEV_MESH_KEY}: {error}") from None


def _peers(mesh_with: str) -> list[MeshPeer]:
    items = _members_in(Path(mesh_with[1:])) if mesh_with.startswith("@") else mesh_with.split(",")
    try:
        return [MeshPeer.parse(item.strip()) for item in items if item.strip()]
    except ValueError as error:
        raise UsageError(f"-mesh-with {printable(mesh_with)}: {error}") from None


def _members_in(path: Path) -> list[str]:
    """Return the lines of a file of members, one each, without comments."""
    try:
        return [line.partition("#")[0] for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(f"-mesh-with {path}: {reason}") from None
