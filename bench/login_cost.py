"""CPU time of a relay per login: TCP, HTTP upgrade, ClientInfo, ServerInfo, close.

    python bench/login_cost.py [--tls] [--fast-start] [--loop asyncio] [--derper PATH] [--profile]

The relay runs in another process and its CPU time is read before and after; with `--derper` the
same logins go to derper, too, and the ratio is printed. `--profile` prints a profile of the Python
on the relay's loop (and slows it down). bench.login_instructions counts instructions by library.
"""

from __future__ import annotations

import argparse
import cProfile
import platform
import pstats
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.relays import derper, running

ROOT = Path(__file__).parents[1]
REQUEST = "GET /derp HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n{}\r\n"
# The clients' CPU time for sealing does not count. Several keys are used in turn, so that no login
# uses a cached key agreement.
N_KEYS = 64


def serve(loop: str, tls: bool, profile: bool) -> None:
    """Run a relay on a free port until standard input ends; print port and key."""
    import asyncio

    import uvloop

    from fastderp.server.certificates.manual import manual_certificate
    from fastderp.server.server import Server
    from fastderp.tls.context import ServerContext

    async def main() -> None:
        async with Server(workers=1) as relay:
            context = None
            if tls:
                with tempfile.TemporaryDirectory() as directory:
                    certificate = manual_certificate(Path(directory), "127.0.0.1")
                context = ServerContext([*certificate.chain, relay.meta_cert], certificate.key)
            listener = relay.listen("127.0.0.1", 0, tls=context)
            print(listener.port, relay.public_key.hex, flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

    profiler = cProfile.Profile()
    run = uvloop.run if loop == "uvloop" else asyncio.run
    if profile:
        profiler.runcall(run, main())
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(25)
    else:
        run(main())


def log_in(
    port: int, n_logins: int, logins: list[bytes], context: ssl.SSLContext | None, fast_start: bool
) -> None:
    """Log in and close, one connection after another."""
    request = REQUEST.format("Derp-Fast-Start: 1\r\n" if fast_start else "").encode()
    for i in range(n_logins):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            sock = context.wrap_socket(sock)
        login = logins[i % len(logins)]
        stream = sock.makefile("rb")
        if fast_start:
            sock.sendall(request + login)
        else:
            sock.sendall(request)
            while stream.readline() != b"\r\n":
                pass
        read_frame(stream)
        if not fast_start:
            sock.sendall(login)
        read_frame(stream)
        stream.close()
        sock.close()


def read_frame(stream: object) -> bytes:
    """Read one frame; return its payload."""
    header = stream.read(5)  # type: ignore[attr-defined]
    length: int = struct.unpack(">BI", header)[1]
    payload: bytes = stream.read(length)  # type: ignore[attr-defined]
    return payload


def client_logins(key_hex: str) -> list[bytes]:
    """Return the ClientInfo frames of N_KEYS clients of the relay with this key."""
    from fastderp.wire.keys import NodePrivate, NodePublic
    from fastderp.wire.login import ClientInfo, client_info_frame

    relay_key = NodePublic.from_hex(key_hex)
    keys = [NodePrivate.generate() for _ in range(N_KEYS)]
    return [
        client_info_frame(key.public_key, key.box(relay_key), ClientInfo(can_ack_pings=True))
        for key in keys
    ]


def client_context(tls: bool) -> ssl.SSLContext | None:
    """Return a context that accepts any certificate; None without TLS."""
    if not tls:
        return None
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def measure(pid: int, port: int, key_hex: str, options: argparse.Namespace) -> float:
    """Return CPU microseconds per login of the relay with this pid."""
    from fastderp.loadgen.process import Process

    logins, context = client_logins(key_hex), client_context(options.tls)
    log_in(port, 200, logins, context, options.fast_start)
    process = Process(pid)
    before = process.cpu_s()
    log_in(port, options.n, logins, context, options.fast_start)
    n: int = options.n
    return (process.cpu_s() - before) / n * 1e6


@contextmanager
def serving(*flags: str, under: Sequence[str] = ()) -> Iterator[tuple[int, int, str]]:
    """Run our relay in the block; give its pid, its port and its key in hexadecimal.

    flags: what `--serve` gets.
    under: the command of a program that runs it, such as a profiler.

    Raises RuntimeError when it does not start.
    """
    with subprocess.Popen(
        [*under, sys.executable, __file__, "--serve", *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as relay:
        assert relay.stdout is not None
        port, _, key = relay.stdout.readline().strip().partition(" ")
        try:
            if not key:
                raise RuntimeError("the relay did not start")
            yield relay.pid, int(port), key
        finally:
            relay.communicate()  # it ends with its standard input


def measure_fastderp(options: argparse.Namespace) -> float:
    """Start our relay and measure it."""
    flags = ["--loop", options.loop, *["--tls"] * options.tls, *["--profile"] * options.profile]
    with serving(*flags) as (pid, port, key):
        return measure(pid, port, key, options)


def measure_derper(options: argparse.Namespace) -> float:
    """Start derper and measure it."""
    with running(derper(options.derper), tls=options.tls) as relay:
        port = int(relay.url.rpartition(":")[2])
        return measure(relay.pid, port, derper_key(port, options.tls), options)


def derper_key(port: int, tls: bool) -> str:
    """Return the public key of a relay, from its answer to an upgrade request."""
    sock = socket.create_connection(("127.0.0.1", port))
    context = client_context(tls)
    if context is not None:
        sock = context.wrap_socket(sock)
    with sock:
        sock.sendall(REQUEST.format("").encode())
        head = sock.recv(4096).decode("latin-1")
    return head.partition("Derp-Public-Key: ")[2][:64]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="CPU time of a relay per login")
    parser.add_argument("-n", type=int, default=3000, help="logins to measure")
    parser.add_argument("--tls", action="store_true", help="TLS 1.3")
    parser.add_argument(
        "--fast-start", action="store_true", help="the login in one write with the request"
    )
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    parser.add_argument("--derper", help="a derper binary to compare with")
    parser.add_argument(
        "--profile", action="store_true", help="print a profile of the Python code on the loop"
    )
    parser.add_argument("--serve", action="store_true", help="only the relay, for a profiler")
    options = parser.parse_args()
    if options.serve:
        serve(options.loop, options.tls, options.profile)
        return
    kind = ("TLS 1.3" if options.tls else "plain") + (", fast start" if options.fast_start else "")
    print(
        f"Python {platform.python_version()}, Linux {platform.release()}, {options.n} logins, "
        f"{kind}, {options.loop}"
    )
    ours = measure_fastderp(options)
    print(f"fastderp  {ours:6.0f} CPU µs per login")
    if options.derper:
        theirs = measure_derper(options)
        print(
            f"derper    {theirs:6.0f} CPU µs per login; fastderp uses {ours / theirs:.0%} of that"
        )


if __name__ == "__main__":
    main()
