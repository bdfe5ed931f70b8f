"""The reasons of connections that the network ends."""

import errno
import os

import pytest

from fastderp.dataplane.plane import CLOSE_REASONS
from fastderp.server.net.stream import kernel_cause


@pytest.mark.parametrize(
    ("number", "reason", "has_detail"),
    [
        (errno.ECONNRESET, "reset", False),
        (errno.ETIMEDOUT, "tcp_timeout", False),
        (errno.EHOSTUNREACH, "unreachable", True),
        (errno.ENETUNREACH, "unreachable", True),
        (errno.ENETDOWN, "unreachable", True),
        (errno.EIO, "reset", True),
        (0, "reset", False),
    ],
)
def test_the_reason_of_a_lost_connection_has_a_detail_if_it_leaves_the_error_open(
    number: int, reason: str, has_detail: bool
) -> None:
    assert kernel_cause(number) == (reason, os.strerror(number) if has_detail else "")
    assert reason in CLOSE_REASONS
