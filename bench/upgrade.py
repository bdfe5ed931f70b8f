"""How long clients are away while a relay is replaced: fastderp with -reuse-port, derper restarted.

    python -m bench.upgrade                       # 200 clients, three rounds
    python -m bench.upgrade --derper PATH --clients 50 --rounds 1
    python -m bench.upgrade --no-derper

A client is away from the end of its session to its next login. For fastderp a new process starts on
the same port, and the previous one gets SIGTERM when the new one is ready; derper gets SIGTERM and is
started again at once, as a service manager does. The same clients of the library reconnect with a
back-off from 0.1 to 1 s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.relay_process import RelayProcess
from bench.relays import RelayError, build_derper, free_port
from fastderp import Backoff, Connected, Disconnected, HTTPClient, NodePrivate

LIMIT_S = 60.0


@dataclass
class Result:
    """The seconds that the clients of one round were away.

    `n_failed` are those that were not back in time.
    """

    relay: str
    n_clients: int
    n_failed: int
    median_s: float
    longest_s: float


class Absence:
    """Measures how long one client is away."""

    def __init__(self, client: HTTPClient) -> None:
        self.client = client
        self.away_s: float | None = None
        self.is_back = asyncio.Event()
        self._left_s = 0.0

    async def follow(self) -> None:
        """Note the times of the events."""
        async for event in self.client.events():
            if isinstance(event, Disconnected):
                self._left_s = time.monotonic()
            elif isinstance(event, Connected) and self._left_s:
                self.away_s = time.monotonic() - self._left_s
                self.is_back.set()


async def measured(name: str, url: str, n_clients: int, replace: asyncio.Future[None]) -> Result:
    """Connect clients, let `replace` begin, and measure until all are back."""
    async with AsyncExitStack() as stack:
        absences = []
        for _ in range(n_clients):
            client = HTTPClient(
                url, NodePrivate.generate(), reconnect=True, backoff=Backoff(0.1, 1.0)
            )
            absences.append(Absence(client))
            await stack.enter_async_context(client)
        following = [asyncio.create_task(absence.follow()) for absence in absences]
        await asyncio.sleep(0)
        replace.set_result(None)
        try:
            async with asyncio.timeout(LIMIT_S):
                await asyncio.gather(*(absence.is_back.wait() for absence in absences))
        except TimeoutError:
            pass
        for task in following:
            task.cancel()
    times = [absence.away_s for absence in absences if absence.away_s is not None]
    return Result(
        name,
        n_clients,
        n_clients - len(times),
        round(statistics.median(times or [LIMIT_S]), 3),
        round(max(times, default=LIMIT_S), 3),
    )


async def fastderp(n_clients: int, drain_s: float) -> Result:
    """Replace a fastderp-relay by a new one on its port."""
    with tempfile.TemporaryDirectory() as directory:
        flags = ["-reuse-port", "-stun=false", "-c", f"{directory}/key", "-workers=1"]
        flags += ["-a", f"127.0.0.1:{free_port()}", f"-drain-time={drain_s}s"]
        previous = RelayProcess(flags)
        successor: RelayProcess | None = None
        try:
            await asyncio.to_thread(previous.wait_for, "ready")
            replace = asyncio.get_running_loop().create_future()
            url = f"http://127.0.0.1:{previous.port}/derp"
            measuring = asyncio.create_task(measured("fastderp", url, n_clients, replace))
            await replace
            successor = RelayProcess(flags)
            await asyncio.to_thread(successor.wait_for, "ready")
            previous.signal(signal.SIGTERM)
            result = await measuring
            code = await asyncio.to_thread(previous.wait, LIMIT_S)
            if code != 0:
                raise RuntimeError(f"the previous relay ended with {code}")
            return result
        finally:
            for one in (previous, successor):
                if one is not None:
                    one.close()


async def derper(binary: str, n_clients: int) -> Result:
    """Restart a derper."""
    with tempfile.TemporaryDirectory() as directory:
        port = free_port()
        command = [binary, "-c", f"{directory}/key", "-a", f"127.0.0.1:{port}", "-stun=false"]
        command += ["-http-port=-1"]

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

        process = start()
        try:
            await until_served(port)
            replace = asyncio.get_running_loop().create_future()
            url = f"http://127.0.0.1:{port}/derp"
            measuring = asyncio.create_task(measured("derper", url, n_clients, replace))
            await replace
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait)
            process = start()
            return await measuring
        finally:
            process.kill()
            process.wait()


async def until_served(port: int) -> None:
    """Wait until a port accepts."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


def problems(results: list[Result]) -> list[str]:
    """Return the failed checks."""
    found = [f"{one.relay}: {one.n_failed} clients are not back" for one in results if one.n_failed]
    ours = [one.longest_s for one in results if one.relay == "fastderp"]
    theirs = [one.longest_s for one in results if one.relay == "derper"]
    if theirs and statistics.median(ours) > statistics.median(theirs):
        found.append("a client is away longer than with derper")
    return found


async def run(n_clients: int, rounds: int, drain_s: float, binary: str) -> list[Result]:
    """Return the results of all rounds; `binary` is derper's, "" for none."""
    results = []
    for _ in range(rounds):
        results.append(await fastderp(n_clients, drain_s))
        if binary:
            results.append(await derper(binary, n_clients))
    return results


def main() -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--drain-s", type=float, default=10)
    parser.add_argument("--derper", type=Path, help="derper's binary; built with Go by default")
    parser.add_argument("--no-derper", action="store_true")
    arguments = parser.parse_args()
    try:
        binary = "" if arguments.no_derper else str(arguments.derper or build_derper())
    except RelayError as error:
        print(error, file=sys.stderr)
        return 1
    results = asyncio.run(run(arguments.clients, arguments.rounds, arguments.drain_s, binary))
    print(json.dumps([asdict(result) for result in results], indent=1))
    failed = problems(results)
    for problem in failed:
        print(problem, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
