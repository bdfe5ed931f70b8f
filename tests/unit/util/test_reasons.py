"""Texts of errors, and members of JSON objects."""

import socket
import ssl

import pytest

from fastderp.util.json_members import folded
from fastderp.util.reasons import errno_text, own_text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(111, "Connect call failed ('127.0.0.1', 1)"), "Connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (OSError("odd"), "odd"),
        (ValueError("a port is a number"), "a port is a number"),
    ],
)
def test_an_error_number_is_shown_as_the_systems_text(error: Exception, text: str) -> None:
    assert errno_text(error) == text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(22, "not a regular file", "/dev/null"), "not a regular file"),
        (ssl.SSLError(1, "[SSL] bad record mac"), "[SSL] bad record mac"),
        (OSError("odd"), "odd"),
        (RuntimeError("the loop is closed"), "the loop is closed"),
    ],
)
def test_an_error_of_its_own_numbers_keeps_its_text(error: Exception, text: str) -> None:
    assert own_text(error) == text


def test_members_are_found_by_their_names_in_any_case_and_the_last_one_counts() -> None:
    assert folded({"PrivateKey": 1, "privatekey": 2, "\u017fecret": 3}) == {
        "privatekey": 2,
        "secret": 3,
    }
