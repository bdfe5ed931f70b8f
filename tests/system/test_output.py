"""The commands with an output that fails: no traceback, and a matching exit code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BESIDE = Path(sys.executable).parent
COMMANDS = {
    "relay help": [str(BESIDE / "fastderp-relay"), "-help"],
    "relay version": [str(BESIDE / "fastderp-relay"), "-version"],
    "probe help": [str(BESIDE / "fastderp-relay"), "probe", "-help"],
    "bench help": [str(BESIDE / "fastderp-bench"), "--help"],
    "bench list": [str(BESIDE / "fastderp-bench"), "--list"],
    "python -m": [sys.executable, "-m", "fastderp"],
}


def run(what: str, stdout: int, **variables: str) -> tuple[int, str]:
    """Return the exit code and the text of standard error."""
    done = subprocess.run(
        COMMANDS[what],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env=os.environ | variables,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("what", COMMANDS)
def test_a_reader_that_closes_the_pipe_is_no_traceback(what: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run(what, writer) == (74, "")
    finally:
        os.close(writer)


@pytest.mark.parametrize("what", COMMANDS)
def test_a_full_device_is_one_line(what: str) -> None:
    with open("/dev/full", "w") as full:
        code, errors = run(what, full.fileno())
    assert code == 74
    [line] = errors.splitlines()
    assert line.endswith("cannot write to standard output: No space left on device")


@pytest.mark.parametrize("what", COMMANDS)
def test_output_is_printed_in_a_locale_without_its_characters(what: str) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert run(what, subprocess.DEVNULL, **ascii_only) == (0, "")
