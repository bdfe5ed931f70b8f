"""Runs the command `fastderp-relay`; reports a failed start as one line (PROTOCOL §12).

`fastderp.cli.config` turns flags into settings, `fastderp.server.process` runs the relay,
`fastderp.cli.signals` handles the signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import fastderp
from fastderp.cli.flag_table import flag_table
from fastderp.cli.output import refuse, show
from fastderp.cli.signals import SIGNALS
from fastderp.cli.sources import Settings, read_settings
from fastderp.errors import EX_OK, EX_UNAVAILABLE, DerpError, ShortageError, UsageError
from fastderp.util.shortage import descriptor_limits, shortage_of
from fastderp.util.standard_streams import open_standard_streams
from fastderp.util.text import nearest, printable
from fastderp.util.threads import NO_THREAD

if TYPE_CHECKING:
    from fastderp.server.settings import RelaySettings

log: logging.Logger = logging.getLogger("fastderp")


NAME = "fastderp-relay"
# Enough for a relay with a worker for each of many cores; with fewer, the start fails later.
MIN_DESCRIPTORS = 64
# Modules of fastderp.cli, each with a `main`. `check` is none: it takes the relay's flags.
SUBCOMMANDS = ("gen", "probe", "top")


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code; `-help` lists the codes."""
    open_standard_streams()
    return _reported(partial(_run, arguments), partial(refuse, NAME))


def _reported(work: Callable[[], int], report: Callable[[str, int], int]) -> int:
    """Return the exit code of the work; `report` prints the text of an expected failure."""
    try:
        return work()
    except DerpError as error:
        return report(str(error), error.exit_code)
    except ImportError as error:  # OpenSSL or a dependency is not installed
        from fastderp.util.extras import import_text

        return report(import_text(error), EX_UNAVAILABLE)
    except (OSError, RuntimeError, MemoryError) as error:
        if shortage := shortage_of(error):
            return report(_described(shortage), ShortageError.exit_code)
        raise


def _described(shortage: str) -> str:
    hint = ": raise the limit of processes and threads (TasksMax=, --pids-limit, `ulimit -u`)"
    return f"the relay cannot run: {shortage}{hint if shortage == NO_THREAD else ''}"


def _run(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in SUBCOMMANDS:
        SIGNALS.remove()
        exit_code: int = import_module(f"fastderp.cli.{arguments[0]}").main(arguments[1:])
        return exit_code
    checking = list(arguments[:1]) == ["check"]
    if arguments and not checking:
        _refuse_misspelled(arguments[0])
    sources = read_settings(arguments[1:] if checking else arguments, os.environ)
    values = sources.values
    if values["help"] or values["h"]:
        from fastderp.cli.usage import print_usage

        return show(NAME, lambda: print_usage(flag_table(os.environ), sys.stdout))
    if values["version"]:
        return show(NAME, _print_version)
    # Imported here: the version and the help need neither OpenSSL nor the compiled modules.
    from fastderp.cli.config import relay_settings

    settings = relay_settings(
        values, sources.given, environment=os.environ, is_root=os.geteuid() == 0
    )
    if checking:
        from fastderp.cli.check import check

        _raise_descriptor_limit()
        return check(settings, sources)
    serve = partial(_serve, arguments, settings, sources)
    if settings.observe.log_format == "json":
        from fastderp.server.observe import json_log

        return _reported(partial(serve, json_log.attach), json_log.refuse)
    return _reported(partial(serve, logging.getLogger().addHandler), partial(refuse, NAME))


def _refuse_misspelled(argument: str) -> None:
    """Raise UsageError for a word that is almost a subcommand."""
    is_word = argument[:1].isalpha() and argument not in ("help", "version")
    if is_word and (meant := nearest(argument, (*SUBCOMMANDS, "check"))):
        raise UsageError(f'unknown subcommand "{printable(argument)}"; did you mean {meant}?')


def _serve(
    arguments: Sequence[str],
    settings: RelaySettings,
    sources: Settings,
    attach: Callable[[logging.Handler], None],
) -> int:
    """Run the relay until its end; `attach` directs the log of the process to a handler."""
    _raise_descriptor_limit()
    import uvloop

    from fastderp.server.app import Configuration
    from fastderp.server.observe.log_queue import LogQueue
    from fastderp.server.process import serve

    lines = LogQueue()
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    configuration = None
    if sources.values["config"]:
        changed = partial(_changed_settings, arguments, sources)
        configuration = Configuration(Path(sources.values["config"]), changed)
    attach(lines)
    log.setLevel(logging.INFO)
    try:
        runner.run(serve(settings, SIGNALS, lines, configuration))
    finally:
        # The process ends now. Closing the loop would wait for name lookups, and for threads that
        # read files of a network that is gone.
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
    _, hard = descriptor_limits()
    if hard != resource.RLIM_INFINITY and hard < MIN_DESCRIPTORS:
        raise ShortageError(
            f"{hard} descriptors are allowed, and a relay needs at least {MIN_DESCRIPTORS}: raise "
            "`ulimit -n`"
        )
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
