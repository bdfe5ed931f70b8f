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
        "cannot listen on an address (in use, not allowed, of another machine), or no descriptors "
        "or memory left",
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
    page.line("fastderp-relay relays the packets of tailscale nodes that cannot reach each other.")
    page.line(
        "Flags are derper's: one dash or two, -flag value or -flag=value. Each is also a variable,"
    )
    page.line("such as FASTDERP_STUN_PORT for -stun-port, and a key of the file of -config.")
    page.line(
        "fastderp-relay check [FLAGS] prints every setting with its origin, and checks the files."
    )
    for group, members in groupby(
        (flag for flag in flags if flag.group), key=lambda flag: flag.group
    ):
        page.heading(group)
        page.pairs((_spelling(flag), _explanation(flag)) for flag in members)
    page.heading("Examples")
    for command, meaning in EXAMPLES:
        page.line(INDENT + page.bold(command))
        page.line(3 * INDENT + meaning)
    page.heading("Exit codes")
    page.pairs((str(code), meaning) for code, meaning in EXIT_CODES)


class _Page:
    """Text in two columns, as wide as the terminal."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._is_bold = file.isatty() and not os.environ.get("NO_COLOR")
        width = shutil.get_terminal_size((WIDTH, 24)).columns if file.isatty() else WIDTH
        self._text_columns = max(30, min(width, WIDTH) - len(INDENT) - NAME_COLUMNS)

    def line(self, text: str = "") -> None:
        print(text, file=self._file)

    def bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if self._is_bold else text

    def heading(self, text: str) -> None:
        self.line()
        self.line(self.bold(text))

    def pairs(self, rows: Iterable[tuple[str, str]]) -> None:
        for name, text in rows:
            lines = textwrap.wrap(text, self._text_columns, break_long_words=False) or [""]
            if len(name) > NAME_COLUMNS - 2:
                lines.insert(0, "")
            for number, line in enumerate(lines):
                # Padded before it is bold: the escape sequences take no columns.
                left = "" if number else self.bold(name) + " " * (NAME_COLUMNS - len(name))
                self.line((INDENT + (left or " " * NAME_COLUMNS) + line).rstrip())


def _spelling(flag: Flag) -> str:
    return f"-{flag.name}" if flag.is_boolean else f"-{flag.name} {flag.metavar}"


def _explanation(flag: Flag) -> str:
    if flag.is_boolean and flag.default == "true":
        return f"{flag.help} (on; -{flag.name}=false for off)"
    if flag.default not in ("", "false"):
        return f"{flag.help} (default {flag.default})"
    return flag.help
