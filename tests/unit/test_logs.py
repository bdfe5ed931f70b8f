"""Log lines anyone can cause."""

from __future__ import annotations

import logging

import pytest

from fastderp.server.logs import Summariser


@pytest.fixture
def now() -> list[float]:
    """A clock that the test sets."""
    return [100.0]


@pytest.fixture
def summary(now: list[float], caplog: pytest.LogCaptureFixture) -> Summariser:
    """A summariser with a window of 10 s on that clock."""
    caplog.set_level(logging.INFO, "fastderp")
    return Summariser(logging.getLogger("fastderp"), window_s=10, clock=lambda: now[0])


def test_the_first_of_a_kind_is_logged_at_once(summary: Summariser, caplog: pytest.LogCaptureFixture) -> None:
    summary.say("box", "%s: refused", "192.0.2.1")
    summary.say("json", "%s: also refused", "192.0.2.2")
    assert caplog.messages == ["192.0.2.1: refused", "192.0.2.2: also refused"]


def test_repetitions_are_held_back_and_their_number_comes_with_the_next_line(
    summary: Summariser, now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(1000):
        summary.say("box", "%s: refused", "192.0.2.1")
    now[0] += 9.9
    summary.say("box", "%s: refused", "192.0.2.1")
    now[0] += 0.2
    summary.say("box", "%s: refused", "192.0.2.3")
    now[0] += 60
    summary.say("box", "%s: refused", "192.0.2.4")
    assert caplog.messages == [
        "192.0.2.1: refused",
        "192.0.2.3: refused (and 1000 more like it since the last such line)",
        "192.0.2.4: refused",
    ]
