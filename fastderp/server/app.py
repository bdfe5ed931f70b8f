"""The relay that `fastderp-relay` runs: components around a `Server`.

Starting, reloading, measuring, describing and closing are loops over the components. Loop thread
only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fastderp.server.components.admission import AdmissionControl
from fastderp.server.components.certificates import CaCertificates, ManualCertificates
from fastderp.server.components.component import Component
from fastderp.server.components.listeners import Listeners
from fastderp.server.components.mesh import MeshMembership
from fastderp.server.components.services import (
    Bootstrap,
    CaptiveTunnels,
    ClientLimits,
    Identity,
    Stun,
)
from fastderp.server.net.activation import Inherited
from fastderp.server.observe.log_queue import LogQueue
from fastderp.server.observe.reloads import Reload, Reloads
from fastderp.server.observe.supervisor import supervisor
from fastderp.server.observe.values import Value
from fastderp.server.observe.watchdog import Watchdog
from fastderp.server.observe.watched_files import WatchedFiles
from fastderp.server.server import Server
from fastderp.server.settings import RelaySettings
from fastderp.util.threads import in_thread

log: logging.Logger = logging.getLogger("fastderp")

# Interval of the status while the relay drains.
REPORT_S = 1.0
# Interval of looking for orphans.
REAP_S = 5.0


class Configuration(NamedTuple):
    """The file of the settings, which are read at the start only.

    Args:
        path: of the file.
        changed: reads it again and returns the names of the settings that differ from those in
            force. Another thread calls it. Raises DerpError for a file that a start would refuse.
    """

    path: Path
    changed: Callable[[], list[str]]

    async def compare(self) -> str:
        """Return the settings that wait for a restart, for the log."""
        if names := await in_thread("configuration", self.changed):
            return f"{self.path}: {', '.join(names)} changed; restart the relay to apply"
        return f"{self.path}: no setting differs from those in force"


class RelayApp:
    """A relay with all its components, made of its settings.

    Raises UsageError for settings that cannot work together.
    """

    def __init__(
        self,
        settings: RelaySettings,
        lines: LogQueue | None = None,
        inherited: Inherited | None = None,
        configuration: Configuration | None = None,
    ) -> None:
        inherited = inherited or Inherited()
        self._configuration = configuration
        self._settings = settings
        self._lines = lines
        self.server: Server | None = None
        self._reloads = Reloads()
        self._watched: WatchedFiles | None = None
        self._stack = contextlib.AsyncExitStack()
        self._identity = Identity(settings.key)
        self._certificates = _certificates(settings)
        self._limits = ClientLimits(settings.limits)
        self._admission = AdmissionControl(settings.admission)
        self._mesh = MeshMembership(settings.mesh)
        bootstrap = Bootstrap(settings.bootstrap_dns)
        tls_faults = self._certificates.unready if self._certificates is not None else list
        stun = Stun(settings.stun, inherited.stun, tls_faults)
        tunnels = CaptiveTunnels() if settings.pages.ace else None
        self._listeners = Listeners(
            settings.listen, settings.pages, settings.observe, self._certificates, bootstrap,
            tunnels, stun, self.metrics, self._admission.problems, self.unready,
            inherited,
        )  # fmt: skip
        # These close after the server, which uses them until its last connection is closed.
        self._below: list[Component] = [
            self._identity,
            *([self._certificates] if self._certificates is not None else []),
            bootstrap,
            stun,
            self._limits,
            self._admission,
        ]
        # They close before the server. The mesh is last, because the relay may dial itself as a
        # member and must listen first.
        self._above: list[Component] = [
            *([tunnels] if tunnels is not None else []),
            self._listeners,
            self._mesh,
        ]

    @property
    def components(self) -> list[Component]:
        """All components, in the order in which they start."""
        return [*self._below, *self._above]

    @property
    def status(self) -> str:
        """The relay's status in one line for a service manager."""
        return self._listeners.describe()[0]

    async def start(self) -> None:
        """Open files and sockets, serve, and log the addresses.

        Raises DerpError; the caller calls `close` in any case.
        """
        if self._settings.observe.debug_logs:
            log.setLevel(logging.DEBUG)
        # Before the components read their files: a change meanwhile counts.
        followed: dict[str, Sequence[Path]] = {
            one.name: one.files for one in self.components if one.reloadable and one.files
        }
        if self._configuration is not None:
            followed["configuration"] = (self._configuration.path,)
            self._add_reload("configuration", self._configuration.compare)
        self._watched = WatchedFiles(followed, self._reloads.run_one)
        for component in self._below:
            self._stack.push_async_callback(component.close)
        for component in self.components:
            await component.open()
        self._watched.note_new()
        self.server = await self._stack.enter_async_context(self._make_server())
        for component in self._above:
            self._stack.push_async_callback(component.close)
        for component in self.components:
            await component.start(self.server)
        for component in self.components:
            if component.reloadable:
                self._add_reload(component.name, component.reload)
        self._announce()
        following = supervisor.start("watched files", self._watched.run)
        self._stack.push_async_callback(_cancel, following)

    def feed_watchdog(self, period_s: float, feed: Callable[[], None]) -> None:
        """Call `feed` while every part makes progress, several times per period; 0 for never."""
        if period_s and self.server is not None:
            watchdog = Watchdog(period_s, self.server.stuck_workers, feed)
            feeding = supervisor.start("watchdog", watchdog.run)
            self._stack.push_async_callback(_cancel, feeding)

    def reap_orphans(self) -> None:
        """Wait for the processes that this one adopts as process 1 of a container."""
        from fastderp.util.children import reap_orphans

        async def reap() -> None:
            while True:
                await asyncio.sleep(REAP_S)
                reap_orphans()

        self._stack.push_async_callback(_cancel, supervisor.start("orphans", reap))

    def _make_server(self) -> Server:
        settings = self._settings
        return Server(
            self._identity.key,
            write_timeout=settings.limits.write_timeout_s,
            workers=settings.limits.workers,
            login_memory_bytes=settings.limits.login_memory_bytes,
            queue_packets=settings.limits.queue_packets,
            mesh_key=self._mesh.keys,
            verify=self._admission.admission,
            disallowed_app_names=settings.admission.disallowed_app_names,
            rtt_stats=settings.observe.rtt_stats,
            watched_drops=settings.observe.watched_drops,
            prober_logs=settings.observe.prober_logs,
            sender_cardinality=settings.observe.sender_cardinality,
        )

    def _announce(self) -> None:
        """Log the addresses, then each component's lines, then the warnings."""
        components = [self._listeners, *(c for c in self.components if c is not self._listeners)]
        for component in components:
            for line in component.describe():
                log.info("%s", line)
        warnings = [line for component in components for line in component.warnings()]
        for line in (*self._settings.warnings, *warnings):
            log.warning("%s", line)
        self._listeners.announce()

    def unready(self) -> list[str]:
        """Return why the relay must get no new clients; nothing while it is ready."""
        found = [] if self.server is None else self.server.unready()
        return found + [reason for one in self.components for reason in one.unready()]

    async def drain(self, report: Callable[[str], None]) -> None:
        """Send the clients away over -drain-time; return early when all are gone.

        report: gets the status every second.
        """
        assert self.server is not None
        for component in self.components:
            component.drain()
        draining = asyncio.create_task(self.server.drain(self._settings.limits.drain_s))
        try:
            while not draining.done():
                report(f"draining: {self.server.n_draining} clients left")
                await asyncio.wait({draining}, timeout=REPORT_S)
            await draining
        finally:
            draining.cancel()

    async def reload(self) -> None:
        """Reload each component; one that fails or hangs does not stop the others."""
        await self._reloads.run()

    def _add_reload(self, name: str, load: Reload) -> None:
        async def reload() -> str:
            if self._watched is not None:
                await self._watched.skip(name)
            return await load()

        self._reloads.add(name, reload)

    def metrics(self) -> dict[str, Value]:
        """Return every counter of the relay, by the names of the table of metrics."""
        values = {} if self.server is None else self.server.metrics()
        for component in self.components:
            values |= component.metrics()
        values |= self._reloads.metrics()
        return values | (self._lines.metrics() if self._lines is not None else {})

    async def close(self) -> None:
        """Close the server and every component."""
        self._reloads.close()
        await self._stack.aclose()


def _certificates(settings: RelaySettings) -> ManualCertificates | CaCertificates | None:
    if settings.manual is not None:
        return ManualCertificates(settings.manual)
    return CaCertificates(settings.acme) if settings.acme is not None else None


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
