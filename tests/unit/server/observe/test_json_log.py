"""Lines of `-log-format json`. RELIABILITY F27."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastderp.server.observe.json_log import JsonFormatter
from fastderp.server.observe.log_throttle import LogThrottle
from fastderp.util.log_lines import LINE_LIMIT_CHARACTERS

TEXT = st.text(st.characters(), max_size=3000)


def line_of(message: str, fields: dict[str, object], level: int = logging.INFO) -> str:
    record = logging.LogRecord("fastderp", level, "", 0, message, None, None)
    record.fields = fields
    return JsonFormatter().format(record)


@given(TEXT, TEXT)
def test_any_text_becomes_one_printable_line_in_ascii(message: str, value: str) -> None:
    line = line_of(message, {"event": "refused", "detail": value})
    assert line.isascii() and line.isprintable()
    read = json.loads(line)
    assert read["message"] == message or any("\ud800" <= one <= "\udfff" for one in message)
    assert len(read.get("detail", "")) <= 10 * (LINE_LIMIT_CHARACTERS + 1)


def test_the_time_is_in_utc_with_milliseconds() -> None:
    record = logging.LogRecord("fastderp", logging.INFO, "", 0, "ready", None, None)
    formatter = JsonFormatter()
    for created_s, msecs, text in (
        (0.0, 0.0, "1970-01-01T00:00:00.000Z"),
        (1796067612.9999, 999.9, "2026-11-30T19:40:12.999Z"),
        (1796067613.0, 0.0, "2026-11-30T19:40:13.000Z"),
    ):
        record.created, record.msecs = created_s, msecs
        assert json.loads(formatter.format(record))["time"] == text


def test_members_without_a_value_are_left_out() -> None:
    read = json.loads(line_of("closed", {"event": "closed", "app": "", "more": None, "dropped": 0}))
    assert list(read) == ["time", "level", "message", "event", "dropped"]


@pytest.mark.parametrize(
    ("level", "name"),
    [(logging.DEBUG, "debug"), (logging.INFO, "info"), (logging.WARNING, "warning"),
     (logging.ERROR, "error")],
)  # fmt: skip
def test_the_level_is_a_word(level: int, name: str) -> None:
    assert json.loads(line_of("text", {}, level))["level"] == name


def test_an_exception_is_one_member() -> None:
    try:
        raise ValueError("one\ntwo")
    except ValueError:
        record = logging.LogRecord("fastderp", logging.ERROR, "", 0, "error", None, sys.exc_info())
    read = json.loads(JsonFormatter().format(record))
    assert read["message"] == "error"
    assert read["traceback"].startswith("Traceback (most recent call last):\n")
    assert read["traceback"].endswith("\nValueError: one\ntwo")


def test_the_number_of_lines_held_back_is_a_member_of_the_next() -> None:
    now = [100.0]
    lines: list[dict[str, Any]] = []

    class Reader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(self.format(record)))

    log = logging.Logger("test", logging.INFO)
    reader = Reader()
    reader.setFormatter(JsonFormatter())
    log.addHandler(reader)
    throttle = LogThrottle(log, window_s=10, clock=lambda: now[0])
    for _ in range(4):
        throttle.log("box", "%s: refused", "192.0.2.1", event="refused", address="192.0.2.1")
    now[0] += 10
    throttle.log("box", "%s: refused", "192.0.2.2", event="refused", address="192.0.2.2")
    assert [(line["address"], line.get("more")) for line in lines] == [
        ("192.0.2.1", None), ("192.0.2.2", 3),
    ]  # fmt: skip
    assert lines[1]["message"].endswith("(and 3 more like it since the last such line)")
