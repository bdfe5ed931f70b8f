"""The installed `fastderp-relay` as a process; a helper kills it by id after the test."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastderp.wire.keys import NodePublic
from tests.kit.peer import Peer

COMMAND = Path(sys.executable).with_name("fastderp-relay")
# for what takes a second on an idle machine
PATIENCE_S = 60.0


@dataclass
class RunningRelay:
    """A relay that serves; `lines` are its log lines up to that point."""

    process: subprocess.Popen[bytes]
    lines: list[str] = field(default_factory=list)

    @property
    def said(self) -> str:
        """All log lines so far, without their timestamps."""
        return "".join(line[20:] for line in self.lines)

    def find(self, pattern: str) -> str:
        """Return the first group of a pattern in its log."""
        match = re.search(pattern, self.said)
        assert match, f"{pattern!r} is not in:\n{self.said}"
        return match[1]

    @property
    def port(self) -> int:
        """The first TCP port it serves."""
        return int(self.find(r"serves https? on \S+?:(\d+)[,;]"))

    @property
    def public_key(self) -> NodePublic:
        """The relay's public key."""
        return NodePublic.from_text(self.find(r"public key (nodekey:[0-9a-f]{64})"))

    @property
    def stun_port(self) -> int:
        """The relay's UDP port for STUN."""
        return int(self.find(r"STUN on UDP (\d+)"))

    def varz(self, scheme: str = "http") -> str:
        """Return the page of its metrics, whoever signed the certificate."""
        context = ssl._create_unverified_context() if scheme == "https" else None
        url = f"{scheme}://127.0.0.1:{self.port}/debug/varz"
        with urllib.request.urlopen(url, timeout=10, context=context) as page:
            return str(page.read().decode())

    def hears(self, text: str) -> str:
        """Wait until the relay logs a line with this text; return the line."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.decode())
            if text in self.lines[-1]:
                return self.lines[-1]
        raise AssertionError(f"{text!r} is not in:\n{self.said}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; return the exit code and the output."""
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=PATIENCE_S)
        self.lines += rest.decode().splitlines(keepends=True)
        return self.process.returncode, self.said


def log_in(running: RunningRelay, **info: object) -> Peer:
    """Return a client that is logged in over plain TCP; `info` are members of its ClientInfo."""
    peer = Peer.connect("127.0.0.1", running.port, None, PATIENCE_S)
    peer.login(running.public_key, json=json.dumps({"version": 2, **info}).encode())
    return peer


def refused(*flags: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run the command with flags that it refuses; return its exit code and its output."""
    done = subprocess.run(
        [COMMAND, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        env=_environment(env),
    )
    return done.returncode, done.stdout


@contextlib.contextmanager
def relay(*flags: str, env: dict[str, str] | None = None) -> Iterator[RunningRelay]:
    """Run the command until the block ends; it serves when the block begins."""
    with started([str(COMMAND), *flags], env) as running:
        yield running


@contextlib.contextmanager
def started(
    command: list[str], env: dict[str, str] | None = None, *, pass_fds: Sequence[int] = ()
) -> Iterator[RunningRelay]:
    """Run a command that executes the relay, as `relay` does."""
    # Unbuffered: a line read ahead here would be lost to `stop`.
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, bufsize=0, env=_environment(env), pass_fds=pass_fds
    )
    running = RunningRelay(process)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            running.lines.append(line.decode())
            if b"ready" in line:
                break
        else:
            raise AssertionError(
                f"{command[0]} ended with {process.wait()}:\n{''.join(running.lines)}"
            )
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def manual(directory: Path, hostname: str) -> tuple[str, ...]:
    """Return the flags of a relay whose certificate is in the files of a directory."""
    return ("-certmode", "manual", "-certdir", str(directory), "-hostname", hostname)


def command_with_upkeep_every(seconds: float) -> list[str]:
    """Return a command line of `fastderp-relay` with a shorter interval of its 10 s maintenance."""
    program = f"""
import sys
import urllib.request
from fastderp.cli.relay import main
from fastderp.server.observe import maintenance
maintenance.INTERVAL_S = {seconds}
sys.exit(main())
"""
    return [sys.executable, "-c", program]


def _environment(extra: dict[str, str] | None) -> dict[str, str]:
    return {**os.environ, **(extra or {})}
