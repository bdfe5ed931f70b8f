"""Fixtures for every test."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fastderp.server.observe.log_throttle import LogThrottle
from fastderp.server.observe.supervisor import supervisor
from tests.kit.relay import EVERY_SETUP, Relay, Setup, running

# A shell has its background jobs ignore interrupts, and what they start would, too: tests that send one need it heard.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for certificates made at run time, shared because making them takes a while."""
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(autouse=True)
def fresh_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each test see its own internal errors: the throttle of their log lines is one per process."""
    monkeypatch.setattr(supervisor, "_throttle", LogThrottle(logging.getLogger("fastderp")))


@pytest.fixture(params=EVERY_SETUP, ids=str)
def relay(request: pytest.FixtureRequest, certificates: Path) -> Iterator[Relay]:
    """A relay over each transport and on each event loop: for what must not depend on either."""
    with running(request.param, certificates) as relay:
        yield relay


@pytest.fixture
def start_relay(certificates: Path) -> Iterator[Callable[..., Relay]]:
    """Start relays of one's own: `start_relay(Setup(...), **server)`; they are closed after the test."""
    with ExitStack() as stack:

        def start(setup: Setup = Setup(), **server: Any) -> Relay:
            return stack.enter_context(running(setup, certificates, **server))

        yield start
