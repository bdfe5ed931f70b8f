"""The help of `fastderp-relay` on terminals of several kinds, and in a pipe."""

from __future__ import annotations

import io
import os
import re
import shutil

import pytest

from fastderp.cli import usage
from fastderp.cli.flag_table import flag_table

BOLD = re.compile(r"\x1b\[\d*m")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    size = os.terminal_size((request.param, 24))
    monkeypatch.setattr(shutil, "get_terminal_size", lambda _default: size)
    return int(request.param)


def help_on(file: io.StringIO) -> str:
    usage.print_usage(flag_table({}), file)
    return file.getvalue()


@pytest.mark.parametrize("columns", [72, 80, 100], indirect=True)
def test_no_sentence_is_wider_than_the_terminal(columns: int) -> None:
    lines = BOLD.sub("", help_on(Terminal())).splitlines()
    commands = {f"  {command}" for command, _ in usage.EXAMPLES}  # copied as they are
    assert [line for line in lines if len(line) > columns and line not in commands] == []


@pytest.mark.parametrize("columns", range(60, 101, 4), indirect=True)
def test_no_name_of_a_flag_is_broken(columns: int) -> None:
    shown = help_on(Terminal())
    assert [line for line in shown.splitlines() if line.endswith("-")] == []


def test_names_are_bold_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert BOLD.search(help_on(Terminal()))
    assert not BOLD.search(help_on(io.StringIO()))


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_without_colours_gets_plain_text(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert not BOLD.search(help_on(Terminal()))
