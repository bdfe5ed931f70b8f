"""Local shortages, and the limits of the process."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator

import pytest

from fastderp.util import shortage


@pytest.fixture
def no_getrlimit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forbid getrlimit, as systemd's SystemCallFilter=~@resources does."""

    def forbidden(_: int) -> tuple[int, int]:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    shortage._listed_limits.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(resource, "getrlimit", forbidden)
        yield
    shortage._listed_limits.cache_clear()


@pytest.mark.usefixtures("no_getrlimit")
def test_a_sandbox_without_getrlimit_has_the_limits_of_proc() -> None:
    with open("/proc/self/limits") as file:
        [listed] = [line.split()[3:5] for line in file if line.startswith("Max open files")]
    assert shortage.descriptor_limits() == tuple(map(int, listed))
    assert 0 < shortage.first_reserved_descriptor() < int(listed[0])
    assert not shortage.lookups_are_short()


@pytest.mark.usefixtures("no_getrlimit")
def test_a_sandbox_without_getrlimit_and_proc_has_the_kernels_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", absent)
    assert shortage.descriptor_limits() == (1024, 1024)
