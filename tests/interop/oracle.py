"""Plays scripted conversations to relays and compares their answers.

A transcript has one line per frame, with names for keys and contents for boxes, so that two
relays that behave alike give equal transcripts. It parses the wire itself: of fastderp it uses
only keys, boxes and constants.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
import ssl
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from fastderp.errors import BoxError
from fastderp.wire.keys import NodePrivate, NodePublic
from fastderp.wire.protocol import KEY_SIZE, MAGIC, FrameType, frame

from .conversation import UPGRADE, Conversation, Leave, Login, Send, Step, describe
from .deviations import HIDDEN_FRAMES

# A frame within this time belongs to the previous step. A difference that is only a late
# frame disappears when the conversation is repeated with a longer time.
SETTLE_S = (0.03, 0.2, 1.0, 3.0)
ANSWER_TIMEOUT_S = 2.0
GREETING_TIMEOUT_S = 30.0
PING_AGAIN_S = 0.25  # a relay may drop a ping while it owes another pong
AT_ONCE = 32  # concurrent conversations with one relay: enough to hide the waiting
SHOWN_BYTES = 64

# Python's TLS also complains of frames that arrive after its own end.
BROKEN = (ConnectionError, ssl.SSLError)

BARRIER = b"barr"  # beginning of the player's own pings
DISCO_MAGIC = b"TS\xf0\x9f\x92\xac"
DISCO_MIN_SIZE = 62
LOOPBACK = bytes(10) + b"\xff\xff" + bytes((127, 0, 0, 1))

Script = Callable[[Conversation], object]
Transcript = tuple[str, ...]


class Lane(enum.IntEnum):
    """Relays keep the order of frames within a lane, not between lanes (PROTOCOL 6.6)."""

    LOGIN = 0
    DATA = 1
    DISCO = 2
    PRESENCE = 3
    ANSWER = 4
    END = 5


@dataclass(frozen=True, slots=True)
class Line:
    """One frame, or the end of a connection, as the transcript shows it."""

    lane: Lane
    text: str

    @property
    def order(self) -> tuple[Lane, str]:
        """Return a sort key: only announcements to a watcher have no fixed order."""
        return self.lane, self.text if self.lane is Lane.PRESENCE else ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A relay on loopback, and its public key; without `tls` it is dialled over plain TCP."""

    port: int
    key: NodePublic
    tls: ssl.SSLContext | None = None


@dataclass(slots=True)
class Acquaintances:
    """The actors of a conversation by their keys and ports."""

    names: Mapping[bytes, str]
    ports: defaultdict[bytes, set[int]] = field(default_factory=lambda: defaultdict(set))

    def name(self, key: bytes) -> str | None:
        """Return the actor with this key, None for one of another conversation."""
        return "none" if key == bytes(KEY_SIZE) else self.names.get(key)

    def address(self, key: bytes, tail: bytes) -> str:
        """Return the address and flags of a PeerPresent, checked against that peer's address."""
        ip, port, flags = tail[:16], int.from_bytes(tail[16:18]), tail[18:]
        if ip == LOOPBACK and port in self.ports[key]:
            return f"at its address, flags {flags.hex()}"
        return f"with {tail.hex()}"


class Connection:
    """One actor's connection; a task records all frames that arrive."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        private: NodePrivate,
        known: Acquaintances,
    ) -> None:
        self.ended = False
        self.mute = False  # pings stay unanswered: the relay waits for the rest of a frame
        self.server_key: NodePublic | None = None
        self.logged_in = False
        self.last_arrival_s = 0.0
        self._reader = reader
        self._writer = writer
        self._private = private
        self._known = known
        self._lines: list[Line] = []
        self._n_pings = 0
        self._pongs: set[bytes] = set()
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._take_down())

    @classmethod
    async def open(cls, relay: Endpoint, private: NodePrivate, known: Acquaintances) -> Connection:
        """Connect to the relay with this key."""
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port, ssl=relay.tls)
        known.ports[private.public_key.raw].add(writer.get_extra_info("sockname")[1])
        return cls(reader, writer, private, known)

    async def write(self, data: bytes) -> None:
        """Send bytes; ignore a closed connection, as the transcript shows its end."""
        if self.ended:
            return
        with contextlib.suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()

    async def wait_for(
        self, condition: Callable[[], object], timeout_s: float = ANSWER_TIMEOUT_S
    ) -> bool:
        """Wait until the condition holds or the connection ends; return False after timeout_s."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: condition() or self.ended)
        except TimeoutError:
            return False
        return True

    async def barrier(self) -> None:
        """Wait until the relay has processed everything sent so far."""
        tokens: set[bytes] = set()
        for _ in range(round(ANSWER_TIMEOUT_S / PING_AGAIN_S)):
            self._n_pings += 1
            token = BARRIER + self._n_pings.to_bytes(4)
            tokens.add(token)
            await self.write(frame(FrameType.PING, token))
            if await self.wait_for(lambda: tokens & self._pongs, PING_AGAIN_S):
                return
        self.mute = True
        self._lines.append(Line(Lane.END, "does not answer"))

    def take_lines(self) -> list[str]:
        """Return the frames since the last call, in a deterministic order."""
        lines = sorted(self._lines, key=lambda line: line.order)
        self._lines.clear()
        return [line.text for line in lines]

    async def close(self) -> None:
        """Close without further reads."""
        self._task.cancel()
        self._writer.close()
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await self._task
        with contextlib.suppress(*BROKEN):
            await self._writer.wait_closed()

    async def _take_down(self) -> None:
        try:
            await self._read_frames()
        except (asyncio.IncompleteReadError, *BROKEN):
            await self._arrived(Line(Lane.END, "is closed"), ended=True)

    async def _read_frames(self) -> None:
        start = await self._reader.readexactly(5)
        if start == b"HTTP/":
            head = start + await self._reader.readuntil(b"\r\n\r\n")
            await self._arrived(http_line(head))
            if b" 101 " not in head:
                # The body and the end of the connection are compared by the tests of HTTP.
                await self._arrived(ended=True)
                return
            start = await self._reader.readexactly(5)
        while True:
            frame_type, size = start[0], int.from_bytes(start[1:])
            await self._frame_arrived(frame_type, await self._reader.readexactly(size))
            start = await self._reader.readexactly(5)

    async def _frame_arrived(self, frame_type: int, payload: bytes) -> None:
        if (
            frame_type == FrameType.SERVER_KEY
            and payload.startswith(MAGIC)
            and len(payload) == len(MAGIC) + KEY_SIZE
        ):
            self.server_key = NodePublic(payload[len(MAGIC) :])
        if frame_type == FrameType.PONG and payload.startswith(BARRIER):
            self._pongs.add(payload)
            await self._arrived()
            return
        line = self._line_of(frame_type, payload)
        self.logged_in = self.logged_in or frame_type == FrameType.SERVER_INFO
        if line is not None:
            await self._arrived(line)

    async def _arrived(self, line: Line | None = None, *, ended: bool = False) -> None:
        if line is not None:
            self._lines.append(line)
        self.last_arrival_s = asyncio.get_running_loop().time()
        async with self._changed:
            self.ended = ended
            self._changed.notify_all()

    def _line_of(self, frame_type: int, payload: bytes) -> Line | None:
        """Return the frame's line; None for another conversation's actor or a hidden frame."""
        if frame_type in HIDDEN_FRAMES:
            return None
        match frame_type:
            case FrameType.SERVER_KEY:
                return Line(
                    Lane.LOGIN, f"ServerKey with {len(payload) - KEY_SIZE} bytes before the key"
                )
            case FrameType.SERVER_INFO:
                return Line(Lane.LOGIN, f"ServerInfo {self._open(payload)}")
            case FrameType.RECV_PACKET:
                return self._packet_line(payload)
            case FrameType.PEER_GONE | FrameType.PEER_PRESENT:
                return self._presence_line(FrameType(frame_type), payload)
            case FrameType.PONG:
                return Line(Lane.ANSWER, f"Pong {payload.hex()}")
        return Line(Lane.ANSWER, f"frame of type {frame_type:#04x} {shown(payload)}")

    def _open(self, payload: bytes) -> str:
        assert self.server_key is not None
        try:
            return self._private.open_from(self.server_key, payload).decode()
        except BoxError:
            return f"of {len(payload)} bytes that does not open"

    def _packet_line(self, payload: bytes) -> Line:
        data = payload[KEY_SIZE:]
        source = self._known.name(payload[:KEY_SIZE])
        is_disco = data.startswith(DISCO_MAGIC) and len(data) >= DISCO_MIN_SIZE
        if source is None:
            return Line(Lane.DATA, f"RecvPacket without a known source {shown(payload)}")
        return Line(
            Lane.DISCO if is_disco else Lane.DATA, f"RecvPacket from {source} {shown(data)}"
        )

    def _presence_line(self, frame_type: FrameType, payload: bytes) -> Line | None:
        key, tail = payload[:KEY_SIZE], payload[KEY_SIZE:]
        who = self._known.name(key)
        if who is None:
            return None
        if frame_type == FrameType.PEER_GONE:
            return Line(Lane.PRESENCE, f"PeerGone {who}, reason {tail.hex()}")
        return Line(Lane.PRESENCE, f"PeerPresent {who} {self._known.address(key, tail)}")


def http_line(head: bytes) -> Line:
    """Return the answer to an upgrade: an accepted one in full, otherwise its status."""
    lines = head.decode("latin-1").split("\r\n")[:-2]
    if " 101 " not in lines[0]:
        return Line(Lane.LOGIN, f"HTTP status {lines[0].split()[1]}")
    fields = [
        line if not line.startswith("Derp-Public-Key: ") else "Derp-Public-Key" for line in lines
    ]
    return Line(Lane.LOGIN, " | ".join(fields))


def shown(data: bytes) -> str:
    """Return bytes as hexadecimal while that is short, else their number and digest."""
    if len(data) <= SHOWN_BYTES:
        return f"[{data.hex()}]"
    return f"[{len(data)} bytes {hashlib.sha256(data).hexdigest()[:16]}]"


class Stage:
    """One conversation with one relay."""

    def __init__(self, relay: Endpoint, conversation: Conversation, settle_s: float) -> None:
        self._relay = relay
        self._silent = conversation.silent
        self._settle_s = settle_s
        self._known = Acquaintances(conversation.names)
        self._connections: dict[str, Connection] = {}

    async def play(self, step: Step) -> list[str]:
        """Play one step and return the resulting lines, actor by actor."""
        match step:
            case Login():
                await self._login(step)
            case Send():
                await self._connections[step.actor].write(step.data)
            case Leave():
                await self._connections.pop(step.actor).close()
        await self._settle(step.actor)
        return [
            f"{actor} <- {text}"
            for actor, c in self._connections.items()
            for text in c.take_lines()
        ]

    async def close(self) -> None:
        """Close all open connections."""
        for connection in self._connections.values():
            await connection.close()

    async def _login(self, step: Login) -> None:
        connection = await Connection.open(self._relay, step.key, self._known)
        self._connections[step.actor] = connection
        first = step.first
        if first is None:
            box = step.key.seal_to(self._relay.key, step.info)
            first = frame(FrameType.CLIENT_INFO, step.key.public_key.raw, box)
        if step.at_once:
            await connection.write(step.head + first + step.then)
        else:
            await connection.write(step.head)
            await connection.wait_for(lambda: connection.server_key)
            await connection.write(first + step.then)
        await connection.wait_for(lambda: connection.logged_in)

    async def _settle(self, acted: str) -> None:
        """Wait until every actor's frames are processed and nothing has arrived for a while.

        A ping makes its sender the active one of its key. So the others ping after all frames
        of the step: their pings must not overtake a packet to their key or a list of clients.
        """
        every_actor = {acted, *self._connections}
        for actors in ({acted}, every_actor - {acted}):
            connections = [(actor, c) for actor, c in self._connections.items() if actor in actors]
            for actor, connection in connections:
                if not (connection.ended or connection.mute or actor in self._silent):
                    await connection.barrier()
            await self._quiet()

    async def _quiet(self) -> None:
        """Wait until nothing has arrived for a while."""
        loop = asyncio.get_running_loop()
        settled_s = loop.time() + self._settle_s
        while loop.time() < settled_s:
            await asyncio.sleep(settled_s - loop.time())
            latest = max(
                (connection.last_arrival_s for connection in self._connections.values()),
                default=0.0,
            )
            settled_s = latest + self._settle_s


async def greet(port: int, tls: ssl.SSLContext | None = None) -> Endpoint:
    """Return the relay on this port with its key."""
    private = NodePrivate.generate()
    connection = await Connection.open(
        Endpoint(port, private.public_key, tls), private, Acquaintances({})
    )
    await connection.write(UPGRADE)
    await connection.wait_for(lambda: connection.server_key, GREETING_TIMEOUT_S)
    await connection.close()
    if connection.server_key is None:
        raise ConnectionError(f"no relay on port {port}")
    return Endpoint(port, connection.server_key, tls)


def written(name: str, script: Script, attempt: int = 0) -> Conversation:
    """Return the conversation of a script."""
    conversation = Conversation(name, attempt)
    script(conversation)
    return conversation


async def play(
    relay: Endpoint, conversation: Conversation, settle_s: float = SETTLE_S[0]
) -> Transcript:
    """Play a conversation and return the transcript: lines of `step actor <- frame`."""
    stage = Stage(relay, conversation, settle_s)
    transcript: list[str] = []
    try:
        for number, step in enumerate(conversation.steps):
            transcript += [f"{number} {line}" for line in await stage.play(step)]
    finally:
        await stage.close()
    return tuple(transcript)


async def play_all(
    relay: Endpoint, scripts: Mapping[str, Script], attempt: int = 0, settle_s: float = SETTLE_S[0]
) -> dict[str, Transcript]:
    """Play many conversations, some concurrently; return their transcripts by name."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> Transcript:
        async with turn:
            return await play(relay, written(name, scripts[name], attempt), settle_s)

    transcripts = await asyncio.gather(*map(one, scripts))
    return dict(zip(scripts, transcripts, strict=True))


@dataclass(frozen=True, slots=True)
class Difference:
    """A conversation that two relays answer differently."""

    conversation: Conversation
    reference: Transcript
    other: Transcript

    def __str__(self) -> str:
        lines = [self.conversation.name]
        lines += [
            f"    {number} {describe(step)}" for number, step in enumerate(self.conversation.steps)
        ]
        lines += [f"  - {line}" for line in self.reference if line not in self.other]
        lines += [f"  + {line}" for line in self.other if line not in self.reference]
        return "\n".join(lines)


async def differences(
    reference: Endpoint,
    other: Endpoint,
    scripts: Mapping[str, Script],
    foreseen: Collection[str] = (),
) -> list[Difference]:
    """Play every script to both relays and return those whose transcripts differ.

    A difference counts if it persists with longer waiting times; listed ones need not.
    """
    left = dict(scripts)
    certain: list[Difference] = []
    found: list[Difference] = []
    for attempt, settle_s in enumerate(SETTLE_S):
        expected, got = await asyncio.gather(
            play_all(reference, left, attempt, settle_s), play_all(other, left, attempt, settle_s)
        )
        found = [
            Difference(written(name, script, attempt), expected[name], got[name])
            for name, script in left.items()
            if expected[name] != got[name]
        ]
        certain += [difference for difference in found if difference.conversation.name in foreseen]
        found = [difference for difference in found if difference.conversation.name not in foreseen]
        left = {
            difference.conversation.name: left[difference.conversation.name] for difference in found
        }
    return certain + found
