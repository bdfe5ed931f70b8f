"""Reloads the parts of a relay, each by itself, and logs one line for each.

A part is loaded again until descriptors and memory suffice. Loop thread only. RELIABILITY F33, F36.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from fastderp.errors import DerpError
from fastderp.server.observe.coalesced import CoalescedRuns
from fastderp.server.observe.supervisor import supervisor
from fastderp.server.observe.values import Value
from fastderp.util.shortage import shortage_of

log: logging.Logger = logging.getLogger("fastderp")

RETRY_S = 1.0
# Seconds after which a reload is reported as delayed, and waited for no longer: a file system hangs.
LIMIT_S = 10.0

Reload = Callable[[], Awaitable[str]]
"""Loads a part again and returns what has changed. Raises DerpError, and changes nothing, when the
input cannot be used."""


class Reloads:
    """The reloadable parts of a relay, by name."""

    def __init__(self) -> None:
        self._parts: dict[str, _Part] = {}

    def add(self, name: str, reload: Reload) -> None:
        """Add a part."""
        self._parts[name] = _Part(name, reload)

    async def run(self) -> None:
        """Reload every part, and return when all are done, or after LIMIT_S.

        A part that fails or hangs does not stop the others.
        """
        log.info("reloading" if self._parts else "nothing to reload")
        await self._run(self._parts, "reload")

    async def run_one(self, name: str) -> None:
        """Reload a part whose files have changed."""
        await self._run([name], "files changed")

    def metrics(self) -> dict[str, Value]:
        """Return the refused reloads by the names of the table of metrics."""
        counts = {name: part.n_refused for name, part in self._parts.items()}
        return {"fastderp_reloads_refused_total": counts} if counts else {}

    def close(self) -> None:
        """Cancel the reloads that run."""
        for part in self._parts.values():
            part.runs.close()

    async def _run(self, names: Iterable[str], why: str) -> None:
        tasks = [self._parts[name].request(why) for name in names]
        if tasks:
            await asyncio.wait(tasks, timeout=LIMIT_S)


class _Part:
    """Loads one part, until descriptors and memory suffice or the next request comes."""

    def __init__(self, name: str, reload: Reload) -> None:
        self.runs = CoalescedRuns("reload", self._load, name=f"reload of {name}")
        self._name = name
        self._reload = reload
        self._why = ""
        self.n_refused = 0

    def request(self, why: str) -> asyncio.Task[None]:
        self._why = why
        return self.runs.request()

    async def _load(self) -> None:
        name, why = self._name, self._why
        while not self.runs.is_requested:
            late = asyncio.get_running_loop().call_later(LIMIT_S, self._log_late, why)
            try:
                text = await self._reload()
            except DerpError as error:
                kept = "the previous one stays in force"
                if not shortage_of(error):
                    self.n_refused += 1
                    self._log(logging.ERROR, why, "refused", f"{error}; {kept}")
                    return
                text = f"{error}; {kept}; next attempt in {RETRY_S:g} s"
                self._log(logging.ERROR, why, "delayed", text)
            except Exception as error:
                supervisor.note("reload", error, f"{name} stays as it is")
                return
            else:
                self._log(logging.INFO, why, "done", text)
                return
            finally:
                late.cancel()
            await asyncio.sleep(RETRY_S)

    def _log_late(self, why: str) -> None:
        text = f"not done after {LIMIT_S:g} s; the previous one stays in force until then"
        self._log(logging.WARNING, why, "delayed", text)

    def _log(self, level: int, why: str, outcome: str, text: str) -> None:
        fields = {"event": "reload", "part": self._name, "cause": why, "outcome": outcome}
        log.log(level, "%s: %s: %s", why, self._name, text, extra={"fields": fields})
