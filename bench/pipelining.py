"""Logins and STUN while peers pipeline requests. RELIABILITY F32.

    python -m bench.pipelining [--peers 50] [--mbit-per-s 4] [--derper PATH]

The peers send `GET /` without waiting for the answers, each at the given rate (0: as fast as
the relay takes them), and read all answers. Meanwhile a client logs in repeatedly, and another
sends STUN requests, each one at a time. The relay has one core, all other processes another.
Printed: median, 99th percentile and maximum in ms, without peers and with them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.relays import Relay, RelayError, derper, fastderp, free_port, running
from fastderp.client import stun
from fastderp.errors import DialError
from fastderp.loadgen.connect import Crowd, Target

RELAY_CORE, LOAD_CORE = 0, 1
REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
TICK_S = 0.01
WRITE_BYTES = 65536
GAP_S = 0.002
STUN_LIMIT_S = 10.0


def peers(port: int, n: int, mbit_per_s: float) -> None:
    """Pipeline requests on `n` connections until the process is ended."""
    os.sched_setaffinity(0, {LOAD_CORE})
    selector = selectors.DefaultSelector()
    socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(n)]
    for sock in socks:
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
    n_per_tick = int(mbit_per_s * 1e6 / 8 * TICK_S) if mbit_per_s else WRITE_BYTES
    requests = REQUEST * (2 * max(n_per_tick, WRITE_BYTES) // len(REQUEST))
    at = dict.fromkeys(socks, 0)
    next_s = time.monotonic()
    while True:
        for sock in socks:
            begin = at[sock] % len(REQUEST)
            try:
                at[sock] += sock.send(requests[begin : begin + n_per_tick])
            except BlockingIOError:
                pass
        next_s = max(next_s + (TICK_S if mbit_per_s else 0), time.monotonic() - TICK_S)
        while True:
            wait_s = next_s - time.monotonic()
            for key, _ in selector.select(max(wait_s, 0)):
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.recv(1 << 20)
            if wait_s <= 0:
                break


def repeat(seconds: float, work: Callable[[], float]) -> list[float]:
    """Return what repeated calls of `work` return."""
    found = []
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        found.append(work())
        time.sleep(GAP_S)
    return found


def ask_stun(port: int) -> float:
    """Send one request and return the ms until its answer; a lost one takes the whole limit."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(STUN_LIMIT_S)
        transaction = secrets.token_bytes(12)
        began_s = time.monotonic()
        sock.sendto(stun.binding_request(transaction), ("127.0.0.1", port))
        try:
            sock.recv(2048)
        except TimeoutError:
            pass
        return (time.monotonic() - began_s) * 1e3


def log_in(target: Target) -> float:
    """Log a new client in and return the ms from its connect to ServerInfo."""
    crowd = Crowd(target, 1)
    began_s = time.monotonic()
    clients = crowd.log_in()
    taken_ms = (time.monotonic() - began_s) * 1e3
    for client in clients:
        client.close()
    return taken_ms


def measure(target: Target, stun_port: int, seconds: float) -> tuple[list[float], list[float]]:
    """Return the durations of logins and of STUN exchanges, in ms."""
    asked: list[float] = []
    asking = threading.Thread(
        target=lambda: asked.extend(repeat(seconds, lambda: ask_stun(stun_port)))
    )
    asking.start()
    logins = repeat(seconds, lambda: log_in(target))
    asking.join()
    return logins, asked


def figures(durations: Sequence[float]) -> str:
    """Return median, 99th percentile and maximum."""
    ordered = sorted(durations)
    return " ".join(
        f"{ordered[min(int(len(ordered) * share), len(ordered) - 1)]:8.1f}"
        for share in (0.5, 0.99, 1.0)
    )


def show(relay: Relay, n: int, mbit_per_s: float, seconds: float) -> None:
    """Measure one relay without peers and with them."""
    stun_port = free_port(socket.SOCK_DGRAM)
    flags = ["-stun=true", f"-stun-port={stun_port}"]
    relay = replace(relay, command=[*relay.command, *flags])
    with running(relay, cores={RELAY_CORE}) as started:
        target = Target.parse(f"{started.url}/derp")
        quiet = measure(target, stun_port, seconds)
        load = multiprocessing.Process(target=peers, args=(target.port, n, mbit_per_s), daemon=True)
        load.start()
        try:
            time.sleep(1)
            loud = measure(target, stun_port, seconds)
        finally:
            load.terminate()
            load.join()
    for what, without, beside in zip(("login", "STUN"), quiet, loud, strict=True):
        subject = f"{relay.name + ' ' + relay.version:16} {what:6}"
        print(f"{subject} {figures(without)}  {figures(beside)}", flush=True)


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--peers", type=int, default=50)
    parser.add_argument("--mbit-per-s", type=float, default=4.0, help="of each; 0: no limit")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--derper", metavar="PATH", help="measure this derper, too")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {LOAD_CORE})
    print(f"{arguments.peers} peers, {arguments.mbit_per_s:g} Mbit/s each")
    print(f"{'ms':23} {'p50':>8} {'p99':>8} {'max':>8}  {'p50':>8} {'p99':>8} {'max':>8}")
    relays = [fastderp(), *([derper(arguments.derper)] if arguments.derper else [])]
    for relay in relays:
        try:
            show(relay, arguments.peers, arguments.mbit_per_s, arguments.seconds)
        except (DialError, RelayError) as error:
            print(f"{relay.name + ' ' + relay.version:16} {error}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
