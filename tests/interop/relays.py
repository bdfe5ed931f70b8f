"""Relays under test, derper and fastderp-relay, started with the same flags.

A relay is a process on loopback that is killed by its id after the test.
"""

import asyncio
import contextlib
import enum
import hashlib
import os
import ssl
import urllib.request
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from tests.kit.ports import free_ports

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
CONNECT_PAUSE_S = 0.02


class Transport(enum.StrEnum):
    """The transport between a client and a relay."""

    PLAIN = "plain"
    TLS_1_2 = "tls-1.2"
    TLS_1_3 = "tls-1.3"
    FAST_START = "fast-start"

    @property
    def is_tls(self) -> bool:
        """Return whether the relay needs a certificate."""
        return self is not Transport.PLAIN


class Relay:
    """A relay on loopback: derper, or a program with its flags.

    With `tls` it speaks TLS as `hostname`. For an address it makes a self-signed certificate;
    for a name `certdir` must have one. `root` is the certificate to trust. Its key and its log
    are in `directory`, so a restarted relay has the same key and port.
    """

    def __init__(
        self,
        program: Path,
        directory: Path,
        *flags: str,
        tls: bool = False,
        hostname: str = "127.0.0.1",
        certdir: Path | None = None,
        port: int = 0,
        stun_port: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.program = program
        self.hostname = hostname
        self.port = port or free_ports(1)[0]
        self.stun_port = stun_port
        self.log = directory / "relay.log"
        certdir = certdir or directory
        self.root = certdir / f"{hostname}.crt" if tls else None
        stun = f"-stun-port={stun_port}" if stun_port else "-stun=false"
        self._flags = [
            f"-a=127.0.0.1:{self.port}",
            f"-c={directory / 'relay.key'}",
            "-http-port=-1",
            stun,
            *flags,
        ]
        if tls:
            self._flags += ["-certmode=manual", f"-certdir={certdir}", f"-hostname={hostname}"]
        self._environment = {**os.environ, **(environment or {})}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Process id while it runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        """The URL for derphttp clients."""
        return f"{'https' if self.root else 'http'}://{self.hostname}:{self.port}/derp"

    @property
    def pin(self) -> str:
        """The CertName that a DERP map would carry for its self-signed certificate."""
        assert self.root is not None
        der = ssl.PEM_cert_to_DER_cert(self.root.read_text())
        return "sha256-raw:" + hashlib.sha256(der).hexdigest()

    def metrics_page(self) -> str:
        """Return the relay's metrics in Prometheus format."""
        trust = ssl.create_default_context(cafile=self.root) if self.root else None
        with urllib.request.urlopen(
            self.url.removesuffix("derp") + "debug/varz", context=trust
        ) as response:
            return str(response.read(), "utf-8")

    def go_flags(self, transport: Transport) -> list[str]:
        """Return derpkit's flags for this relay."""
        flags = ["-url", self.url]
        if self.root:
            flags += ["-root", str(self.root)]
        if transport is Transport.TLS_1_2:
            flags += ["-tls12"]
        if transport is Transport.TLS_1_3:
            flags += ["-no-fast-start"]
        return flags

    async def start(self) -> None:
        """Start it and return when it accepts connections."""
        with self.log.open("ab") as sink:
            self._process = await asyncio.create_subprocess_exec(
                self.program, *self._flags, stdout=sink, stderr=sink, env=self._environment
            )
        async with asyncio.timeout(START_TIMEOUT_S):
            while self._process.returncode is None:
                with contextlib.suppress(ConnectionRefusedError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                await asyncio.sleep(CONNECT_PAUSE_S)
        raise RuntimeError(f"relay exited with {self._process.returncode}:\n{self.log.read_text()}")

    async def kill(self) -> None:
        """Kill it."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        """Stop it if it runs."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            await self.kill()


@contextlib.asynccontextmanager
async def running(
    program: Path,
    directory: Path,
    *flags: str,
    tls: bool = False,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Relay]:
    """Run one relay in the block."""
    relay = Relay(program, directory, *flags, tls=tls, environment=environment)
    try:
        await relay.start()
        yield relay
    finally:
        await relay.stop()
