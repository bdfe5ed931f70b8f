"""Reads the flags of the commands beside the relay's own, which has its table of flags."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from fastderp.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Reports an error in the flags as one line, by a UsageError.

    Args:
        see: how that line names the command's help.
        settings: of ArgumentParser.
    """

    def __init__(self, *, see: str, **settings: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False, **settings
        )
        self._see = see

    def error(self, message: str) -> NoReturn:
        """Raise UsageError; argparse would print the usage and exit."""
        raise UsageError(f"{message}; see {self._see}")


def with_two_dashes(arguments: Sequence[str]) -> list[str]:
    """Return arguments whose flags have two dashes, except those of one letter."""
    return [re.sub("^-(?=[a-z]{2})", "--", argument) for argument in arguments]


def with_one_dash(arguments: Sequence[str]) -> list[str]:
    """Return arguments whose flags have one dash; the relay's own flags take one or two."""
    return [re.sub("^--(?=.)", "-", argument) for argument in arguments]
