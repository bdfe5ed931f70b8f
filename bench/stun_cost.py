"""CPU time per STUN answer of derper, fastderp and a floor, with 32 requests in flight.

    python -m bench.stun_cost --derper PATH [--rounds 3] [--seconds 3]

The relay has one core, the load another. The results are medians of the rounds; each round
measures all three, so that other work on the machine affects all. `lost` counts requests without
an answer. The floor is the least that any server does: receive 32 requests and send 32 answers
with one system call each. `python -m bench.stun_flood` sends more than a relay can answer.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.relays import BUILD, HERE, Relay, c_compiler, derper, fastderp, free_port, running
from fastderp.loadgen.process import Process

RELAY_CORE, LOAD_CORE = 0, 1


@dataclass(frozen=True, slots=True)
class Answers:
    """Counts of one load; `n_dropped` answers arrived, but the load was too slow for them."""

    n_sent: int
    n_answered: int
    n_dropped: int

    @property
    def n_lost(self) -> int:
        """Requests without an answer from the server."""
        return self.n_sent - self.n_answered - self.n_dropped


def load_command(program: Path, port: int, seconds: float, per_s: float = 0.0) -> list[str]:
    """Return the command of the load: `per_s` requests by schedule, or 32 in flight when it is 0."""
    return [str(program), str(port), str(seconds), *([str(per_s)] if per_s else [])]


def load(program: Path, port: int, seconds: float, per_s: float = 0.0) -> Answers:
    """Run the load of `load_command` and return its counts."""
    command = load_command(program, port, seconds, per_s)
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Answers(*map(int, said.split()))


def built(name: str) -> Path:
    """Compile a C program of bench/floor and return it."""
    BUILD.mkdir(parents=True, exist_ok=True)
    source, program = HERE / "floor" / f"{name}.c", BUILD / name
    subprocess.run([*c_compiler(), "-O2", "-o", program, source], check=True)
    return program


def measured(pid: int, port: int, program: Path, seconds: float) -> tuple[float, float, int]:
    """Load a server; return its CPU µs per answer, answers per second, and losses."""
    load(program, port, 0.2)
    process = Process(pid)
    before_s = process.cpu_s()
    answers = load(program, port, seconds)
    cost_us = (process.cpu_s() - before_s) / answers.n_answered * 1e6
    return cost_us, answers.n_answered / seconds, answers.n_lost


def relay_measured(relay: Relay, program: Path, seconds: float) -> tuple[float, float, int]:
    """Run a relay and measure it."""
    port = free_port(socket.SOCK_DGRAM)
    with running(with_stun(relay, port), cores=[RELAY_CORE]) as started:
        return measured(started.pid, port, program, seconds)


def with_stun(relay: Relay, port: int) -> Relay:
    """Return the relay with STUN on a port."""
    command = [flag for flag in relay.command if flag != "-stun=false"]
    return replace(relay, command=[*command, f"-stun-port={port}"])


def floor_measured(floor: Path, program: Path, seconds: float) -> tuple[float, float, int]:
    """Run the floor and measure it."""
    with floor_running(floor) as (pid, port):
        return measured(pid, port, program, seconds)


@contextmanager
def floor_running(floor: Path) -> Iterator[tuple[int, int]]:
    """Run the floor; yield its process and its port."""
    port = free_port(socket.SOCK_DGRAM)
    with subprocess.Popen(["taskset", "-c", str(RELAY_CORE), floor, str(port)]) as process:
        try:
            while f":{port:04X} " not in Path("/proc/net/udp").read_text():
                time.sleep(0.01)
            yield process.pid, port
        finally:
            process.kill()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--derper", help="binary to compare with; built when absent")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args(arguments)
    program, floor = built("stun_load"), built("stun_floor")
    os.sched_setaffinity(0, {LOAD_CORE})
    theirs, ours = derper(options.derper), fastderp()
    names = [f"derper {theirs.version}", f"fastderp {ours.version}", "floor"]
    rounds = [
        (
            relay_measured(theirs, program, options.seconds),
            relay_measured(ours, program, options.seconds),
            floor_measured(floor, program, options.seconds),
        )
        for _ in range(options.rounds)
    ]
    for name, results in zip(names, zip(*rounds, strict=True), strict=True):
        cost_us, per_s = (statistics.median(result[i] for result in results) for i in range(2))
        n_lost = sum(result[2] for result in results)
        print(f"{name}: {cost_us:.2f} µs CPU per answer, {per_s:.0f} answers/s, {n_lost} lost")
    for text, a, b in (("derper ÷ fastderp", 0, 1), ("fastderp ÷ floor", 1, 2)):
        print(f"{text}, per round:", ", ".join(f"{r[a][0] / r[b][0]:.2f}" for r in rounds))


if __name__ == "__main__":
    main()
