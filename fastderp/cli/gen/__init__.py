"""`fastderp-relay gen`: prints files that an operator installs beside the relay.

A module of this package makes each of them.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

from fastderp.cli.output import refuse, show
from fastderp.cli.parser import Parser
from fastderp.errors import DerpError, UsageError
from fastderp.util.text import printable

COMMAND = "fastderp-relay gen"


class Output(NamedTuple):
    """One thing to print: its variants, the first of them by default if `has_default`."""

    help: str
    make: Callable[[str], str]
    variants: tuple[str, ...] = ()
    has_default: bool = False

    @property
    def wanted(self) -> str:
        """How the variant is written on the command line."""
        words = "|".join(self.variants)
        return f" [{words}]" if self.has_default else f" {words}" if words else ""


def _unit(variant: str) -> str:
    from fastderp.cli.gen.unit import unit

    return unit(variant)


def _completion(shell: str) -> str:
    from fastderp.cli.command import SUBCOMMANDS
    from fastderp.cli.flag_table import flag_table
    from fastderp.cli.gen.completion import completion

    variants = {name: output.variants for name, output in OUTPUTS.items()}
    flags = {name: _flags_of(name) for name in SUBCOMMANDS if name != "gen"}
    return completion(shell, flag_table(os.environ), variants, flags)


def _flags_of(subcommand: str) -> list[str]:
    """Return the flags in the help of another subcommand."""
    text = import_module(f"fastderp.cli.{subcommand}").help_text()
    return re.findall(r"^  (-[a-z0-9][a-z0-9-]*)", text, re.M)


def _config(_: str) -> str:
    from fastderp.cli.flag_table import flag_table
    from fastderp.cli.gen.sample import sample

    return sample(flag_table(os.environ))


def _grafana(_: str) -> str:
    from fastderp.cli.gen.grafana import dashboard

    return dashboard()


def _manual(command: str) -> str:
    from fastderp.cli.flag_table import flag_table
    from fastderp.cli.gen.manual import manual

    return manual(command, flag_table(os.environ))


OUTPUTS = {
    "systemd": Output(
        "the unit of the service with the path of this command, or of its sockets",
        _unit,
        ("service", "socket"),
        has_default=True,
    ),
    "completion": Output(
        "the completion of fastderp-relay for a shell", _completion, ("bash", "zsh", "fish")
    ),
    "config": Output("a file for -config, with every setting in a comment", _config),
    "grafana": Output("a dashboard of the relay's metrics, as JSON to import", _grafana),
    "man": Output(
        "the manual page of fastderp-relay, or of fastderp-bench",
        _manual,
        ("relay", "bench"),
        has_default=True,
    ),
}


def help_text() -> str:
    """Return what `-help` prints."""
    return _parser().format_help()


def main(arguments: Sequence[str]) -> int:
    """Print what the arguments name; return the exit code."""
    try:
        parser = _parser()
        options = parser.parse_args(arguments)
        text = parser.format_help() if options.help else _made(options.name, options.variant)
    except DerpError as error:
        return refuse(COMMAND, str(error), error.exit_code)
    return show(COMMAND, lambda: print(text, end=""))


def _parser() -> argparse.ArgumentParser:
    rows = [f"  {name}{output.wanted}\n      {output.help}" for name, output in OUTPUTS.items()]
    parser = Parser(
        see="-help",
        prog=COMMAND,
        usage="%(prog)s NAME [VARIANT]",
        description="Print a file on standard output. NAME is one of\n\n" + "\n".join(rows),
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", default="", help=argparse.SUPPRESS)
    parser.add_argument("variant", nargs="?", default="", help=argparse.SUPPRESS)
    parser.add_argument("-help", "--help", "-h", action="store_true", help="show this and exit")
    return parser


def _made(name: str, variant: str) -> str:
    """Return the text of an output. Raises UsageError that lists the possible words."""
    output = OUTPUTS.get(name)
    if output is None:
        raise UsageError(_wrong("name", name, tuple(OUTPUTS)))
    if not output.variants:
        if variant:
            raise UsageError(f'unexpected argument "{printable(variant)}" after {name}')
        return output.make("")
    if not variant and output.has_default:
        variant = output.variants[0]
    if variant not in output.variants:
        raise UsageError(_wrong(f"variant of {name}", variant, output.variants))
    return output.make(variant)


def _wrong(what: str, word: str, words: tuple[str, ...]) -> str:
    listed = f"use {', '.join(words[:-1])} or {words[-1]}"
    return f'unknown {what} "{printable(word)}": {listed}' if word else f"missing {what}: {listed}"
