"""Floods STUN beyond derper's peak: the answers that are lost, and the delay of relayed packets.

    python -m bench.stun_flood --derper PATH [--only losses|delays] [--rounds 3] [--seconds 10]
                               [--packets 10000]

A round measures derper's peak with 32 requests in flight. Then it sends requests to derper,
fastderp and the floor by schedule, at the peak and at twice the peak, and counts those without an
answer. Then it sends relayed packets at a fixed rate through both relays, without a flood and with
both floods. A relay has one core, the loads share another, where the packets' load goes first: the
delay is to be that of the relay. `sent` is the rate of requests that the load reached. The results
are medians of the rounds.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from bench.lab import Lab
from bench.relays import Relay, derper, fastderp, free_port, running
from bench.stun_cost import (
    LOAD_CORE,
    RELAY_CORE,
    Answers,
    built,
    floor_running,
    load,
    load_command,
    with_stun,
)

FACTORS = (1, 2)  # of derper's peak
WARMUP_S = 0.2


class Loss(NamedTuple):
    """What became of a flood."""

    sent_per_s: float
    lost: float  # the share of the sent requests

    @classmethod
    def of(cls, answers: Answers, seconds: float) -> Loss:
        """Return the rate and the loss of a load of `seconds`."""
        return cls(answers.n_sent / seconds, answers.n_lost / max(1, answers.n_sent))


class Delay(NamedTuple):
    """The delay of relayed packets, and the rate of the requests meanwhile."""

    p50_us: float
    p99_us: float
    packets_per_s: float
    sent_per_s: float


Row = TypeVar("Row", Loss, Delay)


class Tools(NamedTuple):
    """The programs of a run, and its times."""

    program: Path
    floor: Path
    seconds: float
    packets_per_s: float


def peak(relay: Relay, tools: Tools) -> float:
    """Return the answers per second that a relay gives with 32 requests in flight."""
    port = free_port(socket.SOCK_DGRAM)
    with running(with_stun(relay, port), cores=[RELAY_CORE]):
        load(tools.program, port, WARMUP_S)
        return load(tools.program, port, tools.seconds).n_answered / tools.seconds


def losses(port: int, peak_per_s: float, tools: Tools) -> list[Loss]:
    """Flood a server with each factor of the peak."""
    load(tools.program, port, WARMUP_S)
    return [
        Loss.of(load(tools.program, port, tools.seconds, factor * peak_per_s), tools.seconds)
        for factor in FACTORS
    ]


def relay_losses(relay: Relay, peak_per_s: float, tools: Tools) -> list[Loss]:
    """Run a relay and flood it."""
    port = free_port(socket.SOCK_DGRAM)
    with running(with_stun(relay, port), cores=[RELAY_CORE]):
        return losses(port, peak_per_s, tools)


def floor_losses(peak_per_s: float, tools: Tools) -> list[Loss]:
    """Run the floor and flood it."""
    with floor_running(tools.floor) as (_, port):
        return losses(port, peak_per_s, tools)


def delays(relay: Relay, peak_per_s: float, tools: Tools) -> list[Delay]:
    """Relay packets without a flood, and with each factor of the peak."""
    return [delay(relay, factor * peak_per_s, tools) for factor in (0, *FACTORS)]


def delay(relay: Relay, per_s: float, tools: Tools) -> Delay:
    """Relay packets during a flood of `per_s` requests."""
    port = free_port(socket.SOCK_DGRAM)
    lab = Lab(RELAY_CORE, LOAD_CORE, tools.seconds)
    # The flood begins before the packets and ends after them.
    seconds = tools.seconds + 2.0
    with running(with_stun(relay, port), cores=[RELAY_CORE]) as started:
        flood = None
        if per_s:
            command = load_command(tools.program, port, seconds, per_s)
            flood = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            os.sched_setscheduler(flood.pid, os.SCHED_IDLE, os.sched_param(0))
        result = lab.load(started, relay, "pairs-10", "--rate", str(tools.packets_per_s))
        n_sent = int(flood.communicate()[0].split()[0]) if flood else 0
    latency = result["latency"]
    return Delay(latency["p50_us"], latency["p99_us"], result["packets_per_s"], n_sent / seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--derper", help="binary to compare with; built when absent")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--only", choices=("losses", "delays"), help="one half of a round")
    parser.add_argument("--packets", type=float, default=10_000.0, help="relayed per second")
    options = parser.parse_args(arguments)
    tools = Tools(built("stun_load"), built("stun_floor"), options.seconds, options.packets)
    os.sched_setaffinity(0, {LOAD_CORE})
    theirs, ours = derper(options.derper), fastderp()
    relays = {f"{relay.name} {relay.version}": relay for relay in (theirs, ours)}
    peaks: list[float] = []
    lost: dict[str, list[list[Loss]]] = {}
    delayed: dict[str, list[list[Delay]]] = {}
    for _ in range(options.rounds):
        peaks.append(peak(theirs, tools))
        if options.only != "delays":
            for name, relay in relays.items():
                lost.setdefault(name, []).append(relay_losses(relay, peaks[-1], tools))
            lost.setdefault("floor", []).append(floor_losses(peaks[-1], tools))
        if options.only != "losses":
            for name, relay in relays.items():
                delayed.setdefault(name, []).append(delays(relay, peaks[-1], tools))
    print(f"derper's peak: {statistics.median(peaks):.0f} answers/s (32 in flight)")
    for name, rounds in lost.items():
        print_rows(name, FACTORS, rounds, lost_text)
    for name, slow in delayed.items():
        print_rows(name, (0, *FACTORS), slow, delay_text)


def print_rows(
    name: str,
    factors: Sequence[int],
    rounds: Sequence[Sequence[Row]],
    text: Callable[[Sequence[Row]], str],
) -> None:
    """Print one line for each factor of the peak."""
    for factor, results in zip(factors, zip(*rounds, strict=True), strict=True):
        print(f"{name:18} {factor} × peak: {text(results)}", flush=True)


def lost_text(results: Sequence[Loss]) -> str:
    """Return the medians of several floods, and the range of the loss."""
    shares = [100 * result.lost for result in results]
    return (
        f"{statistics.median(result.sent_per_s for result in results):8.0f} sent/s, "
        f"{statistics.median(shares):.2f} % lost ({min(shares):.2f}–{max(shares):.2f})"
    )


def delay_text(results: Sequence[Delay]) -> str:
    """Return the medians of several runs, and the range of the 99th percentile."""
    p99s = [result.p99_us for result in results]
    return (
        f"{statistics.median(result.sent_per_s for result in results):8.0f} sent/s beside "
        f"{statistics.median(result.packets_per_s for result in results):.0f} packets/s: "
        f"p50 {statistics.median(result.p50_us for result in results):.0f} µs, "
        f"p99 {statistics.median(p99s):.0f} µs ({min(p99s):.0f}–{max(p99s):.0f})"
    )


if __name__ == "__main__":
    main()
