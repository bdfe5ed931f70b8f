"""A comparison of two builds has to run each bench on the build it names."""

import os
from pathlib import Path

import pytest

import fastderp


def pytest_configure() -> None:
    """Refuse to measure another tree's fastderp than the one in BENCH_TREE."""
    tree = os.environ.get("BENCH_TREE")
    if tree and not Path(fastderp.__file__).is_relative_to(tree):
        raise pytest.UsageError(f"fastderp comes from {fastderp.__file__}, not from {tree}")
