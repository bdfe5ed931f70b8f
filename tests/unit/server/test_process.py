"""SIGHUP: reloads follow each other, and the service manager is notified when none is left."""

from __future__ import annotations

import asyncio
import gc
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastderp.server.app import Configuration
from fastderp.server.observe.log_queue import LogQueue
from fastderp.server.process import serve
from tests.unit.server.test_app import SETTINGS

PATIENCE_S = 20.0


class OwnSignals:
    """Signals that the test sends by a call."""

    def __init__(self) -> None:
        self.attached = asyncio.Event()

    def attach(
        self, end: Callable[[int], None], reload: Callable[[], None], drain_s: float
    ) -> None:
        self.end, self.hang_up = end, reload
        self.attached.set()

    def close(self) -> None:
        pass

    def detach(self) -> None:
        pass


class SlowConfiguration:
    """A configuration whose comparisons wait for the test."""

    def __init__(self) -> None:
        self.n_begun = self.n_running = self.n_most = 0
        self._go_on: queue.Queue[None] = queue.Queue()
        self._lock = threading.Lock()

    def changed(self) -> list[str]:
        with self._lock:
            self.n_begun += 1
            self.n_running += 1
            self.n_most = max(self.n_most, self.n_running)
        self._go_on.get(timeout=PATIENCE_S)
        with self._lock:
            self.n_running -= 1
        return []

    def go_on(self) -> None:
        self._go_on.put(None)


class Manager:
    """The socket of a service manager."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self._sock.setblocking(False)

    def close(self) -> None:
        self._sock.close()

    async def notice(self) -> str:
        """Return the next notice, without its details."""
        return (
            (await asyncio.get_running_loop().sock_recv(self._sock, 4096)).decode().split("\n")[0]
        )

    def is_quiet(self) -> bool:
        try:
            self._sock.recv(4096, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    path = tmp_path / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    # They would change the process of the tests.
    monkeypatch.setattr(os, "nice", lambda _: 0)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    manager = Manager(path)
    yield manager
    manager.close()


async def begun(configuration: SlowConfiguration, n: int) -> None:
    while configuration.n_begun < n:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("n_hangups", [1, 3])
async def test_hangups_during_a_reload_cause_one_more_and_readiness_follows_the_last(
    tmp_path: Path, manager: Manager, lines: LogQueue, n_hangups: int
) -> None:
    signals, slow = OwnSignals(), SlowConfiguration()
    configuration = Configuration(tmp_path / "relay.toml", slow.changed)
    async with asyncio.timeout(PATIENCE_S):
        serving = asyncio.create_task(serve(SETTINGS, signals, lines, configuration))
        try:
            assert await manager.notice() == "READY=1"
            signals.hang_up()
            assert await manager.notice() == "RELOADING=1"
            await begun(slow, 1)
            for _ in range(n_hangups):
                signals.hang_up()
                assert await manager.notice() == "RELOADING=1", "each hangup is answered"
            slow.go_on()
            await begun(slow, 2)
            assert manager.is_quiet(), "a reload still runs"
            slow.go_on()
            assert await manager.notice() == "READY=1"
            assert (slow.n_begun, slow.n_most) == (2, 1)
        finally:
            for _ in range(5):
                slow.go_on()
            signals.end(signal.SIGINT)
            await serving
        assert await manager.notice() == "STOPPING=1"
        assert manager.is_quiet()
