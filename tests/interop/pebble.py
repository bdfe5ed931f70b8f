"""Pebble, Let's Encrypt's CA for tests: a process per test, with a nameserver.

Each test has its own loopback address, so that ports can be fixed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import socketserver
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.message
import dns.rdatatype
import dns.rrset

from tests.interop.gokit import GoError
from tests.kit.certificates import self_signed

MODULE = Path(__file__).parent / "go-pebble"
PACKAGES = "github.com/letsencrypt/pebble/v2/cmd"
START_TIMEOUT_S = 20.0

CA_PORT, MANAGEMENT_PORT, HTTPS_PORT, HTTP_PORT, UNUSED_PORT = 14000, 15000, 15443, 15080, 15999
DNS_PORT, DNS_MANAGEMENT_PORT = 15053, 15055
NAME = "derp.example.com"

DAY_S = 86400
# Pebble picks any profile for an order that names none.
PROFILES = {
    "shortlived": {"description": "as Let's Encrypt has it", "validityPeriod": 6 * DAY_S},
    **{f"other-{n}": {"description": "another", "validityPeriod": 90 * DAY_S} for n in range(5)},
}


def build(into: Path, name: str = "pebble") -> Path:
    """Build Pebble or its DNS server; return the program. Raises GoError with the error output."""
    program = into / name
    command = ["go", "build", "-trimpath", "-o", str(program), f"{PACKAGES}/{name}"]
    try:
        subprocess.run(command, cwd=MODULE, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise GoError("Go is not installed") from None
    except subprocess.CalledProcessError as error:
        raise GoError(f"{' '.join(command)}: {error.stderr.strip()}") from None
    return program


@dataclass
class Pebble:
    """A CA that can be started and stopped; a stop discards its state."""

    program: Path
    directory: Path
    address: str
    nameserver: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def flags(self) -> list[str]:
        """The relay's flags for this CA and for the address where the CA validates."""
        return [
            "-a", f"{self.address}:{HTTPS_PORT}",
            "-http-port", str(HTTP_PORT),
            "-stun=false",
            "-c", str(self.directory / "relay.key"),
            "-certdir", str(self.cert_dir),
            "-hostname", NAME,
            "-acme-directory", f"https://{self.address}:{CA_PORT}/dir",
            "-acme-ca-file", str(self.directory / "pebble.pem"),
        ]  # fmt: skip

    @property
    def cert_dir(self) -> Path:
        """The relay's directory of certificates."""
        return self.directory / "certs"

    def start(self, **config: Any) -> None:
        """Start it with changes to its configuration; return when it answers."""
        certificate = self_signed(self.address)
        (self.directory / "pebble.pem").write_text(ssl.DER_cert_to_PEM_cert(certificate.der))
        (self.directory / "pebble.key").write_bytes(certificate.key_pem)
        settings = {
            "listenAddress": f"{self.address}:{CA_PORT}",
            "managementListenAddress": f"{self.address}:{MANAGEMENT_PORT}",
            "certificate": str(self.directory / "pebble.pem"),
            "privateKey": str(self.directory / "pebble.key"),
            "httpPort": HTTP_PORT,
            "tlsPort": HTTPS_PORT,
            "retryAfter": {"authz": 1, "order": 1},
            "keyAlgorithm": "ecdsa",
            "profiles": PROFILES,
        } | config
        (self.directory / "pebble.json").write_text(json.dumps({"pebble": settings}))
        # without its deliberate delays and refused nonces; a nonce that is refused twice in a
        # row fails an order
        environment = {
            **os.environ,
            "PEBBLE_VA_NOSLEEP": "1",
            "PEBBLE_WFE_NONCEREJECT": "0",
            "PEBBLE_AUTHZREUSE": "0",
        }
        command: list[str | Path] = [
            self.program,
            "-config",
            self.directory / "pebble.json",
            "-dnsserver",
            self.nameserver,
        ]
        with (self.directory / "pebble.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError):
                return self._read_root()
            assert self.process.poll() is None and time.monotonic() < deadline, (
                self.directory / "pebble.log"
            ).read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop Pebble if it runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _read_root(self) -> None:
        """Write the root that clients trust; Pebble makes another with each start."""
        for port, page in ((CA_PORT, "dir"), (MANAGEMENT_PORT, "roots/0")):
            trusting = ssl.create_default_context(cafile=str(self.directory / "pebble.pem"))
            with urllib.request.urlopen(
                f"https://{self.address}:{port}/{page}", timeout=10, context=trusting
            ) as answer:
                self.root = answer.read().decode()


class Nameserver(socketserver.StreamRequestHandler):
    """Answers queries for NAME with this machine's address, over TCP as Pebble asks."""

    def handle(self) -> None:
        assert isinstance(self.server, socketserver.TCPServer)
        while length := self.rfile.read(2):
            query = dns.message.from_wire(self.rfile.read(int.from_bytes(length, "big")))
            [question] = query.question
            answer = dns.message.make_response(query)
            if (
                question.name.to_text(omit_final_dot=True) == NAME
                and question.rdtype == dns.rdatatype.A
            ):
                answer.answer.append(
                    dns.rrset.from_text(question.name, 60, "IN", "A", self.server.server_address[0])
                )
            self.wfile.write(answer.to_wire(prepend_length=True))


@contextlib.contextmanager
def nameserver(address: str) -> Iterator[str]:
    """Run a nameserver at the address in the block; return its address and port."""
    with socketserver.ThreadingTCPServer((address, 0), Nameserver) as server:
        server.daemon_threads = True
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="nameserver"
        )
        thread.start()
        try:
            yield f"{address}:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join(10)


@contextlib.contextmanager
def dns_server(program: Path, address: str) -> Iterator[str]:
    """Run pebble-challtestsrv in the block; return the URL that changes its records.

    It answers on DNS_PORT.
    """
    management = f"{address}:{DNS_MANAGEMENT_PORT}"
    command: list[str | Path] = [
        program, "-dnsserver", f"{address}:{DNS_PORT}", "-management", management,
        "-defaultIPv4", address, "-defaultIPv6", "",
        "-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while True:
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection((address, DNS_MANAGEMENT_PORT)),
                ):
                    break
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            yield f"http://{management}"
        finally:
            process.kill()


@contextlib.contextmanager
def pebble(program: Path, directory: Path) -> Iterator[Pebble]:
    """Yield a CA that is not started; stop it after the block."""
    address = f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"
    with nameserver(address) as where:
        ca = Pebble(program, directory, address, where)
        try:
            yield ca
        finally:
            ca.stop()
