"""HTTPClient over TLS: trust, fast start and pins, with OpenSSL as the relay (PROTOCOL 10, 13).

Each test runs with the compiled modules and with those of other systems than Linux.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fastderp.client import DerpNode, DerpRegion, HTTPClient, dialer
from fastderp.errors import ConnectionClosed, ConnectionLost, DialError
from fastderp.net import tls
from fastderp.net.stream import Stream
from fastderp.tls import client as tls_client
from fastderp.tls import portable
from fastderp.tls.errors import TlsError
from fastderp.wire.keys import NodePrivate, NodePublic
from fastderp.wire.login import ServerInfo
from fastderp.wire.messages import ReceivedPacket
from fastderp.wire.protocol import FrameType
from tests.kit.memory_tls import MemoryTls
from tests.unit.fake_relay import FakeServer, fake_server
from tests.unit.fake_tls_relay import Identity, make_identity, man_in_the_middle, tls_server

PEER = NodePublic(b"\x11" * 32)


@pytest.fixture(params=["compiled", "portable"], autouse=True)
def modules(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "portable":
        monkeypatch.setattr(dialer, "ClientContext", portable.ClientContext)
        for name in ("ClientContext", "Handshake", "channel_of"):
            for module in (tls, tls_client):
                monkeypatch.setattr(module, name, getattr(portable, name))


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return make_identity(tmp_path_factory.mktemp("identity"))


def client_of(server: FakeServer, **options: Any) -> HTTPClient:
    return HTTPClient(
        f"https://127.0.0.1:{server.port}/derp", NodePrivate.generate(), lazy=True, **options
    )


async def logged_in_head(server: FakeServer, client: HTTPClient) -> bytes:
    """Connect, exchange a packet each way with the relay, and return the request's head."""
    connecting = asyncio.create_task(client.connect())
    head, relay = await server.next_login()
    await connecting
    assert await client.recv() == ServerInfo()
    await client.send(PEER, bytes(60000))
    assert await relay.next_frame() == (FrameType.SEND_PACKET, PEER.raw + bytes(60000))
    relay.send(FrameType.RECV_PACKET, PEER.raw, bytes(60000))
    assert await client.recv() == ReceivedPacket(PEER, bytes(60000))
    return head


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
async def test_trusted_relay_is_used(identity: Identity, version: str) -> None:
    async with (
        tls_server(identity, version=version) as server,
        client_of(server, cafile=identity.certificate) as client,
    ):
        assert b"Derp-Fast-Start" not in await logged_in_head(server, client)
        assert client.server_public_key == server.key.public_key


@pytest.mark.parametrize(("version", "starts_fast"), [("TLSv1_2", False), ("TLSv1_3", True)])
async def test_metacert_saves_a_round_trip_where_it_can_be_trusted(
    identity: Identity, version: str, starts_fast: bool
) -> None:
    async with (
        tls_server(identity, metacert=True, version=version) as server,
        client_of(server, cafile=identity.certificate) as client,
    ):
        head = await logged_in_head(server, client)
        assert (b"\r\nDerp-Fast-Start: 1\r\n\r\n" in head) is starts_fast
        assert client.server_public_key == server.key.public_key


async def test_unknown_relay_is_refused_with_an_alert(identity: Identity) -> None:
    async with tls_server(identity) as server, client_of(server) as client:
        with pytest.raises(DialError, match=r"TLS with 127\.0\.0\.1: .*self.signed"):
            await client.connect()
        assert server.accepted.empty()


async def test_insecure_accepts_any_certificate(identity: Identity) -> None:
    async with tls_server(identity) as server, client_of(server, insecure=True) as client:
        await logged_in_head(server, client)


async def test_certificate_for_another_name_is_refused(identity: Identity) -> None:
    async with tls_server(identity) as server:
        url = f"https://other.example:{server.port}/derp"
        options: dict[str, Any] = {"dial_host": "127.0.0.1", "cafile": identity.certificate}
        async with HTTPClient(url, NodePrivate.generate(), lazy=True, **options) as client:
            with pytest.raises(DialError, match=r"TLS with other\.example"):
                await client.connect()
        async with HTTPClient(
            url, NodePrivate.generate(), cert_name="derp.example", lazy=True, **options
        ) as client:
            await logged_in_head(server, client)


async def test_pinned_certificate_needs_no_issuer(identity: Identity) -> None:
    async with tls_server(identity, metacert=True) as server:
        node = DerpNode("1a", 1, "127.0.0.1", cert_name=identity.pin, derp_port=server.port)
        region = DerpRegion(1, nodes=(node,))
        async with HTTPClient.for_region(
            lambda: region, NodePrivate.generate(), lazy=True
        ) as client:
            assert b"Derp-Fast-Start: 1" in await logged_in_head(server, client)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("by", ["url", "region"])
async def test_a_man_in_the_middle_with_the_pinned_certificate_behind_gets_no_data(
    identity: Identity, tmp_path: Path, version: str, by: str
) -> None:
    async with man_in_the_middle(identity, tmp_path, version=version) as server:
        node = DerpNode("1a", 1, "127.0.0.1", cert_name=identity.pin, derp_port=server.port)
        client = (
            client_of(server, cert_name=identity.pin)
            if by == "url"
            else HTTPClient.for_region(
                lambda: DerpRegion(1, nodes=(node,)), NodePrivate.generate(), lazy=True
            )
        )
        async with client:
            with pytest.raises(DialError, match="not the pinned one"):
                await client.connect()
        assert server.accepted.empty()


MALFORMED_PINS = ["sha256-raw:", "sha256-raw:" + "zz" * 32]


@pytest.mark.parametrize("pin", ["sha256-raw:" + "00" * 32, *MALFORMED_PINS])
async def test_wrong_and_malformed_pins_of_a_node_are_refused(identity: Identity, pin: str) -> None:
    async with tls_server(identity) as server:
        node = DerpNode("1a", 1, "127.0.0.1", cert_name=pin, derp_port=server.port)
        client = HTTPClient.for_region(
            lambda: DerpRegion(1, nodes=(node,)), NodePrivate.generate(), lazy=True
        )
        async with client:
            with pytest.raises(DialError, match="pin"):
                await client.connect()
        assert server.accepted.empty()


@pytest.mark.parametrize("pin", MALFORMED_PINS)
def test_malformed_pins_in_a_program_are_refused_at_once(pin: str) -> None:
    with pytest.raises(ValueError, match="pin"):
        HTTPClient("https://relay.invalid", NodePrivate.generate(), cert_name=pin)


async def test_expired_pinned_certificate_is_refused(tmp_path: Path) -> None:
    identity = make_identity(tmp_path, days=-1)
    async with (
        tls_server(identity) as server,
        client_of(server, cert_name=identity.pin) as client,
    ):
        with pytest.raises(DialError, match="not valid now"):
            await client.connect()


async def test_node_marked_insecure_for_tests_is_not_checked(identity: Identity) -> None:
    async with tls_server(identity) as server:
        node = DerpNode("1a", 1, "127.0.0.1", derp_port=server.port, insecure_for_tests=True)
        region = DerpRegion(1, nodes=(node,))
        async with HTTPClient.for_region(
            lambda: region, NodePrivate.generate(), lazy=True
        ) as client:
            await logged_in_head(server, client)


async def test_node_marked_insecure_for_tests_is_checked_for_its_cert_name(
    identity: Identity,
) -> None:
    async with tls_server(identity) as server:
        node = DerpNode(
            *("1a", 1, "127.0.0.1"),
            cert_name="other.example",
            derp_port=server.port,
            insecure_for_tests=True,
        )
        client = HTTPClient.for_region(
            lambda: DerpRegion(1, nodes=(node,)), NodePrivate.generate(), lazy=True
        )
        async with client:
            with pytest.raises(DialError, match="certificate verify failed"):
                await client.connect()
        assert server.accepted.empty()


async def test_orderly_end_of_tls_is_an_orderly_end(identity: Identity) -> None:
    async with tls_server(identity) as server, client_of(server, insecure=True) as client:
        connecting = asyncio.create_task(client.connect())
        _, relay = await server.next_login()
        await connecting
        assert await client.recv() == ServerInfo()
        relay.writer.close()
        with pytest.raises(ConnectionClosed, match="the connection was closed"):
            await client.recv()


async def test_closing_sends_a_close_notify(identity: Identity) -> None:
    async with tls_server(identity) as server:
        client = client_of(server, insecure=True)
        connecting = asyncio.create_task(client.connect())
        _, relay = await server.next_login()
        await connecting
        await client.send(PEER, b"last words")
        await client.close()
        assert await relay.next_frame() == (FrameType.SEND_PACKET, PEER.raw + b"last words")
        assert await relay.reader.read() == b""


@pytest.mark.parametrize(
    "says", [b"HTTP/1.0 400 Bad Request\r\n\r\n", b"\x15\x03\x01\0\x02\x02\x28", b""]
)
async def test_port_that_does_not_speak_tls_is_a_dial_error(says: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(says)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with HTTPClient(
        f"https://127.0.0.1:{port}/derp", NodePrivate.generate(), lazy=True
    ) as client:
        with pytest.raises(DialError, match=r"TLS with 127\.0\.0\.1"):
            await client.connect()
    listener.close()


async def test_missing_root_file_is_named(tmp_path: Path) -> None:
    async with fake_server() as server:
        client = client_of(server, cafile=tmp_path / "none.pem")
        with pytest.raises(TlsError, match=r"none\.pem: No such file or directory"):
            await client.connect()
        await client.close()


class Collector:
    """A Receiver that keeps everything."""

    def __init__(self) -> None:
        self.data = b""
        self.end: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def received(self, data: bytes | memoryview, /) -> None:
        assert not self.end.done()
        self.data += data

    def ended(self, error: Exception | None, /) -> None:
        self.end.set_result(error)


@asynccontextmanager
async def stream_with_a_last_segment(
    identity: Identity, version: str, end: str
) -> AsyncIterator[tls.TlsStream]:
    """Connect to a server that sends two records and an end of TLS in one segment."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    context.load_cert_chain(identity.certificate, identity.key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = MemoryTls(context, server=True)
        while not server.step(await reader.read(65536)):
            writer.write(server.take_output())
        writer.write(server.take_output())
        good = server.seal(b"last") + server.seal(b" words")
        writer.write(good + (server.broken() if end == "broken" else server.close_notify()))
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1")
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        outside = Stream.of(await asyncio.open_connection("127.0.0.1", port))
        trust = tls_client.ClientContext(verify=False)
        client = await tls.TlsStream.connect(outside, trust, "127.0.0.1")
        yield client
        client.abort()


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("end", ["broken", "close_notify"])
async def test_data_in_one_segment_with_the_end_of_tls_is_read_before_it(
    identity: Identity, version: str, end: str
) -> None:
    async with stream_with_a_last_segment(identity, version, end) as stream:
        data = b""
        while len(data) < len(b"last words"):
            data += await stream.read(3)
        assert data == b"last words"
        if end == "broken":
            with pytest.raises(ConnectionLost, match="TLS: "):
                await stream.read(3)
        else:
            assert await stream.read(3) == b""


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("end", ["broken", "close_notify"])
async def test_data_in_one_segment_with_the_end_of_tls_is_delivered_before_it(
    identity: Identity, version: str, end: str
) -> None:
    async with stream_with_a_last_segment(identity, version, end) as stream:
        collector = Collector()
        stream.deliver_to(collector)
        error = await collector.end
        assert collector.data == b"last words"
        assert isinstance(error, ConnectionLost) is (end == "broken")
