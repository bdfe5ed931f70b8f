"""The commands with an output that fails: no traceback, and a matching exit code."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.relay import Relay

RELAY = str(Path(sys.executable).with_name("fastderp-relay"))
BENCH = str(Path(sys.executable).with_name("fastderp-bench"))
COMMANDS = {
    "relay help": [RELAY, "-help"],
    "relay version": [RELAY, "-version"],
    "check": [RELAY, "check", "-dev"],
    "generated": [RELAY, "gen", "config"],
    "probe help": [RELAY, "probe", "-help"],
    "bench help": [BENCH, "--help"],
    "bench list": [BENCH, "--list"],
    "python -m": [sys.executable, "-m", "fastderp"],
}
# an exit code and the command whose error it is
REFUSED = {
    "relay": (2, [RELAY, "-no-such-flag"]),
    "relay file": (78, [RELAY, "-config", "/nonexistent"]),
    "relay, JSON": (78, [RELAY, "-dev", "-log-format", "json", "-allow-keys", "/nonexistent"]),
    "probe": (2, [RELAY, "probe"]),
    "top": (69, [RELAY, "top", "unix:/nonexistent"]),
    "bench": (2, [BENCH, "no-url"]),
}


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)


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
def test_a_closed_standard_output_is_one_line(what: str) -> None:
    done = shell(f"{shlex.join(COMMANDS[what])} >&-")
    assert done.returncode == 74
    [line] = done.stderr.splitlines()
    assert line.endswith("cannot write to standard output: it is closed")


@pytest.mark.parametrize("device", ["/dev/full", "&-"])
def test_a_probe_without_output_complains_once(device: str) -> None:
    done = shell(f"{RELAY} probe no-such-host.invalid >{device}")
    assert (done.returncode, done.stderr.count("\n")) == (74, 1)


@pytest.mark.parametrize("error", ["/dev/full", "&-"])
@pytest.mark.parametrize("what", REFUSED)
def test_an_error_that_cannot_be_printed_keeps_its_exit_code(what: str, error: str) -> None:
    done = shell(f"{shlex.join(REFUSED[what][1])} 2>{error}")
    assert (done.returncode, done.stdout, done.stderr) == (REFUSED[what][0], "", "")


def test_a_bench_without_standard_streams_measures(start_relay: Callable[..., Relay]) -> None:
    url = f"http://127.0.0.1:{start_relay().port}"
    flags = ["--pairs", "1", "--duration", "0.1", "--warmup", "0"]
    done = shell(f"{shlex.join([BENCH, url, *flags])} <&- 2>&-")
    assert (done.returncode, "delivered" in done.stdout) == (0, True)


@pytest.mark.parametrize("what", COMMANDS)
def test_output_is_printed_in_a_locale_without_its_characters(what: str) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert run(what, subprocess.DEVNULL, **ascii_only) == (0, "")
