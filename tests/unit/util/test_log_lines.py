"""Text of peers in the log. RELIABILITY F27."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastderp
from fastderp.util.log_lines import LINE_LIMIT_CHARACTERS, log_line, logger


@pytest.mark.parametrize(
    ("said", "logged"),
    [
        ("one\ntwo\r\n", r"one\ntwo\r\n"),
        ("\x1b[2Jgone\x07\x7f\x9b", r"\x1b[2Jgone\x07\x7f\x9b"),
        ("line\u2028paragraph\u2029 \u202eturned", r"line\u2028paragraph\u2029 \u202eturned"),
        ("half \ud83d a character", r"half \ud83d a character"),
        ("name für naïve 日本語 …", "name für naïve 日本語 …"),
    ],
)
def test_text_of_peers_cannot_forge_a_line_or_control_a_terminal(
    said: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("fastderp").warning("%s: refused: %s", "192.0.2.1", said)
    assert caplog.messages == [f"192.0.2.1: refused: {logged}"]


def test_every_logger_of_the_package_escapes_its_lines() -> None:
    root = Path(fastderp.__file__).parent
    sources = {path: path.read_text() for path in root.rglob("*.py")}
    # Modules of the relay may take its logger as it is: the supervisor's module has made it.
    named = [path for path, text in sources.items() if re.search(r'getLogger\("fastderp\.', text)]
    assert not named
    assert 'logger("fastderp")' in sources[root / "server" / "observe" / "supervisor.py"]


@given(st.text(st.characters(), max_size=3000))
def test_any_text_becomes_one_printable_line_of_bounded_length(text: str) -> None:
    line = log_line(text)
    assert len(line.splitlines()) <= 1
    assert not any(
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in line
    )
    assert len(line) <= 10 * (LINE_LIMIT_CHARACTERS + 1)
    line.encode()


FORGED = "2026-11-30 12:00:00 [forged] closed"


def test_the_message_of_an_exception_cannot_forge_a_line_or_control_a_terminal() -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logger("fastderp")
    log.addHandler(handler)
    try:
        raise ValueError(f"bad\n{FORGED}\r{FORGED}\x1b[2J")
    except ValueError:
        log.exception("internal error")
    finally:
        log.removeHandler(handler)
    first, *trace = written.getvalue().splitlines()
    assert first == "internal error" and trace[0] == "  Traceback (most recent call last):"
    assert trace[-3:] == ["  ValueError: bad", f"  {FORGED}", rf"  {FORGED}\x1b[2J"]
    assert all(line.startswith("  ") for line in trace)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("fastderp.client.http_client", "fastderp.client"),
        ("fastderp.client.client", "fastderp.client"),
        ("fastderp.net.websocket_library", "fastderp.websocket"),
        ("fastderp.server.stun.server", "fastderp.stun"),
        ("fastderp.server.server", "fastderp"),
    ],
)
def test_a_part_that_is_used_alone_escapes_its_lines(module: str, name: str) -> None:
    program = (
        f"import {module}, logging; logging.basicConfig(format='%(message)s'); "
        f"logging.getLogger({name!r}).error('%s', 'one\\ntwo')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stderr == b"one\\ntwo\n"


def test_a_line_that_cannot_be_formatted_is_logged_and_raises_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger("fastderp").error("%d packets", "many")
    [text] = caplog.messages
    assert text.startswith("'%d packets', which cannot be formatted: ")
