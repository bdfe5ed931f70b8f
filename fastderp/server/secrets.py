"""The region's secret from a setec server, with a copy on disk for the time that the server cannot be reached. PROTOCOL §12.

Loop thread only. Import this module only when there is such a server, as `service`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from fastderp.errors import ConfigError, SecretsError
from fastderp.files import read_file
from fastderp.server.service import NoAnswer, Service, http_url, members

log = logging.getLogger("fastderp")

# A relay and its secrets server may start together.
ATTEMPTS = 5
PAUSE_S = 2.0

ANSWER_LIMIT_BYTES = 64 * 1024

# What makes a server sure that it is not a browser that asks.
_NO_BROWSERS = {"Sec-X-Tailscale-No-Browsers": "setec", "Content-Type": "application/json"}


class SecretsServer:
    """Asks a setec server for one secret.

    The copy has the form that derper's has, so that each can go on with the other's: a JSON object of secrets by name.
    """

    def __init__(self, url: str, name: str, cache: Path) -> None:
        """Ask at an http or https `url` for the secret `name`; keep a copy in `cache`, a file or a directory for one.

        Raises ValueError for the URL.
        """
        base = http_url(url, "https://setec.example.ts.net")
        self.host = str(base.host)
        self._get = base.joinpath("api", "get")
        self._name = name
        # derper's is a file although its flag calls it a directory.
        self._cache = cache / "secrets.json" if cache.is_dir() else cache
        self._service = Service.at_url(base, ANSWER_LIMIT_BYTES, _NO_BROWSERS)

    async def close(self) -> None:
        """Close the connection."""
        await self._service.close()

    async def fetch(self) -> str:
        """Return the secret as it is now, or its copy when the server cannot be reached.

        Raises ConfigError when the server refuses, or has no such text; SecretsError when there is no copy either.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._ask()
            except NoAnswer as error:
                log.warning("secrets server %s: %s", self.host, error)
                copy = self._copy()
                if copy is not None:
                    log.warning("%s is used as it was kept in %s", self._name, self._cache)
                    return copy
                if attempt == ATTEMPTS:
                    raise SecretsError(f"secrets server {self.host}: {error}; nothing is kept in {self._cache}") from None
                await asyncio.sleep(PAUSE_S)
        raise AssertionError("the last attempt returns or raises")

    async def _ask(self) -> str:
        question = json.dumps({"Name": self._name}).encode()
        status, body = await self._service.exchange("POST", self._get, question)
        if status in (400, 403, 404):
            reason = {400: "does not understand the question", 403: "does not let this machine have", 404: "does not know"}[status]
            raise ConfigError(f"secrets server {self.host} {reason} {self._name}")
        answer = members(status, body)
        text = _text(answer.get("value"))
        if text is None:
            raise ConfigError(f"secrets server {self.host}: {self._name} is no text")
        self._keep({"Value": answer["value"], "Version": answer.get("version")})
        return text

    # The copy

    def _copy(self) -> str | None:
        """Return what was kept; None when there is nothing to be used."""
        entry = self._kept().get(self._name)
        secret = entry.get("secret") if isinstance(entry, dict) else None
        return _text(secret.get("Value")) if isinstance(secret, dict) else None

    def _kept(self) -> dict[str, Any]:
        try:
            found = json.loads(read_file(self._cache))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _keep(self, secret: dict[str, Any]) -> None:
        """Write the copy; without one the relay only depends more on the server."""
        text = json.dumps(self._kept() | {self._name: {"secret": secret, "lastAccess": "0"}})
        try:
            self._cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(self._cache, text.encode())
        except OSError as error:
            log.warning("%s cannot be kept in %s: %s", self._name, self._cache, error.strerror)


def _text(value: object) -> str | None:
    """Read a value as JSON carries it; None when it is no text."""
    if not isinstance(value, str):
        return None
    try:
        return base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def _replace(path: Path, content: bytes) -> None:
    """Write a file that only we can read, all of it or nothing."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
