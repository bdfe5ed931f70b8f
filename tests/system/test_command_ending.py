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

from fastderp.keys import NodePrivate
from tests.kit.command import relay, started
from tests.kit.relay import eventually

QUIET = ("-a", "127.0.0.1:0", "-stun=false", "-http-port=-1")


def follow_a_file(tmp_path: Path) -> tuple[Path, list[str]]:
    """Return a list of keys and the flags of a relay that follows it."""
    keys = tmp_path / "keys"
    keys.write_text(NodePrivate.generate().public().text + "\n")
    return keys, [*QUIET, "-c", str(tmp_path / "relay.key"), "-allow-keys", str(keys)]


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

    def is_refused() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 10).close()
        except ConnectionRefusedError:
            return True
        return False

    eventually(is_refused)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_relay_that_hangs(tmp_path: Path, number: signal.Signals) -> None:
    keys, flags = follow_a_file(tmp_path)
    with relay(*flags) as running, never_answering(keys, running.process):
        running.process.send_signal(number)
        wait_refusing(running.port)
        assert running.process.poll() is None
        assert running.stop(number)[0] == -number


def test_a_relay_that_hangs_ends_by_itself_and_says_where(tmp_path: Path) -> None:
    keys, flags = follow_a_file(tmp_path)
    impatient = "import fastderp.cli.ending as ending, fastderp.cli.relay as relay, sys; ending.LIMIT_S = 0.5; sys.exit(relay.main())"
    with started([sys.executable, "-c", impatient, *flags]) as running:
        with never_answering(keys, running.process):
            code, _ = running.stop()
        assert code == 1
        assert re.search(r'^  File ".*keylists\.py", line \d+ in ', "".join(running.lines), re.MULTILINE)
