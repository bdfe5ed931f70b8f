"""Checks that each build of a comparison runs its own benches."""

import os
from pathlib import Path

import pytest

import fastderp


def pytest_configure() -> None:
    """Refuse to measure a fastderp outside BENCH_TREE."""
    tree = os.environ.get("BENCH_TREE")
    if tree and not Path(fastderp.__file__).is_relative_to(tree):
        raise pytest.UsageError(f"fastderp comes from {fastderp.__file__}, not from {tree}")
