"""tailscale's client and ours report the same messages for the same frames (PROTOCOL 2, 4)."""

import asyncio
import hashlib
import json
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastderp import (
    DerpError,
    Health,
    KeepAlive,
    Message,
    PeerGone,
    PeerPresent,
    Ping,
    Pong,
    ReceivedPacket,
    ServerInfo,
    ServerRestarting,
)
from fastderp.wire.protocol import MAX_CLIENT_FRAME_SIZE, FrameType, frame
from tests.unit.fake_relay import FakeServer, RelayEnd, fake_server

from .gokit import GoPrograms

# The first build of the Go programs takes minutes and counts for the first test.
pytestmark = pytest.mark.timeout(600)

PATIENCE_S = 20.0
N_FRAMES = 300
# the limits of the fields of all frames, and the sizes next to them
SIZES = (0, 1, 7, 8, 9, 31, 32, 33, 34, 49, 50, 51, 52, 53, 100, 4090, 4096, 5000, 70_000)
TYPES = (*range(0x17), 0x7F, 0x80, 0xFF)

Report = tuple[object, ...]
"""A message: the name of derpkit's event, and its content."""


def frames(seed: int) -> list[bytes]:
    """Return frames of every type and size; ServerInfo, which must be sealed, is left out."""
    choose = random.Random(seed)
    made = []
    for _ in range(N_FRAMES):
        frame_type = choose.choice([each for each in TYPES if each != FrameType.SERVER_INFO])
        payload = choose.randbytes(choose.choice(SIZES))
        if frame_type == FrameType.PEER_PRESENT and len(payload) >= 50 and choose.random() < 0.5:
            ip = bytes(10) + b"\xff\xff" + choose.randbytes(4)
            payload = payload[:32] + ip + payload[48:]
        if frame_type == FrameType.HEALTH:
            # The clients replace bytes that are not UTF-8 in different numbers.
            payload = choose.choice((b"", b"two clients share a key", "zwölf".encode(), b"a\0b"))
        made.append(frame(frame_type, payload))
    return made


def sealed(text: bytes) -> Callable[[RelayEnd], bytes]:
    """Return a ServerInfo frame for the client that has logged in."""

    def server_info(relay: RelayEnd) -> bytes:
        assert relay.login is not None
        return frame(FrameType.SERVER_INFO, relay.login.box.seal(text))

    return server_info


def raw(data: bytes) -> Callable[[RelayEnd], bytes]:
    return lambda relay: data


LARGEST = b"\x7f" + MAX_CLIENT_FRAME_SIZE.to_bytes(4) + bytes(MAX_CLIENT_FRAME_SIZE)

# what the relay sends last, before a KeepAlive and the end
LAST = {
    "nothing": raw(b""),
    "half a frame": raw(frame(FrameType.HEALTH, bytes(40))[:20]),
    "the largest frame": raw(LARGEST),
    "a frame that is too large": raw(b"\x7f" + (MAX_CLIENT_FRAME_SIZE + 1).to_bytes(4)),
    "a second ServerInfo": sealed(
        b'{"version":2,"TokenBucketBytesPerSecond":77,"TokenBucketBytesBurst":99}'
    ),
    "a ServerInfo in capitals": sealed(b'{"TOKENBUCKETBYTESPERSECOND":5,"later":[]}'),
    "an empty ServerInfo": sealed(b"{}"),
    "a ServerInfo of null": sealed(b"null"),
    "a ServerInfo with a negative rate": sealed(b'{"TokenBucketBytesPerSecond":-5}'),
    "a ServerInfo with a fraction": sealed(b'{"TokenBucketBytesPerSecond":5.0}'),
    "a ServerInfo with a text as version": sealed(b'{"version":"2"}'),
    "a ServerInfo that is a list": sealed(b"[]"),
    "a ServerInfo that is not JSON": sealed(b"nope"),
    "a long ServerInfo": sealed(b'{"later":"%s"}' % (b"a" * 900_000)),
    "a short ServerInfo": raw(frame(FrameType.SERVER_INFO, bytes(23))),
    "a ServerInfo that does not open": raw(frame(FrameType.SERVER_INFO, bytes(60))),
}


def report_of(message: Message) -> Report:
    """Return our message as derpkit reports it."""
    match message:
        case ReceivedPacket():
            digest = hashlib.sha256(message.data).hexdigest()
            return "packet", message.source.text, len(message.data), digest
        case PeerGone():
            return "peer_gone", message.key.text, int(message.reason)
        case PeerPresent():
            address = ""
            if message.ip is not None:
                host = f"[{message.ip}]" if message.ip.version == 6 else str(message.ip)
                address = f"{host}:{message.port}"
            return "peer_present", message.key.text, address, int(message.flags)
        case Ping() | Pong():
            return type(message).__name__.lower(), message.data.hex()
        case Health():
            return "health", message.problem
        case ServerRestarting():
            return "restarting", message.reconnect_in_s, message.try_for_s
        case ServerInfo():
            rate, burst = (
                message.token_bucket_bytes_per_second,
                message.token_bucket_bytes_burst,
            )
            return "ready", rate, burst
        case KeepAlive():
            return ("keep_alive",)


# the content of derpkit's events, by their names
FIELDS = {
    "packet": ("from", "size", "sha256"),
    "peer_gone": ("peer", "reason"),
    "peer_present": ("peer", "addr", "flags"),
    "ping": ("data",),
    "pong": ("data",),
    "keep_alive": (),
    "health": ("problem",),
    "restarting": ("reconnect_in_s", "try_for_s"),
    "ready": ("bytes_per_second", "bytes_burst"),
    "broken": (),
}


@dataclass
class Relay:
    """A relay that sends the same to every client, and then closes."""

    server: FakeServer
    frames: list[bytes]
    last: Callable[[RelayEnd], bytes]

    async def serve_one(self) -> None:
        _, client = await self.server.next_login()
        client.writer.write(b"".join(self.frames) + self.last(client) + frame(FrameType.KEEP_ALIVE))
        await client.writer.drain()
        client.writer.write_eof()

    async def reports_of_theirs(self, derpkit: Path) -> list[Report]:
        """Return what tailscale's client reports."""
        serving = asyncio.create_task(self.serve_one())
        # It ends with the connection, or with its input.
        process = await asyncio.create_subprocess_exec(
            derpkit,
            f"-url=http://127.0.0.1:{self.server.port}/derp",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            events = [json.loads(line) for line in (await process.stdout.read()).splitlines()]
            await process.wait()
            await serving
        return [
            (event["event"], *(event[field] for field in FIELDS[event["event"]]))
            for event in events
        ]

    async def reports_of_ours(self) -> list[Report]:
        """Return what our client reports."""
        serving = asyncio.create_task(self.serve_one())
        reports: list[Report] = []
        async with self.server.client(control_messages=True, lazy=True) as client:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    while True:
                        reports.append(report_of(await client.recv()))
            except DerpError:
                await serving
        return [*reports, ("broken",)]


@pytest.mark.parametrize("last", LAST)
async def test_both_clients_report_the_same(go_programs: GoPrograms, last: str) -> None:
    async with fake_server() as server:
        relay = Relay(server, frames(list(LAST).index(last)), LAST[last])
        theirs = await relay.reports_of_theirs(go_programs.derpkit)
        assert await relay.reports_of_ours() == theirs
        assert len(theirs) > N_FRAMES / 10
