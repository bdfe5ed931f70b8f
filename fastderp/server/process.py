"""The process of a relay: its start, signals, end, and what the service manager is told of them.

Loop thread only.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from fastderp.server.app import Configuration, RelayApp
from fastderp.server.net.activation import inherited_sockets
from fastderp.server.observe.log_queue import LogQueue
from fastderp.server.observe.supervisor import supervisor
from fastderp.server.settings import RelaySettings
from fastderp.util.service_manager import ServiceManager, watchdog_period_s

log: logging.Logger = logging.getLogger("fastderp")

# Linux applies niceness per thread. With a higher value, other programs would starve logins.
CONTROL_NICENESS = 10
# The restart notice at SIGTERM without a drain: clients reconnect within the first time, spread
# evenly, and choose another relay after the second ("no more than a few seconds" in the reference).
RECONNECT_SPREAD_S = 2.0
TRY_FOR_S = 5.0
# Seconds for an orderly end after the drain.
CLOSE_S = 20.0


class Hangups:
    """Reloads the relay at SIGHUP.

    A hangup during a reload loads each part once more, because its files may have changed since
    they were read. The service manager is notified of each hangup, and of the end of the last
    reload.
    """

    def __init__(self, app: RelayApp, manager: ServiceManager) -> None:
        self._app = app
        self._manager = manager
        self._reloads: set[asyncio.Task[None]] = set()

    def add(self) -> None:
        """Note a hangup."""
        self._manager.reloading()
        reload = supervisor.start("reload", self._app.reload)
        self._reloads.add(reload)
        reload.add_done_callback(self._note_end)

    def close(self) -> None:
        """Abandon the reloads, without a notice."""
        reloads, self._reloads = self._reloads, set()
        for reload in reloads:
            reload.cancel()

    def _note_end(self, reload: asyncio.Task[None]) -> None:
        if reload in self._reloads:
            self._reloads.discard(reload)
            if not self._reloads:
                self._manager.ready(self._app.status)


class Signals(Protocol):
    """The source of the process's signals; `cli.signals.Signals` is one."""

    def attach(
        self, end: Callable[[int], None], reload: Callable[[], None], drain_s: float
    ) -> None:
        """Call `end` on the running loop at SIGTERM and SIGINT, `reload` at SIGHUP.

        `end` is called again with the signal that ends a drain of up to `drain_s` seconds.
        """

    def close(self) -> None:
        """Note that the relay closes: the next signal kills it."""

    def detach(self) -> None:
        """Stop calling either."""


async def serve(
    settings: RelaySettings,
    signals: Signals,
    lines: LogQueue,
    configuration: Configuration | None = None,
) -> None:
    """Start the relay, log "ready", and run until SIGTERM or SIGINT.

    SIGTERM sends the clients away before the end (PROTOCOL §6.11).

    Raises DerpError, before anything is served, for an unusable key, certificate or address.
    """
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(supervisor.note_loop_error)
    stopping, ending = loop.create_future(), loop.create_future()
    inherited = inherited_sockets(os.environ, settings.listen.http_port)
    app = RelayApp(settings, lines, inherited, configuration)
    manager = ServiceManager(os.environ.get("NOTIFY_SOCKET", ""))
    drain_s = settings.limits.drain_s
    hangups = Hangups(app, manager)
    is_started = reload_wanted = False

    def reload() -> None:
        nonlocal reload_wanted
        if is_started:
            hangups.add()
        elif not stopping.done():
            reload_wanted = True
            log.info("SIGHUP: the files are read again after the start")

    def end(number: int) -> None:
        if not stopping.done():
            stopping.set_result(number)
        elif not ending.done():
            ending.set_result(number)

    signals.attach(end, reload, drain_s)
    try:
        is_started = await _unless(stopping, app.start())
        if is_started:
            _let_packets_go_first()
            # The objects of the start stay; each full collection would examine all of them.
            gc.freeze()
            log.info("ready", extra={"fields": {"event": "ready"}})
            manager.ready(app.status)
            app.feed_watchdog(watchdog_period_s(os.environ), manager.alive)
            if os.getpid() == 1:
                app.reap_orphans()
            if reload_wanted:
                reload()
        number = await stopping
        hangups.close()
        if is_started and number == signal.SIGTERM and drain_s:
            log.info("draining for up to %g s; SIGTERM or SIGINT ends it", drain_s)
            manager.stopping("draining", drain_s + CLOSE_S)
            await _unless(ending, app.drain(manager.status))
        signals.close()
        log.info("stopping", extra={"fields": {"event": "stopping"}})
        manager.stopping("stopping", CLOSE_S)
        if is_started and app.server is not None and number == signal.SIGTERM and not drain_s:
            app.server.announce_restart(0.0, TRY_FOR_S, spread_s=RECONNECT_SPREAD_S)
    finally:
        await app.close()
        signals.detach()


async def _unless(stopping: asyncio.Future[Any], work: Coroutine[None, None, None]) -> bool:
    """Do the work and return True; cancel it and return False when `stopping` is done first.

    Raises what the work raises.
    """
    working = asyncio.create_task(work)
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        await working
        return True
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    return False


def _let_packets_go_first() -> None:
    """Lower the priority of this thread and its future helpers below the data plane's threads.

    A storm of logins then uses the CPU time that packets leave, but at least a tenth of its usual
    share.
    """
    with contextlib.suppress(OSError):
        os.nice(CONTROL_NICENESS)
