"""Cgroups with limits, as containers have them; of version 2 or 1."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def limited_by(controller: str, *files: str) -> Iterator[Path]:
    """Yield the file of a new cgroup that limits something, the first of `files` that exists.

    The test is skipped where such a cgroup cannot be made.
    """
    for root in (ROOT, ROOT / controller):
        group = root / f"fastderp-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            for name in files:
                if (group / name).exists():
                    yield group / name
                    return
        finally:
            group.rmdir()
    pytest.skip(f"a cgroup with the controller {controller} cannot be made")


def within(limit: Path, *command: str) -> list[str]:
    """Return the command line that runs a command in the cgroup of a limit."""
    return ["sh", "-c", f'echo $$ > {limit.parent}/cgroup.procs && exec "$@"', "sh", *command]
