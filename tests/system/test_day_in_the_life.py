"""One relay through a day, while two clients talk to each other.

Start, reload with a new certificate, a log reader that stalls, a tailscaled that restarts, SIGTERM.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import signal
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fastderp import DialError, HTTPClient, NodePrivate, ReceivedPacket, ServerRestarting
from fastderp.errors import DerpError
from tests.kit.certificates import Certificate, self_signed
from tests.kit.command import RunningRelay, manual, relay
from tests.kit.service import Service, ok, response, serving

NAME = "127.0.0.1"
PIPE_BYTES = 4096
PATIENCE_S = 20


class Tailscaled:
    """A fake tailscaled: it has some keys, and answers 404 while it restarts."""

    def __init__(self, *known: NodePrivate) -> None:
        self.own = NodePrivate.generate().public_key
        self.known = {key.public_key.hex.encode() for key in known}
        self.state = "Running"

    def answer(self, request: bytes) -> bytes:
        if b"/status?" in request:
            return ok({"BackendState": self.state, "Self": {"PublicKey": self.own.text}})
        is_known = self.state == "Running" and any(key in request for key in self.known)
        return ok({"Node": {}}) if is_known else response(404)


def put(directory: Path) -> Certificate:
    """Write a new certificate for the relay, and return it."""
    certificate = self_signed(NAME)
    (directory / f"{NAME}.key").write_bytes(certificate.key_pem)
    (directory / f"{NAME}.crt").write_text(ssl.DER_cert_to_PEM_cert(certificate.der))
    return certificate


def pin(certificate: Certificate) -> str:
    return "sha256-raw:" + hashlib.sha256(certificate.der).hexdigest()


def leaf(port: int) -> bytes | None:
    """Return the certificate that a new client receives."""
    context = ssl._create_unverified_context()
    with (
        socket.create_connection((NAME, port), timeout=PATIENCE_S) as sock,
        context.wrap_socket(sock) as client,
    ):
        return client.getpeercert(True)


@asynccontextmanager
async def client(
    running: RunningRelay, key: NodePrivate, certificate: Certificate
) -> AsyncIterator[HTTPClient]:
    url = f"https://{NAME}:{running.port}/derp"
    async with HTTPClient(url, key, cert_name=pin(certificate)) as connected:
        yield connected


async def exchange(ann: HTTPClient, bob: HTTPClient) -> None:
    """Send a packet each way and wait for both."""
    for sender, receiver in ((ann, bob), (bob, ann)):
        await sender.send(receiver.public_key, b"still here")
        async for message in receiver:
            if isinstance(message, ReceivedPacket):
                assert message.data == b"still here"
                break


async def is_refused(running: RunningRelay, key: NodePrivate, certificate: Certificate) -> bool:
    try:
        async with client(running, key, certificate):
            return False
    except (DialError, DerpError):
        return True


async def until(condition: Callable[[], bool]) -> None:
    while not await asyncio.to_thread(condition):
        await asyncio.sleep(0.02)


def drained(running: RunningRelay, n_lines: list[int]) -> threading.Thread:
    """Read the rest of the log in a thread, like a reader that has recovered."""

    def read() -> None:
        assert running.process.stderr is not None
        n_lines.extend(1 for _ in running.process.stderr)

    thread = threading.Thread(target=read)
    thread.start()
    return thread


async def live(running: RunningRelay, tailscaled: Tailscaled, service: Service, home: Path) -> None:
    ann_key, bob_key, carl_key = (NodePrivate.generate() for _ in range(3))
    known = (ann_key, bob_key, carl_key)
    tailscaled.known |= {key.public_key.hex.encode() for key in known}
    certificate = await asyncio.to_thread(put, home)
    running.process.send_signal(signal.SIGHUP)
    await until(lambda: leaf(running.port) == certificate.der)
    async with (
        client(running, ann_key, certificate) as ann,
        client(running, bob_key, certificate) as bob,
    ):
        await exchange(ann, bob)

        renewed = await asyncio.to_thread(put, home)
        running.process.send_signal(signal.SIGHUP)
        await until(lambda: leaf(running.port) == renewed.der)
        await exchange(ann, bob)

        # The log is not read: each connection writes lines, and the pipe holds few of them.
        for _ in range(60):
            async with client(running, carl_key, renewed) as carl:
                assert carl.state
        await exchange(ann, bob)
        n_lines: list[int] = []
        reader = drained(running, n_lines)

        tailscaled.state = "NeedsLogin"
        n_asked = len(service.requests)
        await until(lambda: len(service.requests) > n_asked + 4)
        assert await is_refused(running, NodePrivate.generate(), renewed)
        await exchange(ann, bob)
        tailscaled.state = "Running"
        assert await is_refused(running, NodePrivate.generate(), renewed)
        async with client(running, carl_key, renewed):
            await exchange(ann, bob)

        running.process.send_signal(signal.SIGTERM)
        heard = []
        for each in (ann, bob):
            with pytest.raises(DerpError):
                while True:
                    heard.append(await each.recv())
        assert [type(message) for message in heard].count(ServerRestarting) == 2
        assert await asyncio.to_thread(running.process.wait, PATIENCE_S) == 0
        await asyncio.to_thread(reader.join, PATIENCE_S)
        assert len(n_lines) > 60


def test_two_clients_exchange_packets_through_all_events_of_a_day(tmp_path: Path) -> None:
    put(tmp_path)
    path = tmp_path / "tailscaled.sock"
    tailscaled = Tailscaled()
    flags = [
        *("-a", f"{NAME}:0", "-stun=false", "-http-port=-1", "-c", str(tmp_path / "relay.key")),
        *manual(tmp_path, NAME),
        *("-verify-clients", "-socket", str(path), "-verify-interval", "200ms"),
    ]
    with (
        serving(tailscaled.answer, path) as service,
        relay(*flags, env={"DERP_DEBUG_LOGS": "1"}) as running,
    ):
        assert running.process.stderr is not None
        fcntl.fcntl(running.process.stderr, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        asyncio.run(asyncio.wait_for(live(running, tailscaled, service, tmp_path), 90))
