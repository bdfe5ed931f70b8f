"""Long runs of a relay's life under load: reloads, drains, and a drain to another relay.

    python -m bench.life reloads                  # 1,000 reloads while clients talk
    python -m bench.life drains                   # 50 drains while clients talk and one reads late
    python -m bench.life region                   # 10,000 clients go to the region's other relay
    python -m bench.life reloads --n 20

Each starts `fastderp-relay` as a process, prints its numbers as JSON and exits with 1 when a check
fails. The tests run each, smaller.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from bench.relay_process import RelayProcess, relay
from fastderp import (
    ConnectionClosed,
    HTTPClient,
    NodePrivate,
    ReceivedPacket,
    ServerRestarting,
)
from fastderp.server.certificates.manual import manual_certificate

PACKET_BYTES = 1400
# A relay ends within this time after its drain: its clients close at once.
END_S = 5.0


class Result(Protocol):
    """The measured values of a run."""

    @property
    def problems(self) -> list[str]:
        """The failed checks."""


async def settled_files(running: RelayProcess) -> int:
    """Return the number of its open descriptors, without files that it reads at the moment."""
    counts = []
    for _ in range(5):
        counts.append(running.n_files)
        await asyncio.sleep(0.01)
    return min(counts)


# Reloads


@dataclass
class ReloadsResult:
    """The result of `under_reloads`; growth is measured from the tenth part of the reloads on."""

    n_reloads: int
    n_certificates: int
    n_sent: int
    n_lost: int
    n_twice: int
    files_grown: int
    grown_kib: int
    n_errors: int

    @property
    def problems(self) -> list[str]:
        """The failed checks."""
        found = []
        if self.n_lost or self.n_twice:
            found.append(f"{self.n_lost} packets lost, {self.n_twice} arrived twice")
        if self.files_grown > 0:
            found.append(f"{self.files_grown} descriptors more than before")
        if self.grown_kib > 8 << 10:
            found.append(f"memory grew by {self.grown_kib} KiB")
        if self.n_errors:
            found.append(f"{self.n_errors} reloads of a part failed")
        return found


class Talk:
    """Packets from one client to another, each sent when the previous ones have arrived."""

    WINDOW = 16

    def __init__(self, sender: HTTPClient, receiver: HTTPClient) -> None:
        self.n_sent = 0
        self.arrived: Counter[int] = Counter()
        self._sender, self._receiver = sender, receiver
        self._room = asyncio.Semaphore(self.WINDOW)
        self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._receive())]

    async def _send(self) -> None:
        body = bytes(PACKET_BYTES - 8)
        while True:
            await self._room.acquire()
            self.n_sent += 1
            await self._sender.send(self._receiver.public_key, self.n_sent.to_bytes(8) + body)
            await asyncio.sleep(0)

    async def _receive(self) -> None:
        async for message in self._receiver:
            if isinstance(message, ReceivedPacket):
                self.arrived[int.from_bytes(message.data[:8])] += 1
                self._room.release()

    async def stop(self) -> None:
        """Send no more, and wait for the packets under way."""
        self._tasks[0].cancel()
        for _ in range(100):
            if len(self.arrived) >= self.n_sent:
                break
            await asyncio.sleep(0.05)
        self._tasks[1].cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def n_lost(self) -> int:
        return self.n_sent - len(self.arrived)

    @property
    def n_twice(self) -> int:
        return sum(count > 1 for count in self.arrived.values())


async def under_reloads(n_reloads: int, n_pairs: int = 4) -> ReloadsResult:
    """Send SIGHUP repeatedly, with changed files, while clients talk over TLS."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        manual_certificate(directory, "127.0.0.1")
        keys = [NodePrivate.generate() for _ in range(2 * n_pairs)]
        allowed, rates = directory / "allowed", directory / "rates.json"
        listed = "".join(f"{key.public_key.text}\n" for key in keys)
        allowed.write_text(listed)
        rates.write_text("{}")
        flags = ["-a", "127.0.0.1:0", "-http-port=-1", "-stun=false", "-workers=1"]
        flags += ["-c", str(directory / "key"), "-certmode=manual", f"-certdir={directory}"]
        flags += ["-hostname=127.0.0.1", "-allow-keys", str(allowed), "-rate-config", str(rates)]
        with relay(*flags) as running:
            async with talking(running, keys) as talks:
                n_certificates, files, kib = 0, running.n_files, running.resident_kib
                for n in range(1, n_reloads + 1):
                    allowed.write_text(f"{listed}{NodePrivate.generate().public_key.text}\n")
                    rate = random.randrange(10**9, 2 * 10**9)
                    rates.write_text(json.dumps({"PerClientRateLimitBytesPerSec": rate}))
                    if n % 10 == 0:
                        for path in (directory / "127.0.0.1.key", directory / "127.0.0.1.crt"):
                            path.unlink()
                        manual_certificate(directory, "127.0.0.1")
                        n_certificates += 1
                    running.signal(signal.SIGHUP)
                    await asyncio.to_thread(running.wait_for, "reload: admission: ", n)
                    await asyncio.to_thread(running.wait_for, "reload: certificate: ", n)
                    await asyncio.to_thread(running.wait_for, "reload: limits: ", n)
                    if n == max(1, n_reloads // 10):
                        files, kib = await settled_files(running), running.resident_kib
                files_grown = await settled_files(running) - files
                grown_kib = running.resident_kib - kib
                for talk in talks:
                    await talk.stop()
            return ReloadsResult(
                n_reloads,
                n_certificates,
                sum(talk.n_sent for talk in talks),
                sum(talk.n_lost for talk in talks),
                sum(talk.n_twice for talk in talks),
                files_grown,
                grown_kib,
                running.count("stays in force") + running.count("internal error"),
            )


@asynccontextmanager
async def talking(running: RelayProcess, keys: list[NodePrivate]) -> AsyncIterator[list[Talk]]:
    """Connect a client for each key; each even one talks to its neighbour."""
    url = f"https://127.0.0.1:{running.port}/derp"
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(HTTPClient(url, key, insecure=True)) for key in keys
        ]
        yield [Talk(*clients[n : n + 2]) for n in range(0, len(clients), 2)]


# Drains


@dataclass
class DrainsResult:
    """The result of `under_drains`. `n_waiting` packets waited for a client at SIGTERM."""

    n_drains: int
    drain_s: float
    n_clients: int = 0
    n_untold: int = 0
    n_waiting: int = 0
    n_unwritten: int = 0
    longest_end_s: float = 0.0
    exit_codes: list[int] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """The failed checks."""
        found = []
        if self.n_untold:
            found.append(f"{self.n_untold} clients were not told before their session closed")
        if self.n_unwritten:
            found.append(f"{self.n_unwritten} packets that waited were not written")
        if self.longest_end_s > self.drain_s + END_S:
            found.append(f"a relay took {self.longest_end_s:.1f} s to end")
        if self.exit_codes != [0]:
            found.append(f"exit codes {self.exit_codes}")
        return found


async def under_drains(n_drains: int, n_clients: int = 40, drain_s: float = 2.0) -> DrainsResult:
    """Send SIGTERM to a relay whose clients talk; start it again, and so on."""
    result = DrainsResult(n_drains, drain_s)
    codes = set()
    for _ in range(n_drains):
        with tempfile.TemporaryDirectory() as directory:
            flags = ["-a", "127.0.0.1:0", "-stun=false", "-c", f"{directory}/key"]
            with relay(*flags, f"-drain-time={drain_s}s") as running:
                told_s = await drain_once(running, n_clients, result)
                codes.add(await asyncio.to_thread(running.wait, drain_s + 60))
                seconds = round(time.monotonic() - told_s, 2)
                result.longest_end_s = max(result.longest_end_s, seconds)
    result.exit_codes = sorted(codes)
    return result


async def drain_once(running: RelayProcess, n_clients: int, result: DrainsResult) -> float:
    """Drain one relay: random clients talk, and one begins to read at SIGTERM.

    Returns the time of SIGTERM.
    """
    url = f"http://127.0.0.1:{running.port}/derp"
    async with AsyncExitStack() as stack:

        async def connected() -> HTTPClient:
            client = HTTPClient(url, NodePrivate.generate())
            return await stack.enter_async_context(client)

        clients = [await connected() for _ in range(n_clients)]
        sender, late = await connected(), await connected()
        keys = [client.public_key for client in clients]
        told: set[HTTPClient] = set()
        arrived: set[bytes] = set()

        async def talk(client: HTTPClient) -> None:
            while True:
                await client.send(random.choice(keys), bytes(PACKET_BYTES))
                await asyncio.sleep(random.uniform(0, 0.02))

        async def listen(client: HTTPClient) -> None:
            async for message in client:
                if isinstance(message, ServerRestarting):
                    told.add(client)
                elif client is late and isinstance(message, ReceivedPacket):
                    arrived.add(message.data)

        talks = [asyncio.create_task(talk(client)) for client in clients]
        listening = [asyncio.create_task(listen(client)) for client in clients]
        await asyncio.sleep(random.uniform(0.05, 0.3))
        n_waiting = 300
        for n in range(n_waiting):
            await sender.send(late.public_key, n.to_bytes(8) + bytes(PACKET_BYTES - 8))
        listening.append(asyncio.create_task(listen(sender)))
        await sender.ping()
        running.signal(signal.SIGTERM)
        told_s = time.monotonic()
        listening.append(asyncio.create_task(listen(late)))
        for outcome in await asyncio.gather(*listening, return_exceptions=True):
            if outcome is not None and not isinstance(outcome, ConnectionClosed):
                raise outcome
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
    result.n_clients += n_clients + 2
    result.n_untold += n_clients + 2 - len(told)
    result.n_waiting += n_waiting
    result.n_unwritten += n_waiting - len(arrived)
    return told_s


def main() -> int:
    """Run the command; return the exit code."""
    from bench.region_drain import drain_to_a_region

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("reloads").add_argument("--n", type=int, default=1000)
    kinds.add_parser("drains").add_argument("--n", type=int, default=50)
    region = kinds.add_parser("region")
    region.add_argument("--clients", type=int, default=10_000)
    region.add_argument("--drain-s", type=float, default=10)
    arguments = parser.parse_args()
    result: Result
    if arguments.kind == "reloads":
        result = asyncio.run(under_reloads(arguments.n))
    elif arguments.kind == "drains":
        result = asyncio.run(under_drains(arguments.n))
    else:
        result = drain_to_a_region(arguments.clients, arguments.drain_s)
    print(json.dumps(asdict(result), indent=1))
    for problem in result.problems:
        print(problem, file=sys.stderr)
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
