"""How `fastderp-relay` ends when something of it hangs: a file that never answers stands for a disk that does not."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastderp.wire.keys import NodePrivate
from tests.kit.command import COMMAND, relay, started
from tests.kit.relay import eventually
from tests.kit.service import serving

QUIET = ("-a", "127.0.0.1:0", "-stun=false", "-http-port=-1")


# The relay, but its reads of files wait as those of a disk that does not answer: a pipe stands for it.
PATIENT_READER = """
import pathlib, sys
import fastderp.cli.signals as signals, fastderp.util.files as files
files.read = lambda path, **_: pathlib.Path(path).read_bytes()
signals.LIMIT_S = {limit_s}
from fastderp.cli.relay import main
main()
"""


def follow_a_file(tmp_path: Path, limit_s: float = 15.0) -> tuple[Path, list[str]]:
    """Return a list of keys and the command of a relay that follows it."""
    keys = tmp_path / "keys"
    keys.write_text(NodePrivate.generate().public_key.text + "\n")
    flags = [*QUIET, "-c", str(tmp_path / "relay.key"), "-allow-keys", str(keys)]
    return keys, [sys.executable, "-c", PATIENT_READER.format(limit_s=limit_s), *flags]


@contextmanager
def never_answering(keys: Path, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Put a pipe that nobody writes to in the file's place, and see to it that the relay reads it."""
    keys.unlink()
    os.mkfifo(keys)
    process.send_signal(signal.SIGHUP)
    opened: list[int] = []

    def is_read() -> bool:
        try:
            opened.append(os.open(keys, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # ENXIO: nobody has it open
            return False
        return True

    try:
        eventually(is_read)
        yield
    finally:
        for descriptor in opened:
            os.close(descriptor)


def wait_refusing(port: int) -> None:
    """Wait until nobody listens any more."""
    eventually(lambda: not is_served(port))


def no_proxy() -> dict[str, str]:
    """Return an environment where the way to this machine is straight."""
    return {**os.environ, "no_proxy": "127.0.0.1"}


def free_port() -> int:
    """Return a port that was free a moment ago, for a relay that cannot say which one it has."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def is_served(port: int) -> bool:
    """Whether somebody listens."""
    try:
        socket.create_connection(("127.0.0.1", port), 10).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_relay_that_hangs(tmp_path: Path, number: signal.Signals) -> None:
    keys, command = follow_a_file(tmp_path)
    with started(command) as running, never_answering(keys, running.process):
        running.process.send_signal(number)
        wait_refusing(running.port)
        assert running.process.poll() is None
        assert running.stop(number)[0] == -number


def test_a_relay_that_hangs_ends_by_itself_and_says_where(tmp_path: Path) -> None:
    keys, command = follow_a_file(tmp_path, limit_s=0.5)
    with started(command) as running:
        with never_answering(keys, running.process):
            code, _ = running.stop()
        assert code == 1
        assert re.search(
            r'^  File ".*key_lists\.py", line \d+ in ', "".join(running.lines), re.MULTILINE
        )


@pytest.mark.parametrize("closed", ["2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"])
def test_a_signal_ends_a_relay_whose_standard_streams_are_closed(
    tmp_path: Path, closed: str
) -> None:
    port = free_port()
    script = f'exec "$0" -c "$1" -a 127.0.0.1:{port} -stun=false {closed}'
    process = subprocess.Popen(["bash", "-c", script, str(COMMAND), str(tmp_path / "k")])
    try:
        eventually(lambda: is_served(port))
        streams = {os.readlink(f"/proc/{process.pid}/fd/{int(word[0])}") for word in closed.split()}
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert streams == {os.devnull}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_relay_that_still_waits_for_its_secret(
    tmp_path: Path, number: signal.Signals
) -> None:
    flags = (*QUIET, "-c", str(tmp_path / "k"), "-secrets-cache-dir", str(tmp_path / "cache"))
    with serving(b"") as silent:
        process = subprocess.Popen(
            [COMMAND, *flags, f"-secrets-url={silent.url}"], stderr=subprocess.PIPE, env=no_proxy()
        )
        try:
            eventually(lambda: silent.requests)
            process.send_signal(number)
            _, said = process.communicate(timeout=20)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 0
    assert said.endswith(b"stopping\n") and b"Traceback" not in said


def test_a_hangup_does_not_end_a_relay_that_has_nothing_to_reload(tmp_path: Path) -> None:
    with relay(*QUIET, "-c", str(tmp_path / "k")) as running:
        running.process.send_signal(signal.SIGHUP)
        line = running.process.stderr.readline() if running.process.stderr else b""
        assert line.endswith(b"nothing to reload\n")
        assert is_served(running.port)
        assert running.stop()[0] == 0
