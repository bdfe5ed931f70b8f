"""Fixtures for every test."""

from __future__ import annotations

import logging
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from fastderp.server.observe.log_throttle import LogThrottle
from fastderp.server.observe.supervisor import supervisor
from tests.kit.relay import EVERY_SETUP, Relay, Setup, running

# Background jobs of a shell ignore interrupts, and so would every process that they start;
# tests that send an interrupt need the default action.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Many systems give a user 1,024 descriptors and allow more; the relays and loads of tests inherit the limit.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (max(_soft, min(65536, _hard)), _hard))

# How long an example takes says something about the machine only.
hypothesis.settings.register_profile("fastderp", deadline=None)
hypothesis.settings.load_profile("fastderp")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what builds Go programs: everything in interop."""
    for item in items:
        if "interop" in item.path.parts:
            item.add_marker(pytest.mark.go)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory for certificates made at run time; shared, as making them is slow."""
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(autouse=True)
def fresh_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset the log throttle of internal errors, which the whole process shares."""
    monkeypatch.setattr(supervisor, "_throttle", LogThrottle(logging.getLogger("fastderp")))


@pytest.fixture(params=EVERY_SETUP, ids=str)
def relay(request: pytest.FixtureRequest, certificates: Path) -> Iterator[Relay]:
    """Run a relay on each transport and event loop, for behaviour that depends on neither."""
    with running(request.param, certificates) as relay:
        yield relay


@pytest.fixture
def start_relay(certificates: Path) -> Iterator[Callable[..., Relay]]:
    """Start relays with `start_relay(Setup(...), **server)`; the fixture closes them."""
    with ExitStack() as stack:

        def start(setup: Setup = Setup(), **server: Any) -> Relay:
            return stack.enter_context(running(setup, certificates, **server))

        yield start
