"""The cost of clients that all reconnect at once, as after a restart of the relay.

    python -m bench.storm [--clients 10000] [--plain] [--derper PATH]

Every client connects at the same moment; the relay has one core, the clients another. Printed: the
seconds until all are logged in, the relay's resident memory before, at its peak and 5 s after the
clients have left, and the connections that it refused. A refused client ends the run with an error.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import threading
import time
from dataclasses import dataclass

from bench.relays import Relay, RelayError, derper, fastderp, running
from fastderp.errors import DialError
from fastderp.loadgen.connect import Crowd, Target
from fastderp.loadgen.process import Process

RELAY_CORE, LOAD_CORE = 0, 1
LOOK_S = 0.02
LEFT_S = 5.0


@dataclass
class Storm:
    """The result; memory in MiB."""

    seconds: float
    cpu_s: float
    mib_before: float
    mib_peak: float
    mib_after: float
    refused: dict[str, int]


def storm(relay: Relay, n_clients: int, tls: bool) -> Storm:
    """Log `n_clients` in at once. Raises DialError when one is refused."""
    with running(relay, cores={RELAY_CORE}, tls=tls) as started:
        crowd = Crowd(
            Target.parse(f"{started.url}/derp", insecure=True), n_clients, at_once=n_clients
        )
        process = Process(started.pid)
        cpu_before, before = process.cpu_s(), process.rss_kib()
        peak, ended = before, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(LOOK_S):
                peak = max(peak, process.rss_kib())

        watcher = threading.Thread(target=watch)
        watcher.start()
        began_s = time.monotonic()
        try:
            clients = crowd.log_in()
        finally:
            ended.set()
            watcher.join()
        seconds = time.monotonic() - began_s
        cpu = process.cpu_s() - cpu_before
        refused = refusals(started.page("/debug/varz"))
        for client in clients:
            client.close()
        time.sleep(LEFT_S)
        before_mib, peak_mib, after_mib = (kib / 1024 for kib in (before, peak, process.rss_kib()))
        return Storm(seconds, cpu, before_mib, peak_mib, after_mib, refused)


def refusals(varz: str) -> dict[str, int]:
    """Return the counters of refused and evicted connections that are not 0."""
    lines = [line.rpartition(" ") for line in varz.splitlines()]
    names = ("refused", "rejected", "evicted")
    return {
        name: int(float(value))
        for name, _, value in lines
        if not name.startswith("#") and any(word in name for word in names) and float(value)
    }


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--plain", action="store_true", help="plain TCP instead of TLS 1.3")
    parser.add_argument("--derper", metavar="PATH", help="measure this derper, too")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.sched_setaffinity(0, {LOAD_CORE})
    relays = [fastderp(), *([derper(arguments.derper)] if arguments.derper else [])]
    print(f"{arguments.clients} clients at once, {'plain' if arguments.plain else 'TLS 1.3'}")
    print(f"{'relay':18} {'s':>6} {'CPU s':>6} {'MiB':>6} {'peak':>6} {'after':>6}  refused")
    failed = False
    for relay in relays:
        subject = f"{relay.name + ' ' + relay.version:18}"
        try:
            found = storm(relay, arguments.clients, not arguments.plain)
        except (DialError, RelayError) as error:
            print(f"{subject} {error}")
            failed = True
            continue
        print(
            f"{subject} {found.seconds:6.2f} {found.cpu_s:6.2f} {found.mib_before:6.1f}"
            f" {found.mib_peak:6.1f} {found.mib_after:6.1f}  {found.refused or 'none'}",
            flush=True,
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
