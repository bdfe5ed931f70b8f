"""Fixtures of the server's tests."""

import os
from collections.abc import Iterator

import pytest

from fastderp.server.observe.log_queue import LogQueue


@pytest.fixture
def lines() -> Iterator[LogQueue]:
    """Return a queue of log lines that are discarded."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    queue = LogQueue(nowhere)
    yield queue
    queue.close()
    os.close(nowhere)
