"""Prints the help of `fastderp-relay`: the flags by group, examples, exit codes."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TextIO

from fastderp.cli.flags import Flag

# Columns of the text in a file or a pipe, and the widest in a terminal.
WIDTH = 100
INDENT = "  "
# The explanations are in a column of their own; a longer name than its place has a line of its own.
NAME_COLUMNS = 26

INTRODUCTION = (
    "fastderp-relay relays the packets of tailscale nodes that cannot reach each other.",
    "Flags are derper's: one dash or two, -flag value or -flag=value. Each is also a variable, "
    "such as FASTDERP_STUN_PORT for -stun-port, and a key of the file of -config.",
    "fastderp-relay check [FLAGS] prints every setting with its origin, and checks the files.",
    "fastderp-relay probe URL checks a relay from outside; `fastderp-relay probe -help` has its flags.",
    "fastderp-relay gen NAME prints a systemd unit, a shell's completion, a file for -config, a "
    "Grafana dashboard or a manual page; `fastderp-relay gen -help` has the names.",
    "fastderp-relay top [URL] shows a running relay: its traffic, logins, drops, clients.",
)

EXAMPLES = (
    ("fastderp-relay -dev", "a trial: plain HTTP on :3340 with a key in memory"),
    (
        "fastderp-relay -c relay.key -certdir certs -hostname derp.example.com",
        "HTTPS on :443; the first client triggers an order for a certificate from Let's Encrypt",
    ),
    (
        "fastderp-relay -c relay.key -certmode manual -certdir certs -hostname 203.0.113.7",
        "HTTPS on :443 with a self-signed certificate; prints the node for your DERP map",
    ),
)

EXIT_CODES = (
    (0, "ended by SIGTERM or SIGINT; a second signal kills the process, with 128 + its number"),
    (1, "the relay did not end within 15 s and printed its threads' stacks; please report it"),
    (2, "unknown flag, or a value out of bounds"),
    (69, "a library such as OpenSSL or acme is missing, or the secrets server cannot be reached"),
    (
        71,
        "cannot listen on an address (in use, not allowed, of another machine), or no descriptors, "
        "threads or memory left",
    ),
    (74, "standard output could not be written"),
    (
        78,
        "a key, a certificate, another file or an environment variable cannot be used",
    ),
)


def print_usage(flags: Sequence[Flag], file: TextIO) -> None:
    """Print the help for a table of flags; with bold names when the file is a terminal."""
    page = _Page(file)
    for sentence in INTRODUCTION:
        page.paragraph(sentence)
    for group, members in groupby(
        (flag for flag in flags if flag.group), key=lambda flag: flag.group
    ):
        page.heading(group)
        page.pairs((spelling(flag), explanation(flag)) for flag in members)
    page.heading("Examples")
    for command, meaning in EXAMPLES:
        page.line(INDENT + page.bold(command))
        page.paragraph(meaning, 3 * INDENT)
    page.heading("Exit codes")
    page.pairs((str(code), meaning) for code, meaning in EXIT_CODES)


class _Page:
    """Text in two columns, as wide as the terminal."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._is_bold = (
            file.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        )
        width = shutil.get_terminal_size((WIDTH, 24)).columns if file.isatty() else WIDTH
        self._columns = max(30 + len(INDENT) + NAME_COLUMNS, min(width, WIDTH))

    def line(self, text: str = "") -> None:
        print(text, file=self._file)

    def paragraph(self, text: str, indent: str = "") -> None:
        for line in self._wrapped(text, len(indent)):
            self.line(indent + line)

    def _wrapped(self, text: str, n_left: int) -> list[str]:
        """Break a text into lines that fit beside `n_left` columns; no word, and no flag."""
        return textwrap.wrap(
            text, self._columns - n_left, break_long_words=False, break_on_hyphens=False
        )

    def bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if self._is_bold else text

    def heading(self, text: str) -> None:
        self.line()
        self.line(self.bold(text))

    def pairs(self, rows: Iterable[tuple[str, str]]) -> None:
        for name, text in rows:
            lines = self._wrapped(text, len(INDENT) + NAME_COLUMNS) or [""]
            if len(name) > NAME_COLUMNS - 2:
                lines.insert(0, "")
            for number, line in enumerate(lines):
                # Padded before it is bold: the escape sequences take no columns.
                left = "" if number else self.bold(name) + " " * (NAME_COLUMNS - len(name))
                self.line((INDENT + (left or " " * NAME_COLUMNS) + line).rstrip())


def spelling(flag: Flag) -> str:
    """Return a flag as it is written, with the word for its value."""
    return f"-{flag.name}" if flag.is_boolean else f"-{flag.name} {flag.metavar}"


def explanation(flag: Flag) -> str:
    """Return the help of a flag, with its default."""
    if flag.is_boolean and flag.default == "true":
        return f"{flag.help} (on; -{flag.name}=false for off)"
    if flag.default not in ("", "false"):
        return f"{flag.help} (default {flag.default})"
    return flag.help
