"""The CPU time of TLS with each crypto library: records of usual sizes, and handshakes.

    python bench/crypto_cost.py [system] [bundled] [/path/to/libssl …]

A library is a value of FASTDERP_CRYPTO. Each round runs each library in its own process; the
table has the medians of the rounds, in CPU time of one thread. Records are made and read by the
record layer of the relay, handshakes are the server's share of them, with our own client.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from fastderp.tls.record import RecordLayer

ROUNDS = 7
SIZES = (100, 1400, 16384)
SUITES = {
    "AES-128-GCM": "TLS_AES_128_GCM_SHA256",
    "AES-256-GCM": "TLS_AES_256_GCM_SHA384",
    "ChaCha20-Poly1305": "TLS_CHACHA20_POLY1305_SHA256",
}
N_BATCHES, BATCH = 200, 16
N_HANDSHAKES = 100


def measure() -> dict[str, float]:
    """Measure the library of this process: operation → ns, or µs for handshakes."""
    from fastderp.tls.context import ClientContext, ServerContext
    from fastderp.tls.handshake import Handshake
    from fastderp.tls.library import description
    from tests.kit.certificates import self_signed

    certificate = self_signed("relay.test")

    def pair(suites: list[str], version: str = "TLSv1.3") -> tuple[Handshake, Handshake, float]:
        """Return both ends of a handshake, and the server's CPU µs."""
        server_context = contexts.get(version) or contexts.setdefault(
            version, ServerContext([certificate.der], certificate.key_der, max_version=version)
        )
        client = Handshake(ClientContext(verify=False, suites=suites), "relay.test")
        spent = 0.0
        client.step()
        started = time.thread_time()
        server = Handshake(server_context)
        spent += time.thread_time() - started
        while not server.done:
            hello = client.take_output()
            started = time.thread_time()
            server.feed(hello)
            server.step()
            answer = server.take_output()
            spent += time.thread_time() - started
            client.feed(answer)
            client.step()
        return client, server, spent * 1e6

    contexts: dict[str, ServerContext] = {}
    found: dict[str, float] = {}
    for name, suite in SUITES.items():
        client, server, _ = pair([suite])
        sealer, opener = server.records(), client.records()
        for size in SIZES:
            sealing, opening = record_costs(sealer, opener, size)
            found[f"seal, {name}, {size:,} bytes, ns"] = sealing
            found[f"open, {name}, {size:,} bytes, ns"] = opening
    for version in ("TLSv1.3", "TLSv1.2"):
        costs = [pair([SUITES["AES-128-GCM"]], version)[2] for _ in range(N_HANDSHAKES)]
        found[f"server's share of a handshake, {version}, µs"] = median(costs)
    return {"library": description(), **found}  # type: ignore[dict-item]


def record_costs(sealer: RecordLayer, opener: RecordLayer, size: int) -> tuple[float, float]:
    """Return CPU ns to seal and to open a record; medians of batches that fit into the cache."""
    data = bytes(size)
    sealing, opening = [], []
    for _ in range(N_BATCHES):
        started = time.thread_time_ns()
        records = [sealer.seal(data) for _ in range(BATCH)]
        sealed = time.thread_time_ns()
        for record in records:
            opener.open(record)
        opened = time.thread_time_ns()
        sealing.append((sealed - started) / BATCH)
        opening.append((opened - sealed) / BATCH)
    return median(sealing), median(opening)


def main() -> None:
    """Measure each library in its own process, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "libraries",
        nargs="*",
        default=["system", "bundled"],
        metavar="LIBRARY",
        help="system, bundled, or the path of a libssl",
    )
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure()))
        return
    libraries = options.libraries
    rounds: dict[str, list[dict[str, float]]] = {library: [] for library in libraries}
    for _ in range(ROUNDS):
        for library in libraries:
            done = subprocess.run(
                [sys.executable, __file__, "--measure"],
                env=os.environ | {"FASTDERP_CRYPTO": library},
                stdout=subprocess.PIPE,
                check=True,
            )
            rounds[library].append(json.loads(done.stdout))
    first = [values[0] for values in rounds.values()]
    print(f"| | {' | '.join(str(values['library']) for values in first)} |")
    print(f"|---|{'--:|' * len(libraries)}")
    for what in list(first[0])[1:]:
        cells = [median(one[what] for one in values) for values in rounds.values()]
        print(f"| {what} | {' | '.join(f'{cell:,.0f}' for cell in cells)} |")


if __name__ == "__main__":
    main()
