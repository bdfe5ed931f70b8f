"""The entry point of `fastderp-relay` (PROTOCOL §12).

Installs the signal handler, then imports and runs the command. Imports few modules before that:
without the handler SIGHUP kills the process, and process 1 of a container ignores SIGTERM.
"""

from __future__ import annotations

import sys

from fastderp.cli.signals import SIGNALS


def main() -> int:
    """Run the command and end the process with its exit code; `-help` lists the codes."""
    SIGNALS.settle()
    from fastderp.cli.command import run

    SIGNALS.leave(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
