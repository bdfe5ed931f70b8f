"""Prints the help of `fastderp-relay`: the flags by group, examples, exit codes.

Imported for -help only: rendering it costs more than starting the relay.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fastderp.cli.flags import Flag

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
    """Print the help for a table of flags; in colour when the file is a terminal."""
    console = Console(file=file, highlight=False, width=None if file.isatty() else 100)
    purpose = " relays the packets of tailscale nodes that cannot reach each other."
    console.print(Text.assemble(("fastderp-relay", "bold"), purpose))
    console.print(
        "Flags are derper's: one dash or two, -flag value or -flag=value. Each is also a variable,"
    )
    console.print("such as FASTDERP_STUN_PORT for -stun-port, and a key of the file of -config.")
    console.print(
        "fastderp-relay check [FLAGS] prints every setting with its origin, and checks the files."
    )
    for group, members in groupby(
        (flag for flag in flags if flag.group), key=lambda flag: flag.group
    ):
        _heading(console, group)
        _pairs(console, [(_spelling(flag), _explanation(flag)) for flag in members])
    _heading(console, "Examples")
    for command, meaning in EXAMPLES:
        console.print(Padding(Text(command, "bold"), (0, 2), expand=False))
        console.print(Padding(Text(meaning, "dim"), (0, 6), expand=False))
    _heading(console, "Exit codes")
    _pairs(console, [(Text(str(code), "bold"), Text(meaning)) for code, meaning in EXIT_CODES])


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, "bold cyan"))


def _pairs(console: Console, rows: Sequence[tuple[Text, Text]]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, min_width=24)
    table.add_column()
    for left, right in rows:
        table.add_row(left, right)
    console.print(Padding(table, (0, 2), expand=False))


def _spelling(flag: Flag) -> Text:
    value = "" if flag.is_boolean else " " + flag.metavar
    return Text.assemble((f"-{flag.name}", "bold"), (value, "italic"))


def _explanation(flag: Flag) -> Text:
    text = Text(flag.help)
    if flag.is_boolean and flag.default == "true":
        text.append(f" (on; -{flag.name}=false for off)", "dim")
    elif flag.default not in ("", "false"):
        text.append(f" (default {flag.default})", "dim")
    return text
