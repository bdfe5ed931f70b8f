"""`fastderp-relay` with a log that blocks or fails: it serves and counts the lost lines."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastderp.wire.keys import NodePrivate, NodePublic
from tests.kit.command import COMMAND, started
from tests.kit.peer import Peer
from tests.kit.ports import free_ports, is_served
from tests.kit.relay import eventually
from tests.kit.stun import is_answered

# A relay whose event loop reports an error without an exception, then makes the file $REPORTED.
WITH_A_REPORT = """
import asyncio, os, sys
from fastderp.cli.relay import main
from fastderp.server.observe import maintenance
from fastderp.server.observe.connection_log import ConnectionLog
maintenance.INTERVAL_S = 0.01
def report(self):
    del ConnectionLog.sum_up
    asyncio.get_running_loop().call_exception_handler({"message": "of the loop\\nand more"})
    open(os.environ["REPORTED"], "w").close()
ConnectionLog.sum_up = report
sys.exit(main())
"""
PROGRAM = [sys.executable, "-c", WITH_A_REPORT]


class Unread:
    """A relay with a full pipe as standard error."""

    def __init__(
        self, process: subprocess.Popen[bytes], port: int, stun_port: int, key_file: Path
    ) -> None:
        self.process, self.port, self.stun_port = process, port, stun_port
        self.key_file = key_file

    @property
    def public_key(self) -> NodePublic:
        """The relay's public key, from its key file: its log line cannot be written."""
        return NodePrivate.from_text(json.loads(self.key_file.read_text())["PrivateKey"]).public_key

    def lost(self) -> int:
        """Return the relay's count of lost log lines."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/debug/varz", timeout=10) as page:
            found = re.search(r"^fastderp_log_lines_lost_total (\d+)$", page.read().decode(), re.M)
        assert found
        return int(found[1])


@contextmanager
def unread(
    tmp_path: Path, stderr: int, command: Sequence[str] = (str(COMMAND),)
) -> Iterator[Unread]:
    """Run a relay with this standard error in the block; it serves when the block begins."""
    [port], [stun_port] = free_ports(1), free_ports(1, socket.SOCK_DGRAM)
    flags = ("-a", f"127.0.0.1:{port}", "-stun-port", str(stun_port), "-c", str(tmp_path / "k"))
    # Each login and each departure logs one or two lines.
    process = subprocess.Popen(
        [*command, *flags],
        stderr=stderr,
        env={**os.environ, "DERP_DEBUG_LOGS": "1", "REPORTED": str(tmp_path / "reported")},
    )
    try:
        eventually(lambda: is_served(port))
        yield Unread(process, port, stun_port, tmp_path / "k")
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writing, bytes(1024))
    os.set_blocking(writing, True)
    yield reading, writing
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stalled_log_reader_delays_neither_logins_nor_stun_nor_signals(
    tmp_path: Path, full_pipe: tuple[int, int], number: signal.Signals
) -> None:
    with unread(tmp_path, full_pipe[1]) as running:
        for _ in range(20):
            with Peer.connect("127.0.0.1", running.port, None, 10) as peer:
                peer.login(running.public_key)
        assert is_answered("127.0.0.1", running.stun_port)
        running.process.send_signal(signal.SIGHUP)
        assert running.lost() == 0  # these lines wait for the reader
        running.process.send_signal(number)
        assert running.process.wait(20) == 0


@pytest.mark.parametrize("gone", ["reader", "room on the disk"])
def test_lines_that_cannot_be_written_are_counted(tmp_path: Path, gone: str) -> None:
    if gone == "reader":
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open("/dev/full", os.O_WRONLY)
    try:
        with unread(tmp_path, writing) as running:
            eventually(lambda: running.lost() >= 4)  # of the start
            running.process.terminate()
            assert running.process.wait(20) == 0
    finally:
        os.close(writing)


def test_a_stalled_reader_does_not_block_the_reports_of_the_event_loop(
    tmp_path: Path, full_pipe: tuple[int, int]
) -> None:
    with unread(tmp_path, full_pipe[1], PROGRAM) as running:
        eventually((tmp_path / "reported").exists)
        running.process.terminate()
        assert running.process.wait(20) == 0


def test_a_report_of_the_event_loop_is_a_line_with_its_time(tmp_path: Path) -> None:
    flags = ("-a", "127.0.0.1:0", "-stun=false", "-c", str(tmp_path / "k"))
    with started([*PROGRAM, *flags], {"REPORTED": str(tmp_path / "reported")}) as running:
        eventually((tmp_path / "reported").exists)
        running.stop()
    assert [line for line in running.said.splitlines() if "of the loop" in line] == [
        r"of the loop\nand more"
    ]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S", line) for line in running.lines)
