"""Long runs of the client library against a relay in the same process, with checks.

    python -m bench.soak rate                    # 1 GB through a relay with a rate limit
    python -m bench.soak restarts                # 100 restarts of the relay under 200 clients
    python -m bench.soak rate --mb 100 --mb-per-s 10
    python -m bench.soak restarts --clients 20 --restarts 5

Each prints its numbers as JSON and exits with 1 when a check fails. The tests run both, smaller.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import fastderp.testing
from fastderp import Backoff, HTTPClient, RateLimit, ReceivedPacket
from fastderp.loadgen.process import Process

PACKET_BYTES = 1400
TICK_S = 0.01


@dataclass
class RateResult:
    """The result of `through_a_rate_limit`.

    `grown_kib` is the growth of resident memory after a tenth had arrived; `longest_tick_s`
    is the longest time between two runs of another task that sleeps 10 ms; `seconds_at_rate` is
    the time of the transfer at the relay's rate. `dropped` are the packets that the relay reports
    as dropped, by its reason: the client drops none.
    """

    n_sent: int
    n_arrived: int
    in_order: bool
    seconds: float
    seconds_at_rate: float
    grown_kib: int
    longest_tick_s: float
    median_tick_s: float
    dropped: dict[str, int]

    @property
    def problems(self) -> list[str]:
        """Return the failed checks."""
        found = []
        if self.n_arrived != self.n_sent or not self.in_order:
            found.append(
                f"{self.n_arrived} of {self.n_sent} packets arrived; "
                f"the relay dropped {self.dropped or 'none'}"
            )
        if self.grown_kib > 16 << 10:
            found.append(f"memory grew by {self.grown_kib} KiB")
        if self.median_tick_s > 2 * TICK_S:
            found.append(f"another task ran every {self.median_tick_s * 1e3:.0f} ms")
        return found


async def through_a_rate_limit(n_bytes: int, bytes_per_s: int) -> RateResult:
    """Send `n_bytes` in packets through a relay that allows each client `bytes_per_s`.

    Watch memory and another task meanwhile.
    """
    n = n_bytes // PACKET_BYTES
    limit = RateLimit(bytes_per_s, max(bytes_per_s // 50, 65_568))
    async with (
        fastderp.testing.relay(rate_limit=limit) as relay,
        relay.client() as sender,
        relay.client() as receiver,
    ):
        async with ticking() as ticks:
            began_s = time.monotonic()
            receiving = asyncio.create_task(receive(receiver, n))
            to = receiver.public_key
            body = bytes(PACKET_BYTES - 8)
            for number in range(n):
                await sender.send(to, number.to_bytes(8, "big") + body)
            n_arrived, in_order, grown_kib = await receiving
            seconds = time.monotonic() - began_s
        dropped = dropped_by(relay)
    whole_bytes = n * (PACKET_BYTES + 37)
    return RateResult(
        n_sent=n,
        n_arrived=n_arrived,
        in_order=in_order,
        seconds=round(seconds, 2),
        seconds_at_rate=round(whole_bytes / bytes_per_s, 2),
        grown_kib=grown_kib,
        longest_tick_s=round(max(ticks), 4),
        median_tick_s=round(sorted(ticks)[len(ticks) // 2], 4),
        dropped=dropped,
    )


def dropped_by(relay: fastderp.testing.LocalRelay) -> dict[str, int]:
    """Return the packets that a relay has dropped, by reason."""
    by_reason = Counter[str]()
    counts = relay.server.metrics()["derp_packets_dropped"]
    assert isinstance(counts, dict)
    for (reason, _kind), n in counts.items():
        by_reason[reason] += n
    return dict(+by_reason)


async def receive(client: HTTPClient, n: int) -> tuple[int, bool, int]:
    """Return how many of `n` packets arrived, whether in order, and the growth of memory in KiB.

    It ends after 10 s of silence.
    """
    arrived, in_order, at_first_kib = 0, True, 0
    try:
        while arrived < n:
            async with asyncio.timeout(10):
                messages = await client.recv_many()
            for message in messages:
                if isinstance(message, ReceivedPacket):
                    in_order &= int.from_bytes(message.data[:8], "big") == arrived
                    arrived += 1
            if not at_first_kib and arrived >= n // 10:
                at_first_kib = resident_kib()
    except TimeoutError:
        pass
    return arrived, in_order, resident_kib() - at_first_kib


@asynccontextmanager
async def ticking() -> AsyncIterator[list[float]]:
    """Collect the seconds between the runs of a task that sleeps 10 ms each time."""
    gaps: list[float] = []

    async def tick() -> None:
        latest_s = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            gaps.append(now_s - latest_s)
            latest_s = now_s

    task = asyncio.create_task(tick())
    try:
        yield gaps
    finally:
        task.cancel()


def kept_kib() -> int:
    """Return the resident memory without what the C library keeps of freed memory."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident_kib()


def resident_kib() -> int:
    """Return the resident memory of this process."""
    return Process(os.getpid()).rss_kib()


@dataclass
class RestartsResult:
    """The result of `under_restarts`.

    `n_back` are the clients that reconnected after the last restart; `n_twice` packets
    arrived more than once; tasks and open files are counted when all clients are closed, against
    before. `grown_kib` is the growth of resident memory after a tenth of the restarts, without what
    the C library keeps of freed memory.
    """

    n_clients: int
    n_restarts: int
    n_back: int
    n_sent: int
    n_arrived: int
    n_twice: int
    longest_return_s: float
    seconds: float
    tasks_left: int
    files_left: int
    grown_kib: int

    @property
    def problems(self) -> list[str]:
        """Return the failed checks."""
        found = []
        if self.n_back != self.n_clients:
            found.append(f"{self.n_clients - self.n_back} clients did not come back")
        if self.n_twice:
            found.append(f"{self.n_twice} packets arrived twice")
        if not self.n_arrived:
            found.append("no packet arrived")
        if self.tasks_left or self.files_left:
            found.append(f"{self.tasks_left} tasks and {self.files_left} files are left")
        if self.grown_kib > 16 << 10:
            found.append(f"memory grew by {self.grown_kib} KiB")
        return found


async def under_restarts(n_clients: int, n_restarts: int) -> RestartsResult:
    """Restart a relay repeatedly while its clients send to each other."""
    gc.collect()
    tasks, files = len(asyncio.all_tasks()), n_files()
    sent, arrived = 0, Counter[bytes]()
    longest_s, grown_kib, began_s = 0.0, 0, time.monotonic()
    async with fastderp.testing.relay() as relay:
        clients = [
            relay.client(reconnect=True, backoff=Backoff(0.1, 1.0)) for _ in range(n_clients)
        ]
        keys = [client.public_key for client in clients]
        await asyncio.gather(*(client.connect() for client in clients))

        async def talk(client: HTTPClient) -> None:
            nonlocal sent
            while True:
                sent += 1
                await client.send(random.choice(keys), sent.to_bytes(8, "big"))
                await asyncio.sleep(random.uniform(0, 0.1))

        async def listen(client: HTTPClient) -> None:
            async for message in client:
                if isinstance(message, ReceivedPacket):
                    arrived[message.data] += 1

        work = [asyncio.create_task(do(client)) for client in clients for do in (talk, listen)]
        first_kib = 0
        for generation in range(2, n_restarts + 2):
            await relay.restart()
            restarted_s = time.monotonic()
            while not all(c.is_connected and c.generation >= generation for c in clients):
                if time.monotonic() > restarted_s + 30:
                    break
                await asyncio.sleep(0.005)
            longest_s = max(longest_s, time.monotonic() - restarted_s)
            if generation == 2 + n_restarts // 10:
                first_kib = kept_kib()
        n_back = sum(client.is_connected for client in clients)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        n_arrived, n_twice = len(arrived), sum(count > 1 for count in arrived.values())
        arrived.clear()
        grown_kib = kept_kib() - first_kib
        await asyncio.gather(*(client.close() for client in clients))
    for _ in range(10):
        await asyncio.sleep(0)
    gc.collect()  # Closed relays keep some descriptors until then.
    return RestartsResult(
        n_clients=n_clients,
        n_restarts=n_restarts,
        n_back=n_back,
        n_sent=sent,
        n_arrived=n_arrived,
        n_twice=n_twice,
        longest_return_s=round(longest_s, 2),
        seconds=round(time.monotonic() - began_s, 1),
        tasks_left=len(asyncio.all_tasks()) - tasks,
        files_left=n_files() - files,
        grown_kib=grown_kib,
    )


def n_files() -> int:
    """Return the number of open descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def main() -> int:
    """Run the command line's soak; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    rate = kinds.add_parser("rate")
    rate.add_argument("--mb", type=int, default=1000, help="to send, in 10⁶ bytes")
    rate.add_argument("--mb-per-s", type=float, default=10, help="the relay's rate")
    restarts = kinds.add_parser("restarts")
    restarts.add_argument("--clients", type=int, default=200)
    restarts.add_argument("--restarts", type=int, default=100)
    arguments = parser.parse_args()
    result: RateResult | RestartsResult
    if arguments.kind == "rate":
        rate_bytes_s = int(arguments.mb_per_s * 1_000_000)
        result = asyncio.run(through_a_rate_limit(arguments.mb * 1_000_000, rate_bytes_s))
    else:
        result = asyncio.run(under_restarts(arguments.clients, arguments.restarts))
    print(json.dumps(asdict(result), indent=1))
    for problem in result.problems:
        print(problem, file=sys.stderr)
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
