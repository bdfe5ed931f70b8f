"""derper and the relay route the packets of their region alike (PROTOCOL 7.3 to 7.5).

The test plays two members that the relay is linked to, and its clients, in random histories
that are determined by their seeds.
"""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from difflib import unified_diff
from pathlib import Path

import pytest

from fastderp import ConnectionClosed, HTTPClient, MeshKey, NodePrivate, PeerGone, ReceivedPacket
from fastderp.wire.protocol import KEY_SIZE, FrameType
from tests.kit.certificates import self_signed, server_context
from tests.unit.fake_relay import FakeServer, RelayEnd, fake_server

from .conftest import StartRelay
from .scripts import disco

# The first build of the Go programs takes minutes and counts for the first test.
pytestmark = pytest.mark.timeout(600)

N_HISTORIES = 40
N_STEPS = 25
# What arrives within this time belongs to the previous step; a difference counts if it persists
# with the longer times.
SETTLE_S = (0.1, 0.5, 2.0)
LINK_TIMEOUT_S = 30.0
LOCAL = ("ann", "bob")
KEYS = (*LOCAL, "far", "away")
# derper's limit of answers to disco packets, per connection
NOT_HERE_BURST = 3
MESH_KEY = MeshKey.generate()

Transcript = list[str]


class Member:
    """A relay of the region, as the relay under test sees it: it takes the link and forwards."""

    def __init__(self, name: str, server: FakeServer) -> None:
        self.name = name
        self.server = server
        self.link: RelayEnd
        # by the source of a packet
        self.histories: dict[bytes, History] = {}

    async def take_link(self) -> None:
        """Wait for the link; a first client makes it complete."""
        _, self.link = await self.server.next_login()
        self.link.send(
            FrameType.PEER_PRESENT, NodePrivate.generate().public_key.raw, bytes(16 + 2 + 1)
        )

    async def take_packets(self) -> None:
        """Note forwarded packets until cancelled."""
        while True:
            frame_type, payload = await self.link.next_frame()
            source, to = payload[:KEY_SIZE], payload[KEY_SIZE : 2 * KEY_SIZE]
            if frame_type == FrameType.FORWARD_PACKET and source in self.histories:
                self.histories[source].note(self.name, source, "forwards", to, len(payload))


class History:
    """One history at one relay; `mesh` is logged in with the mesh key."""

    def __init__(
        self, seed: int, url: str, members: list[Member], mesh: HTTPClient, settle_s: float
    ) -> None:
        self._random = random.Random(seed)
        self._url = url
        self._members = members
        self._mesh = mesh
        self._settle_s = settle_s
        self._keys = {name: NodePrivate.generate() for name in KEYS}
        self._names = {key.public_key.raw: name for name, key in self._keys.items()}
        self._clients: dict[str, HTTPClient] = {}
        self._answers_left: dict[str, int] = {}
        self._reported: dict[str, set[bytes]] = {}
        self._receiving: list[asyncio.Task[None]] = []
        self._lines: Transcript = []
        self._latest_s = 0.0

    async def play(self) -> Transcript:
        """Play all steps; return each with what arrived after it."""
        for member in self._members:
            member.histories |= dict.fromkeys(self._names, self)
        for name in LOCAL:
            await self._join(name)
        steps = (self._announce, self._withdraw, self._send, self._forward, self._come_or_go)
        transcript: Transcript = []
        for number in range(N_STEPS):
            step = self._random.choices(steps, (3, 2, 3, 1, 1))[0]
            transcript.append(f"{number} {await step()}")
            await self._settle()
            transcript += sorted(self._lines)
            self._lines.clear()
        for client in self._clients.values():
            await client.close()
        await asyncio.gather(*self._receiving)
        return transcript

    def note(self, to: str, source: bytes, what: str, peer: bytes = b"", number: int = 0) -> None:
        """Note that a frame arrived at a member or a client."""
        self._latest_s = asyncio.get_running_loop().time()
        words = (to, "<-", self._names.get(source, "?"), what, self._names.get(peer, ""), number)
        self._lines.append("    " + " ".join(map(str, words)))

    async def _settle(self) -> None:
        """Wait until nothing has arrived for a while."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + self._settle_s
        while loop.time() < due_s:
            await asyncio.sleep(due_s - loop.time())
            due_s = self._latest_s + self._settle_s

    # Steps

    async def _announce(self) -> str:
        member, name = self._random.choice(self._members), self._random.choice(KEYS)
        member.link.send(FrameType.PEER_PRESENT, self._raw(name), bytes(16 + 2 + 1))
        return f"{member.name} announces {name}"

    async def _withdraw(self) -> str:
        member, name = self._random.choice(self._members), self._random.choice(KEYS)
        reason = self._random.choice((0, 1, 5))
        member.link.send(FrameType.PEER_GONE, self._raw(name), bytes((reason,)))
        return f"{member.name} withdraws {name} by reason {reason}"

    async def _send(self) -> str:
        if not self._clients:
            return "no client is left to send"
        name, to = self._random.choice(sorted(self._clients)), self._random.choice(KEYS)
        data = bytes(self._random.choice((0, 10, 9000)))
        if self._answers_left[name] and self._random.random() < 0.4:
            self._answers_left[name] -= 1
            data = disco(70)
        await self._clients[name].send(self._keys[to].public_key, data)
        return f"{name} sends {len(data)} bytes to {to}"

    async def _forward(self) -> str:
        source, to = self._random.choice(KEYS), self._random.choice(KEYS)
        await self._mesh.forward_packet(
            self._keys[source].public_key, self._keys[to].public_key, bytes(20)
        )
        return f"a mesh peer forwards from {source} to {to}"

    async def _come_or_go(self) -> str:
        name = self._random.choice(LOCAL)
        if name not in self._clients:
            await self._join(name)
            return f"{name} comes"
        await self._clients.pop(name).close()
        return f"{name} leaves"

    def _raw(self, name: str) -> bytes:
        return self._keys[name].public_key.raw

    async def _join(self, name: str) -> None:
        client = self._clients[name] = HTTPClient(self._url, self._keys[name])
        await client.connect()
        self._answers_left[name] = NOT_HERE_BURST
        self._reported[name] = set()
        self._receiving.append(asyncio.create_task(self._receive(name, client)))

    async def _receive(self, name: str, client: HTTPClient) -> None:
        try:
            async for message in client:
                if isinstance(message, ReceivedPacket):
                    self.note(name, message.source.raw, "sent", number=len(message.data))
                elif isinstance(message, PeerGone):
                    self._note_gone(name, message)
        except ConnectionClosed:
            pass

    def _note_gone(self, name: str, gone: PeerGone) -> None:
        """Note it, without the later departures of a peer, which derper does not report."""
        if gone.reason != 0 or gone.key.raw not in self._reported[name]:
            self.note(name, gone.key.raw, "gone", number=int(gone.reason))
        if gone.reason == 0:
            self._reported[name].add(gone.key.raw)


@asynccontextmanager
async def linked(start: StartRelay, directory: Path) -> AsyncIterator[tuple[str, list[Member]]]:
    """Run a relay that is linked to two members; yield its URL and them."""
    certificate = self_signed("localhost")
    context = server_context(certificate, directory)
    root, psk = directory / "root.crt", directory / "mesh.key"
    root.write_text(ssl.DER_cert_to_PEM_cert(certificate.der))
    psk.write_text(MESH_KEY.text)
    async with fake_server(context) as one, fake_server(context) as other:
        members = [Member("one", one), Member("other", other)]
        names = ",".join(f"localhost:{member.server.port}" for member in members)
        flags = (f"-mesh-psk-file={psk}", f"-mesh-with={names}")
        async with start(*flags, SSL_CERT_FILE=str(root)) as relay:
            async with asyncio.timeout(LINK_TIMEOUT_S):
                for member in members:
                    await member.take_link()
            tasks = [asyncio.create_task(member.take_packets()) for member in members]
            yield relay.url, members
            for task in tasks:
                task.cancel()


async def transcripts(
    start: StartRelay, directory: Path, seeds: Iterable[int], settle_s: float
) -> list[Transcript]:
    """Play the histories of these seeds at one relay, all at once."""
    directory.mkdir()
    async with (
        linked(start, directory) as (url, members),
        HTTPClient(url, NodePrivate.generate(), mesh_key=MESH_KEY) as mesh,
    ):
        histories = [History(seed, url, members, mesh, settle_s) for seed in seeds]
        return await asyncio.gather(*(history.play() for history in histories))


async def test_packets_of_a_region_take_the_same_routes(
    start_derper: StartRelay, start_fastderp: StartRelay, tmp_path: Path
) -> None:
    seeds = list(range(N_HISTORIES))
    arrived: list[str] = []
    for settle_s in SETTLE_S:
        theirs, ours = await asyncio.gather(
            transcripts(start_derper, tmp_path / f"derper {settle_s}", seeds, settle_s),
            transcripts(start_fastderp, tmp_path / f"relay {settle_s}", seeds, settle_s),
        )
        arrived += [line for transcript in theirs for line in transcript if "<-" in line]
        pairs = list(zip(seeds, theirs, ours, strict=True))
        differing = [(their, our) for _, their, our in pairs if their != our]
        seeds = [seed for seed, their, our in pairs if their != our]
        if not seeds:
            break
    assert not differing, "\n".join(
        unified_diff(*differing[0], "derper", "relay", n=99, lineterm="")
    )
    assert all(any(what in line for line in arrived) for what in ("forwards", "sent", "gone"))
