"""Relays under test, derper and fastderp-relay alike: one set of flags starts either.

A relay is a process of its own, on loopback, killed by its id when the test is over.
"""

import asyncio
import contextlib
import enum
import hashlib
import re
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
CONNECT_PAUSE_S = 0.02


class Transport(enum.StrEnum):
    """How a client reaches a relay."""

    PLAIN = "plain"
    TLS_1_2 = "tls-1.2"
    TLS_1_3 = "tls-1.3"
    FAST_START = "fast-start"

    @property
    def is_tls(self) -> bool:
        """Whether the relay needs a certificate."""
        return self is not Transport.PLAIN


@dataclass(frozen=True)
class Relay:
    """A running relay; `root` is the certificate to trust when it speaks TLS."""

    port: int
    root: Path | None
    log: Path
    pid: int

    @property
    def url(self) -> str:
        """Where derphttp clients connect."""
        return f"{'https' if self.root else 'http'}://127.0.0.1:{self.port}/derp"

    @property
    def pin(self) -> str:
        """The CertName that a DERP map would carry for this relay's self-signed certificate."""
        assert self.root is not None
        der = ssl.PEM_cert_to_DER_cert(self.root.read_text())
        return "sha256-raw:" + hashlib.sha256(der).hexdigest()

    def go_flags(self, transport: Transport) -> list[str]:
        """Return derpkit's flags for reaching this relay."""
        flags = ["-url", self.url]
        if self.root:
            flags += ["-root", str(self.root)]
        if transport is Transport.TLS_1_2:
            flags += ["-tls12"]
        if transport is Transport.TLS_1_3:
            flags += ["-no-fast-start"]
        return flags


def free_port() -> int:
    """Return a TCP port of loopback that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def running(program: Path, directory: Path, *flags: str, tls: bool = False) -> AsyncIterator[Relay]:
    """Run derper, or anything that takes its flags, until the block ends.

    With `tls` it serves a self-signed certificate for 127.0.0.1 that it makes itself.
    Its key, certificate and log are kept in `directory`.
    """
    port = free_port()
    arguments = [f"-a=127.0.0.1:{port}", f"-c={directory / 'relay.key'}", "-http-port=-1", "-stun=false", *flags]
    if tls:
        arguments += ["-certmode=manual", f"-certdir={directory}", "-hostname=127.0.0.1"]
    log = directory / "relay.log"
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(program, *arguments, stdout=sink, stderr=sink)
    try:
        await _accepting(process, port, log)
        root = directory / "127.0.0.1.crt" if tls else None
        yield Relay(port, root, log, process.pid)
    finally:
        await _stop(process)


async def _accepting(process: asyncio.subprocess.Process, port: int, log: Path) -> None:
    async with asyncio.timeout(START_TIMEOUT_S):
        while process.returncode is None:
            with contextlib.suppress(ConnectionRefusedError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(CONNECT_PAUSE_S)
    raise RuntimeError(f"relay exited with {process.returncode}:\n{log.read_text()}")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
