"""Fixtures of the interop tests: Go programs, built once, and starters of relays."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from .gokit import (
    GoError,
    GoPrograms,
    OldestPrograms,
    TailnetPrograms,
    build,
    build_newest_derper,
    build_oldest,
    build_setecd,
    build_tailnet,
)
from .pebble import Pebble, pebble
from .pebble import build as build_pebble
from .relays import Relay, running

Programs = TypeVar("Programs")


class StartRelay(Protocol):
    """Starts one relay of a kind, as a context manager."""

    def __call__(
        self, *flags: str, tls: bool = False, **environment: str
    ) -> AbstractAsyncContextManager[Relay]:
        """Run it in the block, with derper's `flags` and additions to the environment."""


@pytest.fixture(scope="session")
def go_programs(request: pytest.FixtureRequest) -> GoPrograms:
    """Build the Go programs; skip the tests without Go, unless CI requires them."""
    return _built(request, build)


@pytest.fixture(scope="session")
def newest_derper(request: pytest.FixtureRequest) -> Path:
    """Build derper 1.104.7, as `go_programs` does."""
    return _built(request, build_newest_derper)


@pytest.fixture(scope="session")
def oldest_programs(request: pytest.FixtureRequest) -> OldestPrograms:
    """Build the programs of release 1.32.0, as `go_programs` does."""
    return _built(request, build_oldest)


@pytest.fixture(scope="session")
def tailnet_programs(request: pytest.FixtureRequest) -> TailnetPrograms:
    """Build the programs of a tailnet, as `go_programs` does."""
    return _built(request, build_tailnet)


@pytest.fixture(scope="session")
def setecd(request: pytest.FixtureRequest) -> Path:
    """Build a setec server, as `go_programs` does."""
    return _built(request, build_setecd)


@pytest.fixture(scope="session")
def pebble_program(request: pytest.FixtureRequest) -> Path:
    """Build Pebble, as `go_programs` does."""
    return _built(request, build_pebble)


@pytest.fixture(scope="session")
def dns_program(request: pytest.FixtureRequest) -> Path:
    """Build pebble-challtestsrv, as `go_programs` does."""
    return _built(request, partial(build_pebble, name="pebble-challtestsrv"))


@pytest.fixture
def ca(pebble_program: Path, tmp_path: Path) -> Iterator[Pebble]:
    """A CA that is not started yet."""
    with pebble(pebble_program, tmp_path) as ca:
        yield ca


def _built(request: pytest.FixtureRequest, build: Callable[[Path], Programs]) -> Programs:
    try:
        return build(request.config.cache.mkdir("interop-go"))
    except GoError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture
def start_derper(newest_derper: Path, tmp_path_factory: pytest.TempPathFactory) -> StartRelay:
    """Return a starter of derper 1.104.7."""
    return starter(newest_derper, tmp_path_factory)


@pytest.fixture(params=["1.98.9", "1.104.7"])
def start_each_derper(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> StartRelay:
    """Return a starter of derper: first the older release, then the newest."""
    if request.param == "1.98.9":
        return starter(request.getfixturevalue("go_programs").derper, tmp_path_factory)
    return starter(request.getfixturevalue("newest_derper"), tmp_path_factory)


def starter(program: Path, tmp_path_factory: pytest.TempPathFactory) -> StartRelay:
    """Return a starter of relays of this program."""

    def start(
        *flags: str, tls: bool = False, **environment: str
    ) -> AbstractAsyncContextManager[Relay]:
        return running(
            program,
            tmp_path_factory.mktemp(program.name),
            *flags,
            tls=tls,
            environment=environment,
        )

    return start


@pytest.fixture(scope="session")
def fastderp_relay() -> Path:
    """Return the installed command of this Python, or else the first on the path."""
    beside = Path(sys.executable).with_name("fastderp-relay")
    found = beside if beside.exists() else shutil.which("fastderp-relay")
    assert found, "fastderp-relay is not installed"
    return Path(found)


@pytest.fixture
def start_fastderp(fastderp_relay: Path, tmp_path_factory: pytest.TempPathFactory) -> StartRelay:
    """Return a starter of fastderp-relay, which takes derper's flags."""
    return starter(fastderp_relay, tmp_path_factory)
