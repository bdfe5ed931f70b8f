"""Makes a file for -config: every key with its help, its type and its default, in comments.

A line that begins with `# ` is text, one that begins with `#` and a name is a setting.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

from fastderp.cli.flags import Flag, boolean, duration, integer, number, size

COLUMNS = 80
_TYPES: dict[Callable[[str], object], str] = {
    boolean: "true or false",
    duration: "time",
    integer: "whole number",
    number: "number",
    size: "size",
    str: "string",
}

INTRODUCTION = (
    "Settings of fastderp-relay, for -config. Every key is a flag of the same name: a flag, or a "
    "variable such as FASTDERP_STUN_PORT for stun-port, takes precedence over this file. Remove "
    "the # before a key to change its value from the default. `fastderp-relay check -config FILE` "
    "checks the file.",
)


def sample(flags: Iterable[Flag]) -> str:
    """Return the text of the file for a table of flags."""
    settable = [flag for flag in flags if flag.section]
    return "\n".join(_lines(settable)) + "\n"


def _lines(flags: Iterable[Flag]) -> Iterator[str]:
    for paragraph in INTRODUCTION:
        yield from _comment(paragraph)
    for section, members in groupby(flags, key=lambda flag: flag.section):
        yield from ("", f"[{section}]")
        for flag in members:
            yield ""
            yield from _comment(f"{flag.help[0].upper()}{flag.help[1:]}.")
            yield from _comment(f"Type: {_type(flag)}. Default: {_value(flag)}")
            yield f"#{flag.name} = {_value(flag)}"


def _comment(text: str) -> Iterator[str]:
    wrapped = textwrap.wrap(text, COLUMNS - 2, break_long_words=False, break_on_hyphens=False)
    return (f"# {line}" for line in wrapped)


def _type(flag: Flag) -> str:
    """Return what the key takes, with the bounds of a number."""
    if flag.choices:
        return f"one of {', '.join(map(json.dumps, flag.choices))}"
    if flag.is_list:
        return "list of strings"
    name = _TYPES[flag.read]
    return f"{name}, {flag.bounds}" if flag.bounds else name


def _value(flag: Flag) -> str:
    """Return the default in TOML."""
    if flag.is_list:
        return json.dumps([item for item in flag.default.split(",") if item], ensure_ascii=False)
    if flag.read in (integer, number) or flag.is_boolean:
        return flag.default.lower()
    # A JSON string is a TOML string, but for characters above U+FFFF as escapes.
    return json.dumps(flag.default, ensure_ascii=False)
