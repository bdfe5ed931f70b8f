"""The compared relays: how to build each, and how to run one pinned to a core."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from fastderp.server.certificates.manual import manual_certificate

HERE = Path(__file__).parent
BUILD = HERE / "build"
# the compared releases of derper: the newest, and one before its last rewrite
DERPER_VERSION = "1.104.7"
OLDER_DERPER_VERSION = "1.98.9"
# the Go module for the build of the newest derper; it replaces a dependency that is not published
DERPER_MODULE = HERE.parent / "tests/interop/go_newest"
# the first of the ports that `free_port` chooses from
FIRST_PORT = 10_000
START_LIMIT_S = 60.0


class RelayError(Exception):
    """A relay cannot be built, found or started; the text has its name and the cause."""


@dataclass(frozen=True)
class Relay:
    """The command of one relay; it gets {port} and {directory}, a place for its files.

    An empty `tls_command` means that it has no TLS. `bench_flags` are for the load; `crypto` names
    its library for TLS and the version, if it says so.
    """

    name: str
    version: str
    command: Sequence[str]
    tls_command: Sequence[str] = ()
    bench_flags: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    crypto: str = ""


@dataclass(frozen=True)
class Running:
    """A started relay; `neighbour` is another one of its region."""

    url: str
    pid: int
    neighbour: Running | None = None

    def page(self, path: str) -> str:
        """Return a page of it, which may have any certificate."""
        # Not the default context: it would read the roots of the system, for 30 ms.
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
        with urllib.request.urlopen(self.url + path, timeout=10, context=unverified) as answer:
            text: str = answer.read().decode()
            return text

    @property
    def pids(self) -> list[int]:
        """Its process, and the neighbour's."""
        return [self.pid, *(self.neighbour.pids if self.neighbour else [])]


DERPER_FLAGS = ("-c", "{directory}/key", "-a", "127.0.0.1:{port}", "-stun=false", "-http-port=-1")
TLS_FLAGS = ("-certmode=manual", "-hostname=127.0.0.1", "-certdir={directory}")


def derper(path: str | None = None, gomaxprocs: int | None = None) -> Relay:
    """Return tailscale's derper: the binary at `path`, or the newest, built into bench/build."""
    return _derper("derper", path or str(build_derper()), gomaxprocs)


def older_derper(path: str | None = None, gomaxprocs: int | None = None) -> Relay:
    """Return the older derper: the binary at `path`, or 1.98.9, built into bench/build."""
    return _derper("derper-1.98", path or str(build_older_derper()), gomaxprocs)


def _derper(name: str, binary: str, gomaxprocs: int | None) -> Relay:
    # Go appends its own suffix to the version.
    version = _output([binary, "-version"]).split()[0].partition("-")[0]
    environment = {"GOMAXPROCS": str(gomaxprocs)} if gomaxprocs else {}
    return Relay(
        name,
        version,
        [binary, *DERPER_FLAGS],
        [binary, *DERPER_FLAGS, *TLS_FLAGS],
        environment=environment,
    )


def fastderp(workers: int = 1, crypto: str = "") -> Relay:
    """Return the fastderp-relay that is installed beside the running Python.

    `crypto` is its FASTDERP_CRYPTO, and part of its name; by default the relay chooses.
    """
    binary = str(Path(sys.executable).with_name("fastderp-relay"))
    if not Path(binary).exists():
        raise RelayError(f"{binary} does not exist: run pip install -e . first")
    environment = {"FASTDERP_CRYPTO": crypto} if crypto else {}
    # fastderp-relay 0.1.0 / crypto OpenSSL 3.0.19 (system)
    named, library = _output([binary, "-version"], os.environ | environment).splitlines()[:2]
    command = [binary, *DERPER_FLAGS, f"--workers={workers}"]
    name = f"fastderp-{Path(crypto).name}" if crypto else "fastderp"
    return Relay(
        name,
        named.split()[1],
        command,
        [*command, *TLS_FLAGS],
        environment=environment,
        crypto=library.partition(" ")[2],
    )


def floor() -> Relay:
    """Return the floor, built from its C source when that is newer."""
    command = [str(build_floor(BUILD)), "{port}"]
    files = ["{directory}/127.0.0.1.crt", "{directory}/127.0.0.1.key"]
    return Relay("floor", "0", command, [*command, *files], bench_flags=["--no-box-check"])


def other(text: str) -> Relay:
    """Return the relay of `NAME=COMMAND LINE with {port}`, plain TCP, for example Hyper-DERP."""
    name, _, command = text.partition("=")
    if not name or "{port}" not in command:
        raise RelayError(f"{text!r} is not NAME=COMMAND with {{port}} in it")
    return Relay(name, "", _words(command))


def c_compiler() -> list[str]:
    """Return the C compiler with its arguments: $CC, for example `ccache gcc`, or cc."""
    return _words(os.environ.get("CC", "")) or ["cc"]


def _words(command: str) -> list[str]:
    """Split a command line as a shell does."""
    try:
        return shlex.split(command)
    except ValueError as error:
        raise RelayError(f"{command!r} is not a command line: {str(error).lower()}") from None


def build_floor(directory: Path) -> Path:
    """Compile the floor into `directory` unless it exists; return the program."""
    source, binary = HERE / "floor" / "floor.c", directory / "floor"
    if binary.exists() and binary.stat().st_mtime >= source.stat().st_mtime:
        return binary
    directory.mkdir(parents=True, exist_ok=True)
    # With OpenSSL's headers, which only this build needs.
    _output([*c_compiler(), "-O2", "-o", str(binary), str(source), "-lssl", "-lcrypto"])
    return binary


def build_derper() -> Path:
    """Build the newest derper with Go unless it exists; return the program."""
    binary = BUILD / f"derper-{DERPER_VERSION}"
    if not binary.exists():
        command = ["build", "-o", str(binary), "tailscale.com/cmd/derper"]
        newest_go = {"GOTOOLCHAIN": "go1.27.4", "GOFLAGS": "-mod=mod"}
        _go(DERPER_VERSION, command, newest_go, DERPER_MODULE)
    return binary


def build_older_derper() -> Path:
    """Build derper 1.98.9 with Go unless it exists; return the program."""
    binary = BUILD / f"derper-{OLDER_DERPER_VERSION}"
    if not binary.exists():
        command = ["install", f"tailscale.com/cmd/derper@v{OLDER_DERPER_VERSION}"]
        _go(OLDER_DERPER_VERSION, command, {"GOBIN": str(BUILD)})
        (BUILD / "derper").rename(binary)
    return binary


def _go(
    version: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    directory: Path | None = None,
) -> None:
    go = shutil.which("go")
    if go is None:
        raise RelayError(
            f"no Go to build derper {version} with; give the programs: "
            "--derper PATH --older-derper PATH"
        )
    BUILD.mkdir(parents=True, exist_ok=True)
    print(f"building derper v{version} …", file=sys.stderr)
    _output([go, *command], {**os.environ, "GOMAXPROCS": "1", **environment}, directory)


def _output(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> str:
    try:
        done = subprocess.run(
            command, env=environment, cwd=directory, capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        raise RelayError(f"{command[0]}: not found") from None
    except subprocess.CalledProcessError as error:
        raise RelayError(f"{' '.join(command)}: {error.stderr.strip()}") from None
    return done.stdout


@contextmanager
def running(relay: Relay, *, cores: Collection[int] = (), tls: bool = False) -> Iterator[Running]:
    """Run a fresh process of `relay` on 127.0.0.1 and on `cores` in the block.

    The cores are set before the program starts: a Go relay then detects only these.
    Raises RelayError, with the end of its log, when it does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        with _running(relay, Path(directory), free_port(), cores, tls) as started:
            yield started


@contextmanager
def running_region(
    relay: Relay, *, cores: Collection[int] = (), tls: bool = False
) -> Iterator[Running]:
    """Run two processes of `relay` that are linked to each other, as `running` runs one.

    Raises RelayError when they do not find each other.
    """
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as first,
        tempfile.TemporaryDirectory(prefix="bench-") as second,
    ):
        directories = [Path(first), Path(second)]
        ports = [free_port(), free_port()]
        secret = os.urandom(32).hex()
        for directory in directories:
            (directory / "mesh.key").write_text(secret)
            # The certificates that both trust must exist before they start.
            manual_certificate(directory, "127.0.0.1")
        with (
            _running(
                _member(relay, directories[1], ports[1], tls), directories[0], ports[0], cores, tls
            ) as here,
            _running(
                _member(relay, directories[0], ports[0], tls), directories[1], ports[1], cores, tls
            ) as there,
        ):
            _await_link(relay, here, directories[0])
            _await_link(relay, there, directories[1])
            yield replace(here, neighbour=there)


def _member(relay: Relay, directory: Path, port: int, tls: bool) -> Relay:
    """Return `relay` linked to the one at `port`, whose certificate is in `directory`."""
    other = f"127.0.0.1:{port}/127.0.0.1" if tls else f"http://127.0.0.1:{port}/derp"
    flags = ["-mesh-psk-file={directory}/mesh.key", f"-mesh-with={other}"]
    trust = {"SSL_CERT_FILE": str(directory / "127.0.0.1.crt")}
    return replace(
        relay,
        command=[*relay.command, *flags],
        tls_command=[*relay.tls_command, *flags],
        environment={**relay.environment, **trust},
    )


def _await_link(relay: Relay, started: Running, directory: Path) -> None:
    """Wait until the other relay watches this one."""
    give_up = time.monotonic() + START_LIMIT_S
    while time.monotonic() < give_up:
        if "\nderp_watchers 1\n" in started.page("/debug/varz"):
            return
        time.sleep(0.1)
    raise RelayError(
        f"{relay.name}: no link between the relays of a region\n{_end_of(directory / 'log')}"
    )


@contextmanager
def _running(
    relay: Relay, directory: Path, port: int, cores: Collection[int], tls: bool
) -> Iterator[Running]:
    """Run a process with its files in `directory`."""
    words = relay.tls_command if tls else relay.command
    command = [word.format(port=port, directory=directory) for word in words]
    if tls:
        manual_certificate(directory, "127.0.0.1")
    log = directory / "log"
    with log.open("w") as output:
        process = _start(relay, command, output, cores)
    try:
        _await_port(relay, process, port, log)
        yield Running(f"{'https' if tls else 'http'}://127.0.0.1:{port}", process.pid)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(
    relay: Relay, command: Sequence[str], output: IO[str], cores: Collection[int]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, **relay.environment},
            preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RelayError(f"{relay.name} did not start: {command[0]}: {error}") from error


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Return a port that is free at the moment, by default of TCP.

    It is below those that the kernel gives to sockets which ask for any, so that none of them
    takes it before the program that it is for.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = FIRST_PORT + secrets.randbelow(lowest - FIRST_PORT) if lowest > FIRST_PORT else 0
        with socket.socket(type=kind) as probe, suppress(OSError):
            probe.bind(("", port))
            return int(probe.getsockname()[1])


def _await_port(relay: Relay, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    give_up = time.monotonic() + START_LIMIT_S
    while time.monotonic() < give_up and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.002)
    raise RelayError(f"{relay.name} did not start: {' '.join(relay.command)}\n{_end_of(log)}")


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-5:])
