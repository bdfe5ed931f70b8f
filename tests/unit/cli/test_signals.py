"""Signals that arrive while an earlier one is handled."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Each child gets the second signal at another line of the code that the first one runs.
PROGRAM = """
import asyncio, os, signal, sys
from fastderp.cli.signals import Signals

first, second, drain_s, n_children = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), 40

def run(at_line):
    n_lines = 0
    def trace(frame, event, argument):
        nonlocal n_lines
        n_lines += event == "line"
        if n_lines == at_line and event == "line":
            signal.raise_signal(second)
        return trace
    async def serve():
        ended = asyncio.get_running_loop().create_future()
        signals.attach(lambda number: ended.done() or ended.set_result(number), int, drain_s)
        sys.settrace(trace)
        signal.raise_signal(first)
        sys.settrace(None)
        await ended
        sys.settrace(trace)
        signals.close()
        sys.settrace(None)
        signals.detach()
    signals = Signals()
    signals.settle()
    asyncio.run(serve())
    print(n_lines, flush=True)
    signals.leave(0)

def forked(at_line, output):
    if not (child := os.fork()):
        os.dup2(output, 1)
        run(at_line)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

source, sink = os.pipe()
assert forked(0, sink) == 0
n_lines = int(os.read(source, 100))
step = max(1, n_lines // n_children)
print(*{forked(at_line, sink) for at_line in range(1, n_lines + 1, step)})
"""
TERM, INT = "15", "2"


@pytest.mark.parametrize("drain", ["0", "5"], ids=["no drain", "drain"])
@pytest.mark.parametrize("signals", [(INT, INT), (TERM, TERM), (INT, TERM), (TERM, INT)])
def test_a_second_signal_during_the_first_one_prints_no_traceback(
    signals: tuple[str, str], drain: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *signals, drain], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    # It may kill the process, by whichever of the two is handled last.
    assert set(map(int, done.stdout.split())) <= {0, *(-int(number) for number in signals)}
