"""The end of `fastderp-relay` when a part hangs, its streams are closed, or it still starts."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.command import COMMAND, relay, started
from tests.kit.relay import eventually
from tests.kit.service import serving

QUIET = ("-a", "127.0.0.1:0", "-stun=false", "-http-port=-1")


# The relay, with a close of its connections that never returns.
HANGING = """
import sys, time
import fastderp.cli.signals as signals
from fastderp.server.server import Server
async def close(self):
    time.sleep(3600)
Server.close = close
signals.LIMIT_S = {limit_s}
from fastderp.cli.relay import main
main()
"""


def hanging(tmp_path: Path, limit_s: float = 15.0) -> list[str]:
    """Return the command of a relay whose shutdown hangs."""
    program = HANGING.format(limit_s=limit_s)
    return [sys.executable, "-c", program, *QUIET, "-c", str(tmp_path / "relay.key")]


def wait_for(line: bytes, process: subprocess.Popen[bytes]) -> None:
    """Wait until a relay has logged a text."""
    assert process.stderr is not None
    assert any(said.endswith(line) for said in process.stderr), line


def no_proxy() -> dict[str, str]:
    """Return an environment without a proxy for this machine."""
    return {**os.environ, "no_proxy": "127.0.0.1"}


def free_port() -> int:
    """Return a port that was free a moment ago, for a relay that cannot report its port."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def is_served(port: int) -> bool:
    """Return whether a connection to the port is accepted."""
    try:
        socket.create_connection(("127.0.0.1", port), 10).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_relay_that_hangs(tmp_path: Path, number: signal.Signals) -> None:
    with started(hanging(tmp_path)) as running:
        running.process.send_signal(number)
        wait_for(b"stopping\n", running.process)
        assert running.process.poll() is None
        assert running.stop(number)[0] == -number


def test_a_relay_that_hangs_ends_by_itself_and_logs_where(tmp_path: Path) -> None:
    with started(hanging(tmp_path, limit_s=0.5)) as running:
        code, _ = running.stop()
        assert code == 1
        assert re.search(r'^  File "<string>", line 6 in close$', "".join(running.lines), re.M)


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
