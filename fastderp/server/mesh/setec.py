"""Fetches the region's secret from a setec server, and keeps a copy on disk. PROTOCOL §12.

Loop thread; another thread reads and writes the copy. Import this module only for a configured server: it loads aiohttp.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastderp.errors import ConfigError, DerpError, SecretsError
from fastderp.server.net.http_query import HttpService, NoAnswer, checked, http_url, members
from fastderp.util import files
from fastderp.util.threads import in_thread

log: logging.Logger = logging.getLogger("fastderp")

T = TypeVar("T")

# A relay and its secrets server may start together.
ATTEMPTS = 5
PAUSE_S = 2.0

ANSWER_LIMIT_BYTES = 64 * 1024

# setec refuses requests without this header, because browsers cannot send it across sites.
_NO_BROWSERS = {"Sec-X-Tailscale-No-Browsers": "setec", "Content-Type": "application/json"}


class SecretsServer:
    """Fetches one secret from a setec server.

    The copy has derper's format, a JSON object of secrets by name, so that each program can use the
    other's.
    """

    def __init__(self, url: str, name: str, cache: Path) -> None:
        """Fetch the secret `name` from an http or https `url`; keep a copy in `cache`.

        Raises ValueError for the URL.
        """
        base = http_url(url, "https://setec.example.ts.net")
        self.host: str = str(base.host)
        self._get = base.joinpath("api", "get")
        self._name = name
        # derper's is a file although its flag calls it a directory. Path.is_dir would raise in a
        # folder without search permission, where the server can still be queried.
        self._cache = cache / "secrets.json" if os.path.isdir(cache) else cache
        self._service = HttpService.at_url(base, ANSWER_LIMIT_BYTES, _NO_BROWSERS)

    async def close(self) -> None:
        """Close the connection."""
        await self._service.close()

    async def fetch(self, read: Callable[[str], T]) -> T:
        """Return the result of `read` for the secret, or for its copy when the server fails.

        `read` raises ValueError for a text that cannot be used; only usable texts are kept. Raises
        ConfigError when the server refuses, or when its text cannot be used and there is no copy;
        SecretsError when it cannot be reached and there is no copy.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._ask(read)
            except ValueError as error:
                return await self._copy_despite(
                    ConfigError(f"secrets server {self.host}: {self._name}: {error}"), read
                )
            except NoAnswer as error:
                reason = SecretsError(f"secrets server {self.host}: {error}")
            try:
                return await self._copy_despite(reason, read)
            except SecretsError as error:
                if attempt == ATTEMPTS:
                    raise
                log.warning("%s", error)
            await asyncio.sleep(PAUSE_S)
        raise AssertionError("the last attempt returns or raises")

    async def _ask(self, read: Callable[[str], T]) -> T:
        """Fetch the secret and keep a copy.

        Raises NoAnswer, ConfigError for a refusal, ValueError for an answer that cannot be used.
        """
        question = json.dumps({"Name": self._name}).encode()
        status, body = await self._service.exchange("POST", self._get, question)
        if status in (400, 403, 404):
            reason = {
                400: "does not understand the request for",
                403: "denies this machine the secret",
                404: "does not have the secret",
            }[status]
            raise ConfigError(f"secrets server {self.host} {reason} {self._name}")
        answer = members(status, body)
        checked(answer, "Version", int, "a number")
        found = read(_text(answer.get("value")))
        secret = {"Value": answer["value"], "Version": answer.get("version")}
        await in_thread("secrets", partial(self._keep, secret))
        return found

    # The copy

    async def _copy_despite(self, reason: DerpError, read: Callable[[str], T]) -> T:
        """Return the copy and log the reason; raise the reason without a usable copy."""
        try:
            found = await in_thread("secrets", partial(self._copy, read))
        except ValueError as error:
            raise type(reason)(
                f"{reason}; the copy in {self._cache} is unusable, too: {error}"
            ) from None
        if found is None:
            raise type(reason)(f"{reason}; there is no copy in {self._cache}")
        log.warning("%s; %s: the relay uses the copy in %s", reason, self._name, self._cache)
        return found

    def _copy(self, read: Callable[[str], T]) -> T | None:
        """Return the copy, or None if there is none. Raises ValueError for a malformed copy."""
        entry = self._kept().get(self._name)
        secret = entry.get("secret") if isinstance(entry, dict) else None
        return read(_text(secret.get("Value"))) if isinstance(secret, dict) else None

    def _kept(self) -> dict[str, Any]:
        try:
            found = json.loads(files.read(self._cache))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _keep(self, secret: dict[str, Any]) -> None:
        """Write the copy; the relay works without it, but then needs the server at each start."""
        text = json.dumps(self._kept() | {self._name: {"secret": secret, "lastAccess": "0"}})
        try:
            files.make_private_directory(self._cache.parent)
            files.write_atomic(self._cache, text.encode())
        except OSError as error:
            log.warning("%s: no copy written to %s: %s", self._name, self._cache, error.strerror)


def _text(value: object) -> str:
    """Read a value as JSON carries it. Raises ValueError when it is not text."""
    try:
        if isinstance(value, str):
            return base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        pass
    raise ValueError("the value is not text")
