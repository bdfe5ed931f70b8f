"""The end of `fastderp-relay` when a part hangs, its streams are closed, or it still starts."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.command import COMMAND, relay, started
from tests.kit.ports import free_ports, is_served
from tests.kit.relay import eventually
from tests.kit.service import serving

QUIET = ("-a", "127.0.0.1:0", "-stun=false", "-http-port=-1")


# The relay, with a close of its connections that never returns.
HANGING = """
import itertools, os, sys, time
import fastderp.cli.signals as signals
from fastderp.server.server import Server
async def close(self):
    os.write(2, b"hangs\\n")
    {hang}
Server.close = close
signals.LIMIT_S = {limit_s}
from fastderp.cli.relay import main
main()
"""


# before a program: the system refuses the thread of faulthandler's time limit
NO_WATCHDOG = """
import faulthandler
def refused(*_, **__):
    raise RuntimeError("unable to start watchdog thread")
faulthandler.dump_traceback_later = refused
"""


SLEEPS = "time.sleep(3600)"
# The loop of `sum` is in C and looks at no signal; every other thread waits for Python's lock.
NEVER_RUNS_A_HANDLER = "sum(itertools.repeat(0))"


def hanging(tmp_path: Path, limit_s: float = 15.0, hang: str = SLEEPS) -> list[str]:
    """Return the command of a relay whose shutdown hangs."""
    program = HANGING.format(limit_s=limit_s, hang=hang)
    return [sys.executable, "-c", program, *QUIET, "-c", str(tmp_path / "relay.key")]


def wait_for(line: bytes, process: subprocess.Popen[bytes]) -> None:
    """Wait until a relay has logged a text."""
    assert process.stderr is not None
    assert any(said.endswith(line) for said in process.stderr), line


def no_proxy() -> dict[str, str]:
    """Return an environment without a proxy for this machine."""
    return {**os.environ, "no_proxy": "127.0.0.1"}


@pytest.mark.parametrize("hang", [SLEEPS, NEVER_RUNS_A_HANDLER])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_relay_that_hangs(
    tmp_path: Path, number: signal.Signals, hang: str
) -> None:
    with started(hanging(tmp_path, hang=hang)) as running:
        running.process.send_signal(number)
        wait_for(b"hangs\n", running.process)
        assert running.process.poll() is None
        assert running.stop(number)[0] == -number


@pytest.mark.root
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="making a PID namespace needs root"
)
@pytest.mark.parametrize("hang", [SLEEPS, NEVER_RUNS_A_HANDLER])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_process_1_of_a_container_that_hangs(
    tmp_path: Path, number: signal.Signals, hang: str
) -> None:
    # The kernel ignores the default of a signal for such a process.
    command = ["unshare", "--pid", "--fork", "--kill-child", *hanging(tmp_path, hang=hang)]
    with started(command) as running:
        children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
        relay_id = int(children.read_text())
        os.kill(relay_id, number)
        wait_for(b"hangs\n", running.process)
        os.kill(relay_id, number)
        assert running.process.wait(60) == 128 + number


def test_a_relay_that_hangs_ends_by_itself_and_logs_where(tmp_path: Path) -> None:
    # A busy machine may take a second until it hangs.
    with started(hanging(tmp_path, limit_s=3.0)) as running:
        code, _ = running.stop()
        assert code == 1
        assert re.search(r'^  File "<string>", line 7 in close$', "".join(running.lines), re.M)


def test_a_relay_that_hangs_without_a_thread_left_ends_by_itself_too(tmp_path: Path) -> None:
    command = hanging(tmp_path, limit_s=0.5)
    command[2] = f"{NO_WATCHDOG}{command[2]}"
    with started(command) as running:
        assert running.stop()[0] == -signal.SIGALRM
        assert "Traceback" not in "".join(running.lines)


def test_a_file_that_cannot_be_read_to_its_end_does_not_delay_the_end(tmp_path: Path) -> None:
    # As on a network file system whose server is gone; the relay looks at its files in a thread.
    program = """
import sys, threading, time
from fastderp.util import files
def fingerprint(path, look=files.fingerprint):
    if threading.current_thread() is not threading.main_thread():
        print("looks", file=sys.stderr, flush=True)
        time.sleep(3600)
    return look(path)
files.fingerprint = fingerprint
from fastderp.cli.relay import main
main()
"""
    config = tmp_path / "relay.toml"
    config.write_text("")
    flags = (*QUIET, "-c", str(tmp_path / "k"), "-config", str(config), "-drain-time=0")
    with started([sys.executable, "-c", program, *flags]) as running:
        running.hears("looks")
        code, said = running.stop()
        assert code == 0, said


@pytest.mark.parametrize("closed", ["2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"])
def test_a_signal_ends_a_relay_whose_standard_streams_are_closed(
    tmp_path: Path, closed: str
) -> None:
    [port] = free_ports(1)
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
