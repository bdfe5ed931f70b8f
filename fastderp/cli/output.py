"""Prints on standard output, and reports a failure as one line and an exit code."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

from fastderp.errors import EX_IOERR, EX_OK
from fastderp.util.standard_streams import discard, print_error
from fastderp.util.text import one_line


def show(command: str, write: Callable[[], None]) -> int:
    """Call `write` and return EX_OK, or EX_IOERR when not all of it could be printed.

    The reason goes to standard error, after the name `command`, unless the reader has closed the
    pipe, as `head` does.
    """
    if not sys.stdout:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - later output needs no more complaints
        return _complain(command, "it is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # replaces characters that the locale cannot encode, such as µ
        sys.stdout.reconfigure(errors="replace")
    try:
        write()
        sys.stdout.flush()
    except OSError as error:
        discard(sys.stdout)
        return (
            EX_IOERR if isinstance(error, BrokenPipeError) else _complain(command, error.strerror)
        )
    return EX_OK


def refuse(command: str, text: str, exit_code: int) -> int:
    """Print the reason of a failure in one line on standard error; return the exit code."""
    print_error(f"{command}: {one_line(text)}")
    return exit_code


def _complain(command: str, reason: str | None) -> int:
    return refuse(command, f"cannot write to standard output: {reason}", EX_IOERR)
