"""Reads the rate limit of clients from derper's `-rate-config` file. PROTOCOL §6.8.

The data plane enforces it.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastderp.errors import ConfigError
from fastderp.util import files
from fastderp.util.json_members import folded
from fastderp.wire.protocol import KEY_SIZE, MAX_PACKET_SIZE

log: logging.Logger = logging.getLogger("fastderp")

# The cost of the largest frame: every burst must let it pass.
MIN_BURST_BYTES = KEY_SIZE + MAX_PACKET_SIZE
_UINT64_MAX = (1 << 64) - 1
_RATE, _BURST = "perclientratelimitbytespersec", "perclientrateburstbytes"


@dataclass(frozen=True, slots=True)
class RateLimit:
    """The rate at which each client may send. PROTOCOL §6.8.

    Args:
        bytes_per_s: rate, 0 for no limit.
        burst_bytes: bytes at once after a pause, at least 65568 (the largest frame); 0: no limit.
    """

    bytes_per_s: int = 0
    burst_bytes: int = 0

    def __post_init__(self) -> None:
        burst_bytes = max(self.burst_bytes, MIN_BURST_BYTES) if self.bytes_per_s else 0
        object.__setattr__(self, "burst_bytes", burst_bytes)

    def __str__(self) -> str:
        return (
            f"{self.bytes_per_s} bytes/s with bursts of {self.burst_bytes} bytes"
            if self.bytes_per_s
            else "no limit"
        )

    @classmethod
    def load(cls, path: Path) -> RateLimit:
        """Read derper's JSON file at `path`. Raises ConfigError that names it and the reason."""
        try:
            document = json.loads(files.read(path))
        except OSError as error:
            raise ConfigError(
                f"rate configuration {path}: cannot read it: {error.strerror}"
            ) from None
        except (ValueError, RecursionError):
            raise ConfigError(f"rate configuration {path}: not valid JSON") from None
        if not isinstance(document, dict | None):
            raise ConfigError(f"rate configuration {path}: not a JSON object")
        members = folded({name: (name, value) for name, value in (document or {}).items()})
        for known, (name, _) in members.items():
            if known not in (_RATE, _BURST):
                log.warning(
                    "rate configuration %s: unknown member %s is ignored",
                    path,
                    json.dumps(name[:80]),
                )
        try:
            return cls(_bytes(*members.get(_RATE, ("", 0))), _bytes(*members.get(_BURST, ("", 0))))
        except ValueError as error:
            raise ConfigError(f"rate configuration {path}: {error}") from None


def _bytes(name: str, value: Any) -> int:
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= _UINT64_MAX:
        raise ValueError(f"{name} is not a number of bytes")
    return value
