"""Log lines that remote peers can cause. RELIABILITY F27."""

from __future__ import annotations

import logging

import pytest

from fastderp.server.observe.log_throttle import LogThrottle


@pytest.fixture
def now() -> list[float]:
    """A clock that the test sets."""
    return [100.0]


@pytest.fixture
def throttle(now: list[float], caplog: pytest.LogCaptureFixture) -> LogThrottle:
    """A throttle with a window of 10 s on that clock."""
    caplog.set_level(logging.INFO, "fastderp")
    return LogThrottle(logging.getLogger("fastderp"), window_s=10, clock=lambda: now[0])


def test_the_first_of_a_kind_is_logged_at_once(
    throttle: LogThrottle, caplog: pytest.LogCaptureFixture
) -> None:
    throttle.log("box", "%s: refused", "192.0.2.1")
    throttle.log("json", "%s: also refused", "192.0.2.2")
    assert caplog.messages == ["192.0.2.1: refused", "192.0.2.2: also refused"]


def test_repetitions_are_held_back_and_their_number_comes_with_the_next_line(
    throttle: LogThrottle, now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(1000):
        throttle.log("box", "%s: refused", "192.0.2.1")
    now[0] += 9.9
    throttle.log("box", "%s: refused", "192.0.2.1")
    now[0] += 0.2
    throttle.log("box", "%s: refused", "192.0.2.3")
    now[0] += 60
    throttle.log("box", "%s: refused", "192.0.2.4")
    assert caplog.messages == [
        "192.0.2.1: refused",
        "192.0.2.3: refused (and 1000 more like it since the last such line)",
        "192.0.2.4: refused",
    ]


def test_a_kind_may_have_several_lines_per_window(
    now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastderp")
    throttle = LogThrottle(
        logging.getLogger("fastderp"), lines=2, window_s=10, clock=lambda: now[0]
    )
    for number in range(5):
        throttle.log("end", "%d", number)
    assert caplog.messages == ["0", "1"]
    now[0] += 5
    assert throttle.take_held(10) == {}
    assert throttle.take_held(5) == {"end": 3}
    assert throttle.take_held() == {}
    throttle.log("end", "5")
    now[0] += 10
    throttle.log("end", "6")
    assert caplog.messages[2:] == ["6 (and 1 more like it since the last such line)"]


def test_every_line_is_logged_while_debugging(
    throttle: LogThrottle, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "fastderp")
    for _ in range(3):
        throttle.log("box", "refused")
    assert caplog.messages == ["refused"] * 3
