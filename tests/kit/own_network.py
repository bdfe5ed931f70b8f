"""Runs a relay in a network namespace with a test nameserver and asks it for `/bootstrap-dns`.

It is the program `unshare --user --map-root-user --mount --net python -m tests.kit.own_network`,
which reads a `Trial` as JSON from its standard input.
"""

from __future__ import annotations

import fcntl
import json
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

from tests.kit.nameserver import Records, nameserver

BECOME_ROOT = ("unshare", "--user", "--map-root-user", "--mount", "--net")
URL = "http://127.0.0.1:3340"
PATIENCE_S = 20.0

SIOCSIFFLAGS = 0x8914
IFF_UP = 1


@dataclass
class Trial:
    """The relay to run and the questions to ask it.

    Args:
        program: the relay's command; it gets -dev.
        flags: more flags.
        records: the nameserver's table.
        until: names that the relay must publish before the questions begin.
        questions: `q` of each request; "" for none.
    """

    program: str
    flags: list[str]
    records: Records
    until: list[str]
    questions: list[str]


@dataclass
class Outcome:
    """The status, type and body of every answer, and the change of the relay's counters."""

    answers: list[tuple[int, str, str]]
    counted: dict[str, int]


def is_possible() -> bool:
    """Return whether this system permits network namespaces."""
    try:
        return (
            subprocess.run([*BECOME_ROOT, "true"], capture_output=True, timeout=20).returncode == 0
        )
    except OSError:
        return False


def outcome_of(trial: Trial) -> Outcome:
    """Run a trial; raise CalledProcessError with its output when it fails."""
    done = subprocess.run(
        [*BECOME_ROOT, sys.executable, "-m", __name__],
        input=json.dumps(asdict(trial)),
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return Outcome(**json.loads(done.stdout))


def _is_published(name: str) -> bool:
    answer = _ask(name)
    return answer is not None and f'"{name}"' in answer[2]


def main() -> None:
    """Run the trial on the input and print its outcome."""
    trial = Trial(**json.load(sys.stdin))
    with nameserver(trial.records, *prepared()), tempfile.TemporaryFile() as said:
        relay = subprocess.Popen([trial.program, "-dev", "-stun=false", *trial.flags], stderr=said)
        try:
            _wait(lambda: _ask("") is not None)
            for name in trial.until:
                _wait(partial(_is_published, name))
            before = _counters()
            answers = [_ask(question) for question in trial.questions]
            counted = {name: value - before[name] for name, value in _counters().items()}
            json.dump({"answers": answers, "counted": counted}, sys.stdout)
        finally:
            relay.kill()
            relay.wait()


def prepared() -> tuple[str, int]:
    """Bring the network up; return the nameserver's address in /etc/resolv.conf."""
    with socket.socket() as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
    with tempfile.NamedTemporaryFile("w", prefix="resolv.conf") as file:
        file.write("nameserver 127.0.0.1\n")
        file.flush()
        subprocess.run(["mount", "--bind", file.name, "/etc/resolv.conf"], check=True)
    return "127.0.0.1", 53


def _ask(name: str) -> tuple[int, str, str] | None:
    query = f"?q={name}" if name else ""
    try:
        with urllib.request.urlopen(f"{URL}/bootstrap-dns{query}") as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except OSError:
        return None


def _counters() -> dict[str, int]:
    with urllib.request.urlopen(f"{URL}/debug/varz") as answer:
        text = answer.read().decode()
    return {
        name: int(value)
        for name, value in re.findall(r"^(bootstrap_dns_\w+) (\d+)$", text, re.MULTILINE)
    }


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the relay does not serve the names")
        time.sleep(0.01)


if __name__ == "__main__":
    main()
