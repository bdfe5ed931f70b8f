"""The entry point of `fastderp-relay`: settles the signals, then imports and runs the command (PROTOCOL §12).

Imports next to nothing itself: until the signals are settled, SIGHUP kills the process, and process 1 of a container
does not get SIGTERM at all.
"""

from __future__ import annotations

import sys

from fastderp.cli.signals import SIGNALS


def main() -> int:
    """Run the command with the arguments of the process and end the process with its exit code; `-help` lists the codes."""
    SIGNALS.settle()
    from fastderp.cli.command import run

    SIGNALS.leave(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
