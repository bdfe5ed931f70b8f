"""The notices to clients that share a key, and their cost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import pytest

from fastderp.server.accept.duplicate_keys import LOOKED_AT, SHARED_S, Duplicates

KEY = bytes(32)


class Sessions:
    """The sessions of one key in the place of the data plane's, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.handles: list[int] = []
        self.told: list[tuple[int, bool]] = []
        self.duplicates = Duplicates(self._some, self._tell)
        self._due: dict[Timer, tuple[float, Callable[[], object]]] = {}
        self._now_s = 0.0
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: self)

    def call_later(self, delay_s: float, act: Callable[[bytes], object], key: bytes) -> Timer:
        """Take the place of the loop's."""
        timer = Timer(self._due)
        self._due[timer] = (self._now_s + delay_s, partial(act, key))
        return timer

    @property
    def n_timers(self) -> int:
        return len(self._due)

    def wait(self, seconds: float) -> None:
        self._now_s += seconds
        for timer, (due_s, act) in list(self._due.items()):
            if due_s <= self._now_s:
                del self._due[timer]
                act()

    def join(self, handle: int) -> None:
        self.handles.append(handle)
        self.duplicates.joined(KEY, handle)

    def leave(self, handle: int) -> None:
        self.handles.remove(handle)
        self.duplicates.left(KEY, handle)

    def take_told(self) -> list[tuple[int, bool]]:
        told, self.told = sorted(self.told), []
        return told

    def _some(self, key: bytes, n_most: int) -> list[int]:
        assert 0 < n_most <= LOOKED_AT, "the cost of a login grows with the number of sessions"
        return self.handles[:n_most]

    def _tell(self, handle: int, is_duplicate: bool) -> bool:
        self.told.append((handle, is_duplicate))
        return True


class Timer:
    """A timer of the loop."""

    def __init__(self, due: dict[Timer, tuple[float, Callable[[], object]]]) -> None:
        self._due = due

    def cancel(self) -> None:
        self._due.pop(self, None)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Sessions:
    return Sessions(monkeypatch)


def test_each_of_many_clients_with_one_key_is_warned_once_and_the_last_gets_the_all_clear(
    sessions: Sessions,
) -> None:
    early, late = range(1, 51), range(51, 101)
    for handle in early:
        sessions.join(handle)
    assert sessions.n_timers == 1
    sessions.wait(SHARED_S)
    assert sessions.take_told() == [(handle, True) for handle in early]
    for handle in late:
        sessions.join(handle)
    assert sessions.take_told() == [(handle, True) for handle in late]
    many = [*early, *late]
    for handle in many[:-1]:
        assert sessions.take_told() == []
        sessions.leave(handle)
    assert sessions.take_told() == [(100, False)]
    sessions.join(101)
    sessions.wait(SHARED_S)
    assert sessions.take_told() == [(100, True), (101, True)]


def test_a_client_that_changes_its_network_again_and_again_is_not_warned(
    sessions: Sessions,
) -> None:
    sessions.join(0)
    for handle in range(1, 10):
        sessions.join(handle)
        sessions.wait(SHARED_S - 10)
        sessions.leave(handle - 1)
        assert sessions.n_timers == 0
        sessions.wait(20)
    assert sessions.take_told() == []


def test_after_the_end_of_the_relay_no_client_is_warned(sessions: Sessions) -> None:
    sessions.join(1)
    sessions.join(2)
    sessions.duplicates.close()
    sessions.wait(SHARED_S)
    assert sessions.take_told() == [] and sessions.n_timers == 0
