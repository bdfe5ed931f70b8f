"""The rates of the client library, beside tailscale's own Go client.

    python -m bench.client_rate                    # every row, three rounds
    python -m bench.client_rate --n 50000 --rounds 1 --only recv --no-go
    python -m bench.client_rate --json results.json

Each measurement is one process that talks to `bench.measuring_peer` in another one; the compared
clients run one after another, round by round, and the median counts. Nothing limits the rate: the
peer sends, or reads, as fast as it can. `kpps` is packets per second of wall time until the peer has
all of them (sending) or the client has (receiving), in thousands, and `MB/s` their data; `CPU µs` is
the client's CPU time per packet, which other work on the machine disturbs less. `busy` is the CPU time
per second of wall time of client and peer: the one near 100 % limits the rate, and neither does on a
machine whose cores are busy with `other` work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.machine import Watch
from fastderp import HTTPClient, NodePrivate, ReceivedPacket
from fastderp.loadgen.process import Processes

ROOT = Path(__file__).parents[1]
GO_MODULE = ROOT / "tests" / "interop" / "go"

WAYS = {
    "send": ("send", "send_many"),
    "recv": ("recv", "recv_many"),
}
LOOPS = ("uvloop", "asyncio")
MANY = 64


async def send_one_by_one(client: HTTPClient, n: int, size: int) -> None:
    """Await `send` for each packet."""
    to, data = NodePrivate.generate().public_key, bytes(size)
    for _ in range(n):
        await client.send(to, data)


async def send_many(client: HTTPClient, n: int, size: int) -> None:
    """Await `send_many` for batches of packets."""
    to, data = NodePrivate.generate().public_key, bytes(size)
    batch = [(to, data)] * MANY
    for _ in range(n // MANY):
        await client.send_many(batch)
    await client.send_many(batch[: n % MANY])


async def receive_one_by_one(client: HTTPClient, n: int) -> None:
    """Await `recv` for each packet."""
    while n > 0:
        n -= isinstance(await client.recv(), ReceivedPacket)


async def receive_many(client: HTTPClient, n: int) -> None:
    """Await `recv_many` until `n` packets have come."""
    while n > 0:
        n -= sum(isinstance(message, ReceivedPacket) for message in await client.recv_many())


async def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure one way of one direction in this process."""
    n, size, way = arguments.n, arguments.size, arguments.way
    async with HTTPClient(arguments.url, NodePrivate.generate(), insecure=True) as client:
        if way in WAYS["send"]:
            started = clocks()
            await (send_one_by_one if way == "send" else send_many)(client, n, size)
            await receive_one_by_one(client, 1)  # the peer has all packets
        else:
            await receive_one_by_one(client, 1)
            started = clocks()
            await (receive_one_by_one if way == "recv" else receive_many)(client, n - 1)
        wall_s, cpu_s = (now - then for now, then in zip(clocks(), started, strict=True))
    return {"packets": n, "seconds": wall_s, "cpu_seconds": cpu_s}


def clocks() -> tuple[float, float]:
    """Return wall time and this process's CPU time, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), usage.ru_utime + usage.ru_stime


@contextmanager
def measuring_peer(certificates: str) -> Iterator[tuple[str, Processes]]:
    """Run the peer in another process; yield its URL and the process."""
    command = [sys.executable, "-m", "bench.measuring_peer", *filter(None, [certificates])]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        yield process.stdout.readline().strip(), Processes([process.pid])
        process.stdin.close()


def build_go(directory: str) -> str:
    """Build the Go client; return its path."""
    program = str(Path(directory) / "clientrate")
    environment = os.environ | {"GOFLAGS": "-mod=mod"}
    subprocess.run(
        ["go", "build", "-o", program, "./clientrate"], cwd=GO_MODULE, env=environment, check=True
    )
    return program


def run(command: list[str], peer: Processes, certificate: str) -> dict[str, float]:
    """Run a measuring process; return its output, and the work of peer and others meanwhile."""
    watch = Watch(sorted(os.sched_getaffinity(0)), peer)
    peer_s = peer.cpu_s()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"SSL_CERT_FILE": certificate},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout)
    other = {"peer_cpu_seconds": peer.cpu_s() - peer_s, "other": watch.foreign_share()}
    return result | other


def candidates(direction: str, go: str | None) -> list[tuple[str, list[str]]]:
    """Return the compared clients of one direction: names, and commands without the URL."""
    ours = [
        (
            f"fastderp {way} on {loop}",
            [sys.executable, "-m", "bench.client_rate", "--way", way, "--loop", loop],
        )
        for way in WAYS[direction]
        for loop in LOOPS
    ]
    return [*([("Go", [go, "-direction", direction])] if go else []), *ours]


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every row, round by round."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        go = None if arguments.no_go else build_go(directory)
        for transport in ("plain", "TLS"):
            certificates = directory if transport == "TLS" else ""
            trusted = str(Path(directory) / "127.0.0.1.crt")
            with measuring_peer(certificates) as (url, peer):
                for direction in WAYS:
                    if arguments.only not in f"{direction} {transport}":
                        continue
                    runs: dict[str, list[dict[str, float]]] = {}
                    for _ in range(arguments.rounds):
                        for name, command in candidates(direction, go):
                            query = f"?n={arguments.n}&size={arguments.size}"
                            result = run(
                                [
                                    *command,
                                    *("--n", str(arguments.n), "--size", str(arguments.size)),
                                    *("--url", f"{url}/{direction}{query}"),
                                ],
                                peer,
                                trusted,
                            )
                            runs.setdefault(name, []).append(result)
                    rows += summaries(direction, transport, arguments.size, runs)
    return rows


def summaries(
    direction: str, transport: str, size: int, runs: dict[str, list[dict[str, float]]]
) -> list[dict[str, Any]]:
    """Return a row for each client, with its ratio to Go's if that was measured."""

    def median(name: str, of: str) -> float:
        return statistics.median(run["packets"] / run[of] for run in runs[name])

    def busy(name: str, of: str) -> float:
        return round(statistics.median(run[of] / run["seconds"] for run in runs[name]), 2)

    return [
        {
            "direction": direction,
            "transport": transport,
            "client": name,
            "kpps": round(median(name, "seconds") / 1e3, 1),
            "mb_per_s": round(median(name, "seconds") * size / 1e6),
            "cpu_us": round(1e6 / median(name, "cpu_seconds"), 2),
            "to_go": round(median(name, "seconds") / median("Go", "seconds"), 2)
            if "Go" in runs
            else None,
            "cpu_to_go": round(median(name, "cpu_seconds") / median("Go", "cpu_seconds"), 2)
            if "Go" in runs
            else None,
            "busy": busy(name, "cpu_seconds"),
            "peer_busy": busy(name, "peer_cpu_seconds"),
            "other": round(statistics.median(run["other"] for run in runs[name]), 2),
        }
        for name in runs
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a Markdown table."""
    print("| | client | kpps | MB/s | × Go | CPU µs | × Go | busy: client | peer | other |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        rate, cpu = ("" if row[of] is None else f"{row[of]:.2f}" for of in ("to_go", "cpu_to_go"))
        print(
            f"| {row['direction']}, {row['transport']} | {row['client']} "
            f"| {row['kpps']:.0f} | {row['mb_per_s']} | {rate} | {row['cpu_us']:.2f} | {cpu} "
            f"| {row['busy']:.0%} | {row['peer_busy']:.0%} | {row['other']:.0%} |"
        )


def machine() -> dict[str, str]:
    """Return the environment of the numbers."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(": ")[2] for line in cpus if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "n_cpus": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "uvloop": version("uvloop"),
    }


def main() -> None:
    """Compare, or measure one way as a child process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=200_000, help="packets per measurement")
    parser.add_argument("--size", type=int, default=1400, help="bytes of data in a packet")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", metavar="TEXT", help="rows such as `send TLS`, recv")
    parser.add_argument("--no-go", action="store_true", help="measure without the Go client")
    parser.add_argument("--json", help="write machine and rows to this file as well")
    for internal in ("--url", "--way", "--loop"):
        parser.add_argument(internal, default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.url:
        print(json.dumps(run_on(arguments.loop, measure(arguments))))
        return
    rows = compare(arguments)
    show(rows)
    if arguments.json:
        result = {"machine": machine(), "command": " ".join(sys.argv), "rows": rows}
        Path(arguments.json).write_text(json.dumps(result, indent=1))


def run_on(loop: str, coroutine: Any) -> dict[str, float]:
    """Run a coroutine on the event loop of this name."""
    if loop == "uvloop":
        import uvloop

        result: dict[str, float] = uvloop.run(coroutine)
        return result
    return asyncio.run(coroutine)


if __name__ == "__main__":
    main()
