"""The entry points of the commands. On other systems than Linux they print one line and exit.

Imports few modules; `fastderp.cli.relay` gives the reason.
"""

from __future__ import annotations

import sys


def relay() -> int:
    """Run `fastderp-relay`."""
    _need_linux("fastderp-relay")
    accept_gil()
    from fastderp.cli.relay import main

    return main()


def bench() -> int:
    """Run `fastderp-bench`."""
    _need_linux("fastderp-bench")
    accept_gil()
    from fastderp.cli.bench import main

    return main()


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
        from fastderp.errors import EX_UNAVAILABLE

        print(f"{command}: {error}", file=sys.stderr)
        sys.exit(EX_UNAVAILABLE)
