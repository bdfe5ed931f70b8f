"""Texts of Unix times are in UTC, whatever the time zone of the machine."""

import time

import pytest

from fastderp.util import utc


def test_times_are_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert utc.day(86399) == "1970-01-01"
        assert utc.minute(1796053200.5) == "2026-11-30 15:40 UTC"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_last_time_of_a_certificate_has_a_text() -> None:
    assert utc.minute(253402300799) == "9999-12-31 23:59 UTC"
