"""HTTPClient inside a WebSocket: the opening, messages of any shape, every end.

PROTOCOL §9.3, §13.
"""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fastderp.client import DerpNode, DerpRegion, HTTPClient
from fastderp.errors import ConnectionClosed, ConnectionLost, DialError
from fastderp.wire import login
from fastderp.wire.keys import NodePrivate, NodePublic
from fastderp.wire.login import ServerInfo
from fastderp.wire.messages import KeepAlive, ReceivedPacket
from fastderp.wire.protocol import HEADER, FrameType, frame
from tests.kit.websocket import BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT, message
from tests.unit.fake_relay import abort

PEER = NodePublic(b"\x11" * 32)
KEEP_ALIVE = frame(FrameType.KEEP_ALIVE)


class RelayEnd:
    """One accepted connection: reads the messages of a client, sends bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.head = b""
        self.message_sizes: list[int] = []
        self._plain = b""

    async def open(self, **changed: bytes) -> None:
        """Answer the opening handshake; `changed` replaces headers, b"" drops them."""
        self.head = await self.reader.readuntil(b"\r\n\r\n")
        [key] = [
            line.split(b": ")[1]
            for line in self.head.split(b"\r\n")
            if line.startswith(b"Sec-WebSocket-Key: ")
        ]
        accept = base64.b64encode(
            hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        )
        headers = {
            "Upgrade": b"websocket",
            "Connection": b"Upgrade",
            "Accept": accept,
            "Protocol": b"derp",
        } | changed
        self.writer.write(b"HTTP/1.1 101 Switching Protocols\r\n")
        for name, value in headers.items():
            if value:
                full = name if name in ("Upgrade", "Connection") else f"Sec-WebSocket-{name}"
                self.writer.write(full.encode() + b": " + value + b"\r\n")
        self.writer.write(b"\r\n")

    def say(self, data: bytes, first: int = FIN | BINARY) -> None:
        """Send one WebSocket frame."""
        self.writer.write(message(data, first, masked=False))

    async def next_raw(self) -> tuple[int, bytes]:
        """Return the first byte and the payload of the client's next WebSocket frame."""
        first, size = await self.reader.readexactly(2)
        assert size & 0x80, "clients mask what they send"
        size &= 0x7F
        if size >= 126:
            size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8))
        mask = await self.reader.readexactly(4)
        data = await self.reader.readexactly(size)
        return first, bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))

    async def next_frame(self) -> tuple[int, bytes]:
        """Return type and payload of the client's next DERP frame."""
        frame_type, length = HEADER.unpack(await self._read(HEADER.size))
        return frame_type, await self._read(length)

    async def accept_login(self, key: NodePrivate) -> None:
        self.say(login.server_key_frame(key.public_key))
        frame_type, payload = await self.next_frame()
        login.check_client_info_header(frame_type, len(payload))
        self.say(login.open_client_info(key, payload).server_info_frame(ServerInfo()))

    async def _read(self, n: int) -> bytes:
        while len(self._plain) < n:
            first, data = await self.next_raw()
            assert first == FIN | BINARY
            self.message_sizes.append(len(data))
            self._plain += data
        data, self._plain = self._plain[:n], self._plain[n:]
        return data


class Relay:
    """A port whose connections the test takes one by one."""

    def __init__(self) -> None:
        self.key = NodePrivate.generate()
        self.accepted: asyncio.Queue[RelayEnd] = asyncio.Queue()
        self.port = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.accepted.put_nowait(RelayEnd(reader, writer))


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    relay = Relay()
    server = await asyncio.start_server(relay.accept, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    yield relay
    server.close()
    await abort(*relay.writers)


def client_of(relay: Relay, **options: Any) -> HTTPClient:
    return HTTPClient(
        f"ws://127.0.0.1:{relay.port}/derp",
        NodePrivate.generate(),
        lazy=True,
        control_messages=True,
        **options,
    )


@asynccontextmanager
async def logged_in(relay: Relay) -> AsyncIterator[tuple[HTTPClient, RelayEnd]]:
    """Yield a client that has received ServerInfo, and the relay's end."""
    async with client_of(relay) as client:
        connecting = asyncio.create_task(client.connect())
        end = await relay.accepted.get()
        await end.open()
        await end.accept_login(relay.key)
        await connecting
        assert await client.recv() == ServerInfo()
        yield client, end


async def test_the_opening_asks_for_derp_and_nothing_else(relay: Relay) -> None:
    async with logged_in(relay) as (client, end):
        request, *lines = end.head.decode().removesuffix("\r\n\r\n").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        assert len(base64.b64decode(headers.pop("Sec-WebSocket-Key"))) == 16
        assert request == "GET /derp HTTP/1.1"
        assert headers == {
            "Host": f"127.0.0.1:{relay.port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": "derp",
            "User-Agent": "fastderp",
        }
        assert client.server_public_key == relay.key.public_key
        assert client.local_addr[0] == "127.0.0.1"


async def test_the_boundaries_of_messages_have_no_meaning(relay: Relay) -> None:
    async with logged_in(relay) as (client, end):
        packet = frame(FrameType.RECV_PACKET, PEER.raw, b"some data")
        for byte in packet:
            end.say(bytes([byte]))
        assert await client.recv() == ReceivedPacket(PEER, b"some data")
        end.say(packet[:7], BINARY)
        end.say(b"", CONTINUATION)
        end.say(b"in between", FIN | PING)
        end.say(packet[7:] + packet + KEEP_ALIVE[:3], FIN | CONTINUATION)
        end.say(KEEP_ALIVE[3:])
        assert await client.recv() == await client.recv() == ReceivedPacket(PEER, b"some data")
        assert await client.recv() == KeepAlive()
        assert await end.next_raw() == (FIN | PONG, b"in between")


async def test_the_largest_packet_goes_out_in_messages_that_derper_takes(relay: Relay) -> None:
    async with logged_in(relay) as (client, end):
        data = bytes(range(256)) * 256
        await client.send(PEER, data)
        assert await end.next_frame() == (FrameType.SEND_PACKET, PEER.raw + data)
        assert max(end.message_sizes) <= 32768


async def test_the_largest_frame_may_be_one_message(relay: Relay) -> None:
    async with logged_in(relay) as (client, end):
        data = bytes(65536)
        end.say(frame(FrameType.RECV_PACKET, PEER.raw, data) * 2)
        assert await client.recv() == await client.recv() == ReceivedPacket(PEER, data)


@pytest.mark.parametrize(
    "code", [b"", b"\x03\xe8", b"\x03\xe9gone"], ids=["no code", "1000", "1001"]
)
async def test_a_close_frame_is_an_orderly_end_after_the_sent_data(
    relay: Relay, code: bytes
) -> None:
    async with logged_in(relay) as (client, end):
        end.say(KEEP_ALIVE)
        end.say(code, FIN | CLOSE)
        assert await client.recv() == KeepAlive()
        with pytest.raises(ConnectionClosed, match="the connection was closed") as error:
            await client.recv()
        assert type(error.value) is ConnectionClosed
        assert await end.next_raw() == (FIN | CLOSE, code)


async def test_an_end_without_a_close_frame_is_an_orderly_end(relay: Relay) -> None:
    async with logged_in(relay) as (client, end):
        end.writer.close()
        with pytest.raises(ConnectionClosed, match="the connection was closed"):
            await client.recv()


@pytest.mark.parametrize(
    ("first", "said", "answered", "complaint"),
    [
        (FIN | CLOSE, b"\x03\xf0go away", 1008, "1008 .* go away"),
        (FIN | TEXT, b"hello", 1003, "1003"),
        (FIN | BINARY, bytes((2 << 20) + 11), 1009, "limit"),
        (FIN | CONTINUATION, b"", 1002, "continuation"),
        (FIN | 3, b"", 1002, "opcode"),
        (FIN | 0x40 | BINARY, b"", 1002, "reserved"),
    ],
    ids=["1008", "text", "too long", "stray continuation", "unknown opcode", "reserved bit"],
)
async def test_protocol_violations_and_other_close_codes_break_the_connection(
    relay: Relay, first: int, said: bytes, answered: int, complaint: str
) -> None:
    async with logged_in(relay) as (client, end):
        end.say(said, first)
        with pytest.raises(ConnectionLost, match=complaint):
            await client.recv()
        frame_type, payload = await end.next_raw()
        assert (frame_type, int.from_bytes(payload[:2])) == (FIN | CLOSE, answered)


async def test_nothing_is_sent_after_a_close_frame(relay: Relay) -> None:
    async with logged_in(relay) as (client, end):
        end.say(b"\x03\xe8", FIN | CLOSE)
        receiving = asyncio.create_task(client.recv())
        assert await end.next_raw() == (FIN | CLOSE, b"\x03\xe8")
        with pytest.raises(ConnectionClosed):
            await receiving
        assert await end.reader.read() == b""


async def test_closing_sends_a_close_frame_after_the_queued_data(relay: Relay) -> None:
    async with logged_in(relay) as (client, end):
        await client.send(PEER, b"last words")
        await client.close()
        assert await end.next_frame() == (FrameType.SEND_PACKET, PEER.raw + b"last words")
        assert await end.next_raw() == (FIN | CLOSE, b"\x03\xe8")
        assert await end.reader.read() == b""


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"Protocol": b""}, "no WebSocket for DERP"),
        ({"Protocol": b"chat"}, "no WebSocket: .*subprotocol"),
        ({"Accept": b"AAAA"}, "no WebSocket: .*Accept"),
        ({"Upgrade": b"DERP"}, "no WebSocket: .*Upgrade"),
        ({"Extensions": b"permessage-deflate"}, "no WebSocket: .*extension"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,
)
async def test_an_opening_that_is_no_agreement_on_derp_is_a_dial_error(
    relay: Relay, changed: dict[str, bytes], complaint: str
) -> None:
    async with client_of(relay) as client:
        connecting = asyncio.create_task(client.connect())
        end = await relay.accepted.get()
        await end.open(**changed)
        with pytest.raises(DialError, match=complaint):
            await connecting
        assert await end.reader.read() == b""


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (
            b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 7\r\n\r\nno DERP",
            "answered '426 Upgrade Required': 'no DERP'",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000, "answered '200 OK': 'x{200}'$"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "no WebSocket"),
        (b"", "no WebSocket"),
    ],
    ids=["refused", "a page", "not HTTP", "nothing"],
)
async def test_the_text_of_another_answer_is_in_the_error(
    relay: Relay, answer: bytes, complaint: str
) -> None:
    async with client_of(relay) as client:
        connecting = asyncio.create_task(client.connect())
        end = await relay.accepted.get()
        await end.reader.readuntil(b"\r\n\r\n")
        end.writer.write(answer)
        end.writer.close()
        with pytest.raises(DialError, match=complaint):
            await connecting


async def test_regions_are_reached_by_websocket_by_argument_or_environment(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = DerpRegion(1, nodes=(DerpNode("1a", 1, "127.0.0.1", derp_port=relay.port),))
    for environment, use_websocket, expected in (
        ("", True, True),
        ("1", None, True),
        ("", None, False),
        ("1", False, False),
    ):
        monkeypatch.setenv("TS_DEBUG_DERP_WS_CLIENT", environment)
        async with HTTPClient.for_region(
            lambda: region,
            NodePrivate.generate(),
            lazy=True,
            use_tls=False,
            use_websocket=use_websocket,
        ) as client:
            connecting = asyncio.create_task(client.connect())
            end = await relay.accepted.get()
            head = await end.reader.readuntil(b"\r\n\r\n")
            assert (b"\r\nUpgrade: websocket\r\n" in head) is expected
            end.writer.close()
            with pytest.raises(DialError):
                await connecting


async def test_a_host_that_is_not_valid_in_a_header_is_a_dial_error(relay: Relay) -> None:
    for host in ("a b", "a\r\nX: 1", "a/b?c#d", "[x"):
        node = DerpNode("1a", 1, host, ipv4="127.0.0.1", ipv6="none", derp_port=relay.port)
        region = DerpRegion(1, nodes=(node,))
        async with HTTPClient.for_region(
            lambda: region, NodePrivate.generate(), lazy=True, use_tls=False, use_websocket=True
        ) as client:
            with pytest.raises(DialError):
                await asyncio.wait_for(client.connect(), 5)
