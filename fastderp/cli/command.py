"""Runs the command `fastderp-relay`; reports a failed start as one line (PROTOCOL §12).

`fastderp.cli.config` turns flags into settings, `fastderp.server.app` runs the relay,
`fastderp.cli.signals` handles the signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import fastderp
from fastderp.cli.flag_table import flag_table
from fastderp.cli.output import show
from fastderp.cli.signals import SIGNALS
from fastderp.cli.sources import Settings, read_settings
from fastderp.errors import EX_OK, EX_UNAVAILABLE, DerpError, ShortageError
from fastderp.util.text import one_line

log: logging.Logger = logging.getLogger("fastderp")


# Enough for a relay with a worker for each of many cores; with fewer, the start fails later.
MIN_DESCRIPTORS = 64


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code; `-help` lists the codes."""
    _open_standard_streams()
    try:
        return _run(arguments)
    except DerpError as error:
        return _refuse(error, error.exit_code)
    except ImportError as error:  # OpenSSL or a dependency is not installed
        return _refuse(error, EX_UNAVAILABLE)


def _open_standard_streams() -> None:
    """Open closed descriptors among 0 to 2, so that no socket gets such a number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # open() takes the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _refuse(error: Exception, exit_code: int) -> int:
    print(f"fastderp-relay: {one_line(str(error))}", file=sys.stderr)
    return exit_code


def _run(arguments: Sequence[str]) -> int:
    checking = list(arguments[:1]) == ["check"]
    sources = read_settings(arguments[1:] if checking else arguments, os.environ)
    values = sources.values
    if values["help"] or values["h"]:
        from fastderp.cli.usage import print_usage

        return show("fastderp-relay", lambda: print_usage(flag_table(os.environ), sys.stdout))
    if values["version"]:
        return show("fastderp-relay", _print_version)
    # Imported here: the version and the help need neither OpenSSL nor the compiled modules.
    from fastderp.cli.config import relay_settings

    settings = relay_settings(
        values, sources.given, environment=os.environ, is_root=os.geteuid() == 0
    )
    if checking:
        from fastderp.cli.check import check

        return check(settings, sources)
    _raise_descriptor_limit()
    import uvloop

    from fastderp.server.app import Configuration, serve
    from fastderp.server.observe.log_queue import LogQueue

    lines = LogQueue()
    configuration = None
    if values["config"]:
        changed = partial(_changed_settings, arguments, sources)
        configuration = Configuration(Path(values["config"]), changed)
    log.addHandler(lines)
    log.setLevel(logging.INFO)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, SIGNALS, lines, configuration))
    finally:
        lines.close()
    return EX_OK


def _changed_settings(arguments: Sequence[str], in_force: Settings) -> list[str]:
    """Read the settings again; return the names of those that differ. Raises DerpError."""
    from fastderp.cli.config import relay_settings

    found = read_settings(arguments, os.environ)
    is_root = os.geteuid() == 0
    relay_settings(found.values, found.given, environment=os.environ, is_root=is_root)
    return sorted(name for name, value in found.values.items() if value != in_force.values[name])


def _print_version() -> None:
    print(f"fastderp-relay {fastderp.__version__}")
    try:
        from fastderp.tls import library
    except (DerpError, ImportError) as error:
        print(f"crypto missing: {error}")
    else:
        print(f"crypto {library.description()}")


def _raise_descriptor_limit() -> None:
    """Raise the limit of descriptors to its maximum: each client needs one.

    Raises ShortageError when the maximum is too low for a relay.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < MIN_DESCRIPTORS:
        raise ShortageError(
            f"{hard} descriptors are allowed, and a relay needs at least {MIN_DESCRIPTORS}: raise "
            "`ulimit -n`"
        )
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
