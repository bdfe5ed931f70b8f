"""The admission component: checks a server's clients by its settings (PROTOCOL §8)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastderp.errors import UsageError
from fastderp.server.components.component import Component
from fastderp.server.observe.values import Value
from fastderp.server.server import Server
from fastderp.server.settings import AdmissionSettings
from fastderp.util.text import printable

if TYPE_CHECKING:
    from fastderp.server.admission.admission import Admission, Verifier


class AdmissionControl(Component):
    """Verifies clients at login and while connected; without settings it admits every client."""

    name = "admission"

    def __init__(self, settings: AdmissionSettings) -> None:
        self._settings = settings
        self._stack = contextlib.AsyncExitStack()
        self.admission: Admission | None = None

    async def open(self) -> None:
        """Read the lists of keys. Raises ConfigError, UsageError."""
        if not self._settings.is_open:
            self.admission = _admission(self._settings)
            self._stack.push_async_callback(self.admission.close)

    async def check(self) -> list[str]:
        """Read the lists of keys; query no service."""
        await self.open()
        return [line.removeprefix("admission: ") for line in self.describe()]

    async def start(self, server: Server) -> None:
        """Follow the lists and the server's clients."""
        if self.admission is not None:
            await self.admission.self_test()
            await self._stack.enter_async_context(self.admission.watching(server))

    async def close(self) -> None:
        """Stop following, and close the connections to the verifying services."""
        await self._stack.aclose()

    def describe(self) -> list[str]:
        """Return the lists and services that admit clients."""
        lines = [f"admission: {self.admission or 'every client'}"]
        if self._settings.disallowed_app_names:
            names = (f'"{printable(name)}"' for name in self._settings.disallowed_app_names)
            lines.append(f"refused app names: {', '.join(names)}")
        return lines

    @property
    def reloadable(self) -> bool:
        """Whether there is a list to read or a service to query."""
        return self.admission is not None

    async def reload(self) -> str:
        """Read the lists again."""
        assert self.admission is not None
        return await self.admission.reload()

    def metrics(self) -> Mapping[str, Value]:
        """Return the verdicts by outcome."""
        return {} if self.admission is None else self.admission.metrics()

    async def problems(self) -> list[str]:
        """Return the problems of the services that verify clients. PROTOCOL §6.9."""
        return [] if self.admission is None else await self.admission.self_test()


def _admission(settings: AdmissionSettings) -> Admission:
    # Imported on use, because most relays admit every client.
    from fastderp.server.admission.admission import Admission
    from fastderp.server.admission.key_lists import KeyLists

    lists = KeyLists.load(settings.allow_file, settings.deny_file)
    verifiers: list[Verifier] = []
    own_key = None
    if settings.tailscaled or settings.url:
        # Imported on use, because it loads aiohttp.
        from fastderp.server.admission.verifiers import AdmissionUrl, Tailscaled

        if settings.tailscaled:
            tailscaled = Tailscaled(settings.socket)
            verifiers.append(tailscaled)
            own_key = tailscaled.own_key
        if settings.url:
            try:
                verifiers.append(AdmissionUrl(settings.url, fail_open=settings.url_fail_open))
            except ValueError as error:
                raise UsageError(f"-verify-client-url: {error}") from None
    return Admission(lists, verifiers, recheck_s=settings.recheck_s, own_key=own_key)
