"""The log's queue: bounded, counted, independent of its reader."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from fastderp.server.observe.log_queue import LogQueue
from fastderp.util.log_lines import logger
from tests.kit.relay import PATIENCE_S, eventually


@contextmanager
def queue(descriptor: int, limit_bytes: int = 1 << 20) -> Iterator[tuple[LogQueue, logging.Logger]]:
    lines = LogQueue(descriptor, limit_bytes=limit_bytes)
    log = logging.Logger("test")
    log.addHandler(lines)
    try:
        yield lines, log
    finally:
        lines.close()


def n_lost(lines: LogQueue) -> object:
    return lines.metrics()["fastderp_log_lines_lost_total"]


def n_reported(said: bytes) -> int:
    """Return the sum of the reports of lost lines."""
    return sum(map(int, re.findall(rb" (\d+) log lines were lost: standard error", said)))


def test_lines_arrive_in_order_with_their_time() -> None:
    reading, writing = os.pipe()
    with queue(writing) as (_, log):
        for number in range(100):
            log.info("line %d", number)
    os.close(writing)
    with open(reading) as file:
        said = file.read().splitlines()
    assert [line[20:] for line in said] == [f"line {number}" for number in range(100)]


def test_lines_without_room_are_counted_and_reported_when_the_reader_continues() -> None:
    reading, writing = os.pipe()
    with queue(writing, limit_bytes=100_000) as (lines, log):
        for _ in range(3000):
            log.info("x" * 100)  # three times the capacity of pipe and queue
        lost = n_lost(lines)
        assert isinstance(lost, int) and lost > 0
        said = b""
        while n_reported(said) < lost:
            said += os.read(reading, 1 << 16)
        assert n_reported(said) == lost
    assert said.count(b"x\n") + lost <= 3000
    os.close(writing)
    os.close(reading)


def test_a_reader_that_has_left_loses_each_line() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with queue(writing) as (lines, log):
        for _ in range(3):
            log.info("unheard")
        eventually(lambda: n_lost(lines) == 3)
    os.close(writing)


def test_closing_does_not_wait_for_a_reader_that_stalls() -> None:
    reading, writing = os.pipe()
    with queue(writing) as (lines, log):
        for _ in range(3000):
            log.info("x" * 100)
        lines.close()
        log.info("too late")
        assert n_lost(lines) == 1
    os.close(reading)
    # Its thread goes on: it must not write to the next file with this number.
    lines._thread.join(PATIENCE_S)
    os.close(writing)


def test_a_descriptor_made_non_blocking_by_another_process_loses_nothing() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with queue(writing) as (lines, log):
        for _ in range(2000):
            log.info("x" * 100)
        said = b""
        while said.count(b"\n") < 2000:
            said += os.read(reading, 1 << 16)
        assert n_lost(lines) == 0
    os.close(writing)
    os.close(reading)


def test_lines_of_every_logger_are_escaped_once() -> None:
    reading, writing = os.pipe()
    with queue(writing) as (lines, foreign):
        ours = logger("fastderp")
        ours.addHandler(lines)
        try:
            for log in (ours, foreign):
                log.error("%s", "\n" * 600)
                try:
                    raise ValueError("one\n2026-11-30 12:00:00 forged")
                except ValueError:
                    log.exception("an error")
        finally:
            ours.removeHandler(lines)
    os.close(writing)
    with open(reading) as file:
        said = [line[20:] if line[0] == "2" else line for line in file.read().splitlines()]
    half = len(said) // 2
    # The line is cut before it is escaped.
    assert said[0] == said[half] == r"\n" * 600
    assert said[1] == said[half + 1] == "an error"
    assert said[half - 1] == said[-1] == "  2026-11-30 12:00:00 forged"
