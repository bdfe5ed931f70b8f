"""The labels of connections that the network ends."""

import errno
import os

import pytest

from fastderp.dataplane.plane import CLOSE_REASONS
from fastderp.server.observe.connection_log import lost_reason


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ECONNRESET, "reset"),
        (errno.ETIMEDOUT, "tcp_timeout"),
        (errno.EHOSTUNREACH, "unreachable"),
        (errno.ENETUNREACH, "unreachable"),
        (errno.ENETDOWN, "unreachable"),
        (errno.EIO, "reset"),
    ],
)
def test_a_lost_connection_has_the_label_that_a_session_would_have(
    number: int, reason: str
) -> None:
    assert lost_reason(OSError(number, os.strerror(number))) == reason
    assert reason in CLOSE_REASONS
