"""Makes the manual pages of the commands, in roff, from their tables of flags and their help."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from itertools import groupby

import fastderp
from fastderp.cli.flags import Flag
from fastderp.cli.usage import EXAMPLES, EXIT_CODES, INTRODUCTION, explanation, spelling

GUIDE = "https://github.com/fastderp/fastderp/blob/main/docs"
# Columns of a help text on a page, which is indented in a terminal of 80.
HELP_COLUMNS = "72"

SIGNALS = (
    ("SIGTERM", "drains the relay, then ends it; a second one ends the drain"),
    ("SIGINT", "ends the relay without a drain"),
    ("SIGHUP", "reads files again: configuration, certificates, keys, lists"),
)

# Characters that roff would replace, or take for a request or an escape.
_GLYPHS = {
    "\\": r"\e",
    "-": r"\-",
    "'": r"\(aq",
    "`": r"\(ga",
    "~": r"\(ti",
    "^": r"\(ha",
}


def manual(command: str, flags: Iterable[Flag]) -> str:
    """Return the page of `relay` or of `bench`; `flags` is the relay's table."""
    lines = _bench() if command == "bench" else _relay(flags)
    return "\n".join(lines) + "\n"


def _relay(flags: Iterable[Flag]) -> Iterator[str]:
    from fastderp.cli.command import SUBCOMMANDS

    yield from _title("fastderp-relay", "a DERP relay for tailscale networks")
    yield ".SH SYNOPSIS"
    for arguments in ("[FLAGS]", "check [FLAGS]", "probe [FLAGS] URL", "top [FLAGS] [URL]"):
        yield from (f"\\fBfastderp\\-relay\\fR {_text(arguments)}", ".br")
    yield r"\fBfastderp\-relay\fR gen NAME [VARIANT]"
    yield ".SH DESCRIPTION"
    for sentence in INTRODUCTION:
        yield from (_text(sentence), ".PP")
    yield ".SH OPTIONS"
    shown = [flag for flag in flags if flag.group]
    for group, members in groupby(shown, key=lambda flag: flag.group):
        yield f".SS {_text(group)}"
        yield from _pairs((spelling(flag), explanation(flag)) for flag in members)
    for name in SUBCOMMANDS:
        yield f".SH {_text(name.upper())}"
        yield from _help(import_module(f"fastderp.cli.{name}").help_text)
    yield ".SH SIGNALS"
    yield from _pairs(SIGNALS)
    yield ".SH EXAMPLES"
    yield from _pairs(EXAMPLES)
    yield ".SH EXIT STATUS"
    yield from _pairs((str(code), meaning) for code, meaning in EXIT_CODES)
    yield from _see_also("fastderp-bench", "operations.md")


def _bench() -> Iterator[str]:
    yield from _title("fastderp-bench", "load on DERP relays")
    yield ".SH SYNOPSIS"
    yield r"\fBfastderp\-bench\fR [OPTIONS] [URL]"
    yield ".SH DESCRIPTION"
    yield from _help(import_module("fastderp.cli.bench").help_text)
    yield from _see_also("fastderp-relay", "benchmarks.md")


def _title(name: str, summary: str) -> Iterator[str]:
    yield f'.TH {_text(name.upper())} 1 "" "fastderp {_text(fastderp.__version__)}"'
    yield ".SH NAME"
    yield f"{_text(name)} \\- {_text(summary)}"


def _see_also(command: str, document: str) -> Iterator[str]:
    yield from (".SH SEE ALSO", f"\\fB{_text(command)}\\fR(1), {_text(f'{GUIDE}/{document}')}")


def _pairs(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield each name in bold, and its explanation below it."""
    for name, explained in rows:
        yield from (".TP", rf"\fB{_text(name)}\fR", _text(explained))


def _help(help_text: Callable[[], str]) -> Iterator[str]:
    """Yield the help of a command as it prints it; argparse asks $COLUMNS."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = HELP_COLUMNS
    try:
        text = help_text()
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    yield from (".nf", *(_escaped(line) for line in text.rstrip().splitlines()), ".fi")


def _text(prose: str) -> str:
    """Return a line of text; what is between backquotes becomes bold."""
    parts = re.split(r"`([^`]+)`", prose)
    bold = [rf"\fB{_glyphs(part)}\fR" if n % 2 else _glyphs(part) for n, part in enumerate(parts)]
    return _guarded("".join(bold))


def _escaped(line: str) -> str:
    return _guarded(_glyphs(line))


def _guarded(line: str) -> str:
    """Keep a line that begins with a dot from being a request."""
    return rf"\&{line}" if line.startswith(".") else line


def _glyphs(text: str) -> str:
    return "".join(
        _GLYPHS.get(character)
        or (character if character.isascii() else rf"\[u{ord(character):04X}]")
        for character in text
    )
