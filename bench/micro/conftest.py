"""Checks that each build of a comparison runs its own benches, on one core."""

import os
from pathlib import Path

import pytest

import fastderp


def pytest_configure() -> None:
    """Refuse to measure a fastderp outside BENCH_TREE; stay on one core."""
    tree = os.environ.get("BENCH_TREE")
    if not tree:
        return
    if not Path(fastderp.__file__).is_relative_to(tree):
        raise pytest.UsageError(f"fastderp comes from {fastderp.__file__}, not from {tree}")
    # A thread that wakes another one on an idle core pays for the core's wake-up, in some runs.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
