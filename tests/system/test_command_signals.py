"""Signals to `fastderp-relay` at any moment from its first line to its last."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit.command import COMMAND
from tests.kit.relay import eventually

N_RUNS = int(os.environ.get("FASTDERP_TEST_SIGNAL_RUNS", "200"))
# from the first line to "ready", and from the signal to the end, on a busy machine
START_S, END_S = 0.6, 0.15
# killed by the second of two signals that end it
KILLED = {-signal.SIGTERM, -signal.SIGINT}


@contextmanager
def settled(tmp_path: Path, *wrapper: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a relay in the block, which begins as soon as the signal handlers are set."""
    flags = ("-a", "127.0.0.1:0", "-stun=false", "-c", str(tmp_path / f"k{time.monotonic_ns()}"))
    process = subprocess.Popen([*wrapper, COMMAND, *flags], stderr=subprocess.PIPE)
    try:
        while not catches(process.pid, signal.SIGTERM):
            assert process.poll() is None
            time.sleep(0.001)
        yield process
    finally:
        process.kill()
        process.communicate()


def catches(pid: int, number: signal.Signals) -> bool:
    """Return whether a process has its own handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(caught, 16) >> (number - 1) & 1)


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Return the exit code and the output of a relay that ends by itself."""
    _, said = process.communicate(timeout=30)
    return process.returncode, said.decode()


@pytest.mark.timeout(600)
def test_a_signal_at_any_moment_gives_a_documented_exit_code(tmp_path: Path) -> None:
    draw = random.Random(38)
    hup, term, interrupt = signal.SIGHUP, signal.SIGTERM, signal.SIGINT
    kinds = [(term,), (interrupt,), (hup, term), (hup, term, hup), (term, hup), (term, interrupt)]

    def run(number: int) -> str | None:
        signals = kinds[number % len(kinds)]
        moments = [draw.uniform(0, START_S)]
        moments += [draw.choice((0.0, draw.uniform(0, END_S))) for _ in signals[1:]]
        with settled(tmp_path) as process:
            for one, moment in zip(signals, moments, strict=True):
                time.sleep(moment)
                process.send_signal(one)  # a no-op when it has ended
            code, said = ended(process)
        n_ending = sum(one != hup for one in signals)
        documented = {0} if n_ending == 1 else {0, *KILLED}
        if code in documented and "Traceback" not in said and "race" not in said:
            return None
        return f"{signals} after {moments}: {code}\n{said}"

    with ThreadPoolExecutor(4) as pool:
        failures = [failure for failure in pool.map(run, range(N_RUNS)) if failure]
    assert not failures, "\n".join(failures)


def test_hangups_until_the_last_moment_do_not_change_the_exit_code(tmp_path: Path) -> None:
    def run(_: int) -> tuple[int, str]:
        with settled(tmp_path) as process:
            process.send_signal(signal.SIGTERM)
            while process.poll() is None:
                process.send_signal(signal.SIGHUP)
            return ended(process)

    with ThreadPoolExecutor(2) as pool:
        assert {code for code, _ in pool.map(run, range(10))} == {0}


def test_a_hangup_while_it_starts_is_not_lost(tmp_path: Path) -> None:
    with settled(tmp_path) as process:
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        said = iter(process.stderr.readline, b"")
        next(line for line in said if line.endswith(b"ready\n"))
        assert b"reload" in next(said)
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0


def test_signal_handlers_are_set_before_slow_imports() -> None:
    program = """
import sys
from fastderp.cli import signals
class Watched(signals.Signals):
    def settle(self):
        print(*sorted(name for name in sys.modules if name.startswith("fastderp")))
        print(*{"asyncio", "cryptography", "logging", "ssl", "typing"} & set(sys.modules))
        sys.exit()
signals.SIGNALS = Watched()
from fastderp.cli.relay import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30
    )
    assert done.stdout.splitlines() == [
        "fastderp fastderp.cli fastderp.cli.relay fastderp.cli.signals",
        "",
    ], done.stderr


@pytest.mark.root
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="making a PID namespace needs root"
)
def test_process_1_of_a_container_ends_by_a_signal_during_its_imports(tmp_path: Path) -> None:
    children: list[int] = []

    def is_settled(parent: int) -> bool:
        children[:] = map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
        return bool(children) and catches(children[0], signal.SIGTERM)

    flags = ("-a", "127.0.0.1:0", "-stun=false", "-c", str(tmp_path / "k"))
    unshare = ("unshare", "--pid", "--fork", "--kill-child")
    process = subprocess.Popen([*unshare, COMMAND, *flags], stderr=subprocess.PIPE)
    try:
        eventually(lambda: is_settled(process.pid))
        os.kill(children[0], signal.SIGTERM)
        assert ended(process)[0] == 0
    finally:
        process.kill()
        process.communicate()
