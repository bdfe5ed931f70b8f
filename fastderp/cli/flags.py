"""Parses flags as Go programs do: `-flag value` or `--flag=value` (PROTOCOL §12).

Takes a table of `Flag` rows, returns a dictionary of values. Errors are one line that names the
flag.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from fastderp.errors import UsageError
from fastderp.util.bounds import Bounds
from fastderp.util.text import nearest, printable

_TRUE = {"1", "t", "T", "true", "TRUE", "True"}
_FALSE = {"0", "f", "F", "false", "FALSE", "False"}
_UNIT_S = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_SIZE = re.compile(r"(\d{1,9})(MiB|GiB)", re.ASCII)
_FLAG = re.compile(r"--?([^-=][^=]*)(?:=(.*))?", re.DOTALL)


def boolean(text: str) -> bool:
    """Read a Go boolean: 1, t, true and their opposites. Raises ValueError."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("want true or false")


def integer(text: str) -> int:
    """Read an integer, decimal or 0x…. Raises ValueError."""
    try:
        return int(text if text.isascii() else "", 0)
    except ValueError:
        raise ValueError("want a whole number") from None


def number(text: str) -> float:
    """Read a decimal number or +Inf. Raises ValueError."""
    try:
        return float(text if text.isascii() else "")
    except ValueError:
        raise ValueError("want a number") from None


def duration(text: str) -> float:
    """Read a Go duration (`10m`, `1h30m`, `500ms`, `0`) as seconds. Raises ValueError."""
    sign, digits = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if digits == "0":
        return 0.0
    parts = _DURATION_PART.findall(digits)
    if not parts or "".join(count + unit for count, unit in parts) != digits:
        raise ValueError("want a duration such as 500ms, 2s, 10m or 1h30m")
    return sign * sum(float(count) * _UNIT_S[unit] for count, unit in parts)


def size(text: str) -> int:
    """Read a size (`64MiB`, `1GiB`) as bytes. Raises ValueError."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError("want a size such as 64MiB or 1GiB")
    return int(found[1]) << (20 if found[2] == "MiB" else 30)


class Flag(NamedTuple):
    """One flag: its name, the reader of its text, and its default.

    `default` has the form of the command line.
    """

    name: str
    read: Callable[[str], Any]
    default: str
    help: str
    metavar: str = ""
    group: str = ""
    bounds: Bounds | None = None
    is_list: bool = False  # comma-separated
    section: str = ""  # section of a configuration file; "": on the command line only
    choices: tuple[str, ...] = ()  # the only values, if they are words

    @property
    def wanted(self) -> str:
        """The type that a configuration file must use for the flag."""
        if self.is_boolean:
            return "true or false"
        if self.read is str:
            return "a string or a list of strings" if self.is_list else "a string"
        return f'a number, or a string such as "{self.default}"'

    @property
    def is_boolean(self) -> bool:
        """Whether the flag may have no value; a value then needs `=`."""
        return self.read is boolean

    def value(self, text: str) -> Any:
        """Read the flag's text.

        Raises UsageError that names the flag for invalid text or a number out of bounds.
        """
        try:
            value = self.read(text)
            if self.bounds is not None:
                self.bounds.check(value)
            return value
        except ValueError as error:
            raise UsageError(
                f'invalid value "{printable(text)}" for -{self.name}: {error}'
            ) from None


def parse(flags: Iterable[Flag], arguments: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
    """Read command-line arguments by a table of flags.

    Returns the value of every flag, and the names of those that were given. The last value of a
    repeated flag counts. Raises UsageError for an argument that is not in the table.
    """
    table = {flag.name: flag for flag in flags}
    values = {name: flag.read(flag.default) for name, flag in table.items()}
    given: set[str] = set()
    remaining = list(arguments)
    previous: Flag | None = None
    while remaining:
        argument = remaining.pop(0)
        if argument == "--" and not remaining:
            break
        flag, text = _recognise(table, argument, previous)
        if text is None:
            if flag.is_boolean:
                text = "true"
            elif remaining:
                text = remaining.pop(0)
            else:
                raise UsageError(
                    f"-{flag.name} needs a value: -{flag.name} {flag.metavar or 'VALUE'}"
                )
        values[flag.name] = flag.value(text)
        given.add(flag.name)
        previous = flag
    return values, given


def _recognise(
    table: dict[str, Flag], argument: str, previous: Flag | None
) -> tuple[Flag, str | None]:
    match = _FLAG.fullmatch(argument)
    if match is None:
        if previous is not None and previous.is_boolean and argument in _TRUE | _FALSE:
            raise UsageError(
                f"-{previous.name} takes its value with an equals sign: -{previous.name}={argument}"
            )
        remedy = f"; did you mean -{argument}?" if argument in table else ""
        raise UsageError(f'unexpected argument "{printable(argument)}"{remedy}')
    name, text = match.groups()
    if name not in table:
        raise UsageError(f"unknown flag -{printable(name)}{_suggestion(name, table)}")
    return table[name], text


def _suggestion(name: str, table: dict[str, Flag]) -> str:
    meant = nearest(name.lower().replace("_", "-"), table)
    return f"; did you mean -{meant}?" if meant else "; -help lists them all"
