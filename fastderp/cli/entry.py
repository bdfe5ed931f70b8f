"""The entry points of the commands. On other systems than Linux they print one line and exit.

Imports few modules; `fastderp.cli.relay` gives the reason.
"""

from __future__ import annotations

import sys


def relay() -> int:
    """Run `fastderp-relay`."""
    _prepare("fastderp-relay")
    try:
        from fastderp.cli.relay import main
    except ImportError as error:
        return _incomplete("fastderp-relay", error)
    return main()


def bench() -> int:
    """Run `fastderp-bench`."""
    _prepare("fastderp-bench")
    try:
        from fastderp.cli.bench import main
    except ImportError as error:
        return _incomplete("fastderp-bench", error)
    return main()


def _prepare(command: str) -> None:
    _need_linux(command)
    accept_gil()


def accept_gil() -> None:
    """Drop a free-threaded interpreter's warning that our modules turn the GIL on.

    It would be the first line of a relay's log. A program that imports the library gets it.
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        import warnings

        # Appended: -W and PYTHONWARNINGS have precedence.
        warnings.filterwarnings(
            "ignore", "The global interpreter lock", RuntimeWarning, append=True
        )


def _need_linux(command: str) -> None:
    """Exit with EX_UNAVAILABLE where the relay cannot run."""
    try:
        import fastderp.server  # noqa: F401
    except ImportError as error:
        sys.exit(_unavailable(command, str(error)))


def _incomplete(command: str, error: ImportError) -> int:
    """Report an installation that is not compiled or lacks a dependency; return the exit code."""
    from fastderp.util.extras import import_text

    return _unavailable(command, import_text(error))


def _unavailable(command: str, text: str) -> int:
    """Print the reason why a command cannot run; return its exit code."""
    from fastderp.cli.output import refuse
    from fastderp.errors import EX_UNAVAILABLE

    return refuse(command, text, EX_UNAVAILABLE)
