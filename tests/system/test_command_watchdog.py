"""The watchdog of a service manager is fed only while every part of the relay makes progress."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.command import RunningRelay, relay
from tests.kit.frozen import frozen, threads_in
from tests.kit.relay import eventually

PERIOD_US = 1_000_000
N_WORKERS = 2
QUIET = ("-a", "127.0.0.1:0", "-stun=false", f"-workers={N_WORKERS}")


@contextlib.contextmanager
def watched(tmp_path: Path, **env: str) -> Iterator[tuple[RunningRelay, socket.socket]]:
    """Run a relay under a service manager with a watchdog; give the manager's socket."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(20)
        settings = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": str(PERIOD_US), **env}
        with relay(*QUIET, "-c", str(tmp_path / "k"), env=settings) as running:
            assert manager.recv(4096).startswith(b"READY=1")
            yield running, manager


def waiting_workers(pid: int) -> list[int]:
    return threads_in(pid, "do_epoll_wait") or threads_in(pid, "ep_poll")


def is_fed(manager: socket.socket, within_s: float) -> bool:
    """Return whether the watchdog is fed; discard what was sent before."""
    manager.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while manager.recv(4096):
            pass
    manager.settimeout(within_s)
    try:
        return b"WATCHDOG=1" in manager.recv(4096)
    except TimeoutError:
        return False


def test_a_relay_that_works_feeds_the_watchdog(tmp_path: Path) -> None:
    with watched(tmp_path) as (_, manager):
        for _ in range(3):
            assert is_fed(manager, 20)


@pytest.mark.parametrize("part", ["worker", "loop"])
def test_a_part_that_hangs_starves_the_watchdog(tmp_path: Path, part: str) -> None:
    with watched(tmp_path) as (running, manager):
        pid = running.process.pid
        assert is_fed(manager, 20)
        with contextlib.suppress(AssertionError):
            eventually(lambda: len(waiting_workers(pid)) == N_WORKERS, 5)
        workers = waiting_workers(pid)
        if not workers:
            pytest.skip("the system does not tell where threads wait")
        try:
            with frozen(pid if part == "loop" else workers[-1]):
                # Up to two are on their way: the thread has answered the last question.
                rounds = (is_fed(manager, 3 * PERIOD_US / 1e6) for _ in range(3))
                assert not all(rounds)
        except PermissionError:
            pytest.skip("the system does not let a parent trace its child")
        assert is_fed(manager, 20), "it makes progress again"
        if part == "worker":
            assert "do not answer" in running.stop()[1]


@pytest.mark.parametrize(
    "env",
    [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}],
    ids=lambda env: "=".join(*env.items()),
)
def test_a_watchdog_that_is_not_ours_is_not_fed(tmp_path: Path, env: dict[str, str]) -> None:
    with watched(tmp_path, **env) as (_, manager):
        assert not is_fed(manager, 2 * PERIOD_US / 1e6)
