"""Log lines that remote peers can cause. RELIABILITY F27."""

from __future__ import annotations

import logging
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastderp
from fastderp.server.observe.log_throttle import LINE_LIMIT_CHARACTERS, LogThrottle, one_line


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


@pytest.mark.parametrize(
    ("said", "logged"),
    [
        ("one\ntwo\r\n", r"one\ntwo\r\n"),
        ("\x1b[2Jgone\x07\x7f\x9b", r"\x1b[2Jgone\x07\x7f\x9b"),
        ("line\u2028paragraph\u2029 \u202eturned", r"line\u2028paragraph\u2029 \u202eturned"),
        ("half \ud83d a character", r"half \ud83d a character"),
        ("name für naïve 日本語 …", "name für naïve 日本語 …"),
    ],
)
def test_text_of_peers_cannot_forge_a_line_or_control_a_terminal(
    said: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("fastderp").warning("%s: refused: %s", "192.0.2.1", said)
    assert caplog.messages == [f"192.0.2.1: refused: {logged}"]


def loggers_of_the_package() -> set[str]:
    """Return the name of every logger that a module of the package makes."""
    root = Path(fastderp.__file__).parent
    made = re.compile(r'getLogger\("(fastderp[\w.]*)"\)')
    return {name for path in root.rglob("*.py") for name in made.findall(path.read_text())}


def test_no_logger_of_the_package_writes_more_than_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = loggers_of_the_package()
    assert "fastderp.stun" in names
    for name in names:
        logging.getLogger(name).error("one\ntwo")
    assert set(caplog.messages) == {r"one\ntwo"}


@given(st.text(st.characters(), max_size=3000))
def test_any_text_becomes_one_printable_line_of_bounded_length(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    assert not any(
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in line
    )
    assert len(line) <= 10 * (LINE_LIMIT_CHARACTERS + 1)
    line.encode()
