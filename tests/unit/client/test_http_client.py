"""HTTPClient over plain HTTP: its connections, requests and repetitions (PROTOCOL §13)."""

import asyncio
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest

from fastderp.client import Client, DerpMap, DerpNode, DerpRegion, HTTPClient, connector
from fastderp.errors import ConnectionClosed, DialError
from fastderp.wire.keys import NodePrivate, NodePublic
from fastderp.wire.login import ServerInfo
from fastderp.wire.messages import Pong, ReceivedPacket
from fastderp.wire.protocol import FrameType
from tests.unit.fake_relay import FakeServer, fake_server, stream_pairs

PEER = NodePublic(b"\x11" * 32)


def client_of(server: FakeServer, **options: Any) -> HTTPClient:
    """Return a client that connects when it is used, and returns all messages of the relay."""
    return server.client(**{"lazy": True, "control_messages": True} | options)


async def test_nothing_is_dialled_before_the_first_use(server: FakeServer) -> None:
    async with client_of(server) as client:
        assert not client.is_connected
        assert client.generation == 0
        assert client.server_public_key is None
        with pytest.raises(ConnectionClosed, match="not connected"):
            _ = client.local_addr
        for request in (client.ping(), client.send_ping(bytes(8)), client.send_pong(bytes(8))):
            with pytest.raises(ConnectionClosed, match="not connected"):
                await request
        await client.note_preferred(True)
        assert server.accepted.empty()


async def test_first_use_connects_with_the_request_relays_know(server: FakeServer) -> None:
    async with client_of(server, app_name="test") as client:
        sending = asyncio.create_task(client.send(PEER, b"hello"))
        head, relay = await server.next_login()
        await sending
        assert head == (
            b"GET /derp HTTP/1.1\r\n"
            b"Host: 127.0.0.1:%d\r\n"
            b"User-Agent: fastderp\r\n"
            b"Connection: Upgrade\r\n"
            b"Upgrade: DERP\r\n"
            b"\r\n" % server.port
        )
        assert relay.login is not None
        assert relay.login.public == client.public_key
        assert relay.login.info.app_name == "test"
        assert await relay.next_frame() == (FrameType.SEND_PACKET, PEER.raw + b"hello")
        assert await client.recv_with_generation() == (ServerInfo(), 1)
        assert client.server_public_key == server.key.public_key
        assert client.local_addr[0] == "127.0.0.1"
        assert client.is_connected


@pytest.mark.parametrize(
    ("path", "requested"),
    [("", b"/derp"), ("/", b"/"), ("/a//b/../derp?x=%20", b"/a//b/../derp?x=%20")],
)
async def test_path_is_used_as_given(server: FakeServer, path: str, requested: bytes) -> None:
    client = HTTPClient(f"http://127.0.0.1:{server.port}{path}", NodePrivate.generate())
    connecting = asyncio.create_task(client.connect())
    head, _ = await server.next_login()
    await connecting
    assert head.split(b" ")[1] == requested
    await client.close()


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "http"),
        ("derp.example.com", "http"),
        ("ftp://derp.example.com/", "http"),
        ("https:///derp", "host"),
        ("https://derp.example.com:port/", "[Pp]ort"),
        ("https://derp.example.com:99999/", "[Pp]ort"),
        ("https://derp.example.com:0/", "from 1 to 65535"),
        ("https://derp.example.com/a b", "escaping"),
        ("https://derp.example.com/é", "escaping"),
        ("https://derp.example.com/\r\nX: 1", "escaping"),
        ("https://me:secret@derp.example.com/derp", "must not contain a user"),
    ],
)
def test_unusable_urls_are_refused_at_once(url: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        HTTPClient(url, NodePrivate.generate())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("option", ["bogus", "certname", "ca_file"])
@pytest.mark.parametrize("make", [HTTPClient, HTTPClient.for_region], ids=["url", "region"])
def test_an_option_that_does_not_exist_is_refused_at_once(
    make: Callable[..., HTTPClient], option: str
) -> None:
    where: Any = "http://relay.invalid" if make is HTTPClient else lambda: None
    with pytest.raises(TypeError, match=option):
        make(where, NodePrivate.generate(), **{option: "x"})


def test_a_key_given_as_text_is_refused_at_once_and_not_quoted() -> None:
    private, text = NodePrivate.generate(), "11" * 32
    with pytest.raises(TypeError, match=r"private_key.*NodePrivate\.from_text") as caught:
        HTTPClient("http://relay.invalid", private.text)  # type: ignore[arg-type]
    assert private.text not in str(caught.value)
    with pytest.raises(TypeError, match=r"mesh_key.*MeshKey\.from_text") as caught:
        HTTPClient.for_region(lambda: None, private, mesh_key=text)  # type: ignore[arg-type]
    assert text not in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 33, "two\nlines", "café"])
async def test_an_app_name_that_relays_refuse_is_refused_at_once(name: str) -> None:
    private = NodePrivate.generate()
    with pytest.raises(ValueError, match="app_name .* 32 characters"):
        HTTPClient("http://relay.invalid", private, app_name=name)
    with pytest.raises(ValueError, match="app_name .* 32 characters"):
        HTTPClient.for_region(lambda: None, private, app_name=name)
    async with stream_pairs() as (near, far):
        with pytest.raises(ValueError, match="app_name .* 32 characters"):
            await Client.handshake(near, private, app_name=name)
        assert await far[0].read() == b""


@pytest.mark.parametrize("option", ["cert_name", "dial_host", "app_name"])
def test_an_option_that_is_not_a_text_is_refused_at_once(option: str) -> None:
    where: Any = {option: None}
    with pytest.raises(TypeError, match=f"{option} must be a str, not NoneType"):
        HTTPClient("http://relay.invalid", NodePrivate.generate(), **where)


async def test_failing_call_raises_and_the_next_one_reconnects(server: FakeServer) -> None:
    async with client_of(server) as client:
        receiving = asyncio.create_task(client.recv())
        _, relay = await server.next_login()
        assert await receiving == ServerInfo()
        await relay.close()
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert not client.is_connected
        assert server.accepted.empty()
        receiving_again = asyncio.create_task(client.recv_with_generation())
        await server.next_login()
        assert await receiving_again == (ServerInfo(), 2)


async def test_many_messages_are_taken_at_once_and_no_more_than_asked_for(
    server: FakeServer,
) -> None:
    async with client_of(server) as client:
        with pytest.raises(ValueError, match="limit must be at least 1"):
            await client.recv_many(limit=0)
        receiving = asyncio.create_task(client.recv_many(limit=2))
        _, relay = await server.next_login()
        for number in range(10):
            relay.send(FrameType.RECV_PACKET, PEER.raw, b"%d" % number)
        received = await receiving
        assert 1 <= len(received) <= 2
        while len(received) < 11:
            received += await client.recv_many()
        packets = [ReceivedPacket(PEER, b"%d" % number) for number in range(10)]
        assert received == [ServerInfo(), *packets]


async def test_failed_send_ends_the_receiver_of_that_connection_only(server: FakeServer) -> None:
    async with client_of(server) as client:
        receiving = asyncio.create_task(client.recv())
        _, relay = await server.next_login(None)
        with (
            patch("fastderp.client.client.FORWARD_TIMEOUT_S", 0.01),
            pytest.raises(ConnectionClosed),
        ):
            while True:
                await client.forward_packet(PEER, PEER, bytes(65536))
        with pytest.raises(ConnectionClosed):
            await receiving
        sending = asyncio.create_task(client.send(PEER, b""))
        _, relay = await server.next_login()
        await sending
        assert await relay.next_frame() == (FrameType.SEND_PACKET, PEER.raw)
        assert client.generation == 2


async def test_tasks_that_need_a_connection_at_once_share_it(server: FakeServer) -> None:
    async with client_of(server) as client:
        tasks = [asyncio.create_task(client.send(PEER, bytes((n,)))) for n in range(5)]
        _, relay = await server.next_login()
        await asyncio.gather(*tasks)
        assert sorted([(await relay.next_frame())[1][-1] for _ in range(5)]) == list(range(5))
        assert server.accepted.empty()
        assert client.generation == 1


async def test_a_cancelled_caller_does_not_cancel_the_shared_attempt(
    server: FakeServer,
) -> None:
    async with client_of(server) as client:
        hasty = asyncio.create_task(client.connect())
        patient = asyncio.create_task(client.connect())
        head_and_relay = await server.accepted.get()
        hasty.cancel()
        await head_and_relay[1].accept_login()
        await patient
        with pytest.raises(asyncio.CancelledError):
            await hasty
        assert client.is_connected


async def test_preference_is_sent_on_change_and_on_every_connection(
    server: FakeServer,
) -> None:
    async with client_of(server) as client:
        await client.note_preferred(True)
        connecting = asyncio.create_task(client.connect())
        _, relay = await server.next_login()
        await connecting
        assert await relay.next_frame() == (FrameType.NOTE_PREFERRED, b"\1")
        await client.note_preferred(True)
        await client.note_preferred(False)
        await client.note_preferred(True)
        assert await relay.next_frame() == (FrameType.NOTE_PREFERRED, b"\0")
        assert await relay.next_frame() == (FrameType.NOTE_PREFERRED, b"\1")
        await relay.close()
        with pytest.raises(ConnectionClosed):
            while True:
                await client.recv()
        connecting = asyncio.create_task(client.connect())
        _, relay = await server.next_login()
        await connecting
        assert await relay.next_frame() == (FrameType.NOTE_PREFERRED, b"\1")
        await client.note_preferred(False)
        assert await relay.next_frame() == (FrameType.NOTE_PREFERRED, b"\0")


async def test_watching_is_requested_before_the_login_is_answered(server: FakeServer) -> None:
    async with client_of(server) as client:
        watching = asyncio.create_task(client.watch_connection_changes())
        for _connection in range(2):
            _, relay = await server.next_login(None)
            assert await relay.next_frame() == (FrameType.WATCH_CONNS, b"")
            await watching
            await relay.close()
            with pytest.raises(ConnectionClosed):
                await client.recv()
            watching = asyncio.create_task(client.send(PEER, b""))
        await server.next_login()
        await watching


async def test_ping_uses_the_connection(server: FakeServer) -> None:
    async with client_of(server) as client:
        connecting = asyncio.create_task(client.connect())
        _, relay = await server.next_login()
        await connecting
        assert await client.recv() == ServerInfo()
        receiving = asyncio.create_task(client.recv())
        pinging = asyncio.create_task(client.ping())
        relay.send(FrameType.PONG, (await relay.next_frame())[1])
        assert await pinging >= 0
        await client.send_ping(b"12345678")
        relay.send(FrameType.PONG, (await relay.next_frame())[1])
        assert await receiving == Pong(b"12345678")
        await client.send_pong(b"87654321")
        assert await relay.next_frame() == (FrameType.PONG, b"87654321")


async def test_closing_is_final_and_ends_the_iteration(server: FakeServer) -> None:
    client = client_of(server)
    messages = aiter(client)
    first = asyncio.create_task(anext(messages))
    _, relay = await server.next_login()
    relay.send(FrameType.RECV_PACKET, PEER.raw, b"hello")
    assert await first == ServerInfo()
    assert await anext(messages) == ReceivedPacket(PEER, b"hello")
    last = asyncio.create_task(anext(messages))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(StopAsyncIteration):
        await last
    for request in (client.recv(), client.send(PEER, b""), client.connect(), client.ping()):
        with pytest.raises(ConnectionClosed, match="closed"):
            await request
    await client.close()


async def test_closing_while_connecting_fails_every_waiting_call(server: FakeServer) -> None:
    client = client_of(server)
    waiting = [asyncio.create_task(client.recv()), asyncio.create_task(client.connect())]
    _, relay = await server.accepted.get()
    await client.close()
    for task in waiting:
        with pytest.raises(ConnectionClosed, match="closed"):
            await task
    assert await relay.reader.read() == b""


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (
            b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 33\r\n\r\nDERP requires connection upgrade\n",
            "426 Upgrade Required.*DERP requires connection upgrade",
        ),
        (b"HTTP/1.0 200 OK\r\n\r\n<h1>DERP</h1>", "200 OK.*<h1>DERP</h1>"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "404 Not Found'$"),
        (b"HTTP/1.1 500 \x1b[31m\r\n\r\n\x1b[2J", r"500 \\x1b\[31m.*\\x1b\[2J"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\n", "inside an HTTP head"),
        (b"HTTP/1.1 101 Switching Protocols\r\nX: " + b"x" * 70000, "more than 65536 bytes"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\nno DERP behind it", "ServerKey|frame"),
    ],
)
async def test_other_answers_than_an_upgrade_are_dial_errors(
    server: FakeServer, answer: bytes, complaint: str
) -> None:
    server.refuse = answer
    async with client_of(server) as client:
        with pytest.raises(DialError, match=complaint):
            await client.connect()
        assert not client.is_connected
        server.refuse = b""
        connecting = asyncio.create_task(client.connect())
        await server.next_login()
        await connecting


async def test_a_relay_that_never_answers_times_out(server: FakeServer) -> None:
    with patch.object(connector, "CONNECT_TIMEOUT_S", 1.0):
        async with client_of(server) as client:
            with pytest.raises(DialError, match=r"no connection to http://.* in 1 s"):
                await client.connect()
        _, relay = await server.accepted.get()
        assert await relay.reader.read() == b""


async def test_closed_port_is_a_dial_error_that_names_it() -> None:
    async with fake_server() as server:
        port = server.port
    async with HTTPClient(f"http://127.0.0.1:{port}", NodePrivate.generate(), lazy=True) as client:
        with pytest.raises(DialError, match=f"127.0.0.1:{port}: Connection refused"):
            await client.connect()


def node(name: str, port: int, **members: Any) -> DerpNode:
    return DerpNode(name, 901, "127.0.0.1", derp_port=port, **members)


async def test_region_is_looked_up_on_every_connect(server: FakeServer) -> None:
    regions: list[DerpRegion | None] = [
        None,
        DerpRegion(901, "home", nodes=(node("901s", 0, stun_only=True),)),
        DerpRegion(901, "home", nodes=(node("901a", server.port),)),
    ]
    async with HTTPClient.for_region(
        lambda: regions.pop(0), NodePrivate.generate(), use_tls=False, lazy=True
    ) as client:
        with pytest.raises(DialError, match="no such DERP region"):
            await client.connect()
        with pytest.raises(DialError, match="region home: no node to connect to"):
            await client.connect()
        connecting = asyncio.create_task(client.connect())
        head, _ = await server.next_login()
        await connecting
        assert b"\r\nHost: 127.0.0.1:%d\r\n" % server.port in head
        assert b"Ideal-Node" not in head


async def test_the_error_of_a_region_getter_is_raised_as_it_is() -> None:
    def late() -> DerpRegion:
        raise TimeoutError("the map is not here yet")

    client = HTTPClient.for_region(late, NodePrivate.generate())
    with pytest.raises(TimeoutError, match="the map is not here yet"):
        await client.connect()


async def test_a_region_getter_that_is_none_or_returns_none_names_what_is_wrong() -> None:
    region: Any = DerpRegion(1)
    with pytest.raises(TypeError, match="function that returns a DerpRegion, not DerpRegion"):
        HTTPClient.for_region(region, NodePrivate.generate())
    wrong: Any = DerpMap
    client = HTTPClient.for_region(wrong, NodePrivate.generate())
    with pytest.raises(TypeError, match="must return a DerpRegion, not DerpMap"):
        await client.connect()


async def test_a_host_that_the_system_cannot_look_up_is_a_dial_error() -> None:
    client = HTTPClient("http://relay.invalid", NodePrivate.generate(), dial_host="a\0b")
    with pytest.raises(DialError, match="null"):
        await client.connect()


async def test_second_node_of_a_region_gets_the_name_of_the_ideal_one(server: FakeServer) -> None:
    async with fake_server() as gone:
        closed_port = gone.port
    nodes = (
        node("901s", server.port, stun_only=True),
        node("901a", closed_port),
        node("901b", server.port),
    )
    region = DerpRegion(901, "home", nodes=nodes)
    async with HTTPClient.for_region(
        lambda: region, NodePrivate.generate(), use_tls=False, lazy=True
    ) as client:
        connecting = asyncio.create_task(client.connect())
        head, _ = await server.next_login()
        await connecting
        assert b"\r\nIdeal-Node: 901s\r\n" in head


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("9 01", "9 01"),
        ("é", "?"),
        ("901a\r\nX-Injected: 1", "901a??X-Injected: 1"),
        ("901a\0", "901a?"),
    ],
)
async def test_any_name_of_the_first_node_leaves_the_second_one_reachable(
    server: FakeServer, name: str, sent: str
) -> None:
    region = DerpRegion(901, nodes=(node(name, 0, stun_only=True), node("901b", server.port)))
    async with HTTPClient.for_region(
        lambda: region, NodePrivate.generate(), use_tls=False, lazy=True
    ) as client:
        connecting = asyncio.create_task(client.connect())
        head, _ = await server.next_login()
        await connecting
        assert f"\r\nIdeal-Node: {sent}\r\n".encode() in head


async def test_a_region_without_an_answer_names_every_node() -> None:
    async with fake_server() as gone:
        closed_port = gone.port
    nodes = (node("901a", closed_port), node("901b", closed_port, ipv4="none"))
    region = DerpRegion(901, "home", nodes=nodes)
    async with HTTPClient.for_region(
        lambda: region, NodePrivate.generate(), use_tls=False, lazy=True
    ) as client:
        with pytest.raises(DialError, match="901a: .*refused; 901b: .*both disabled"):
            await client.connect()


async def test_errors_and_repr_name_the_region_and_the_node(server: FakeServer) -> None:
    async with fake_server() as gone:
        closed_port = gone.port
    nodes = (node("901a", closed_port), node("901b", server.port))
    region = DerpRegion(901, "home", nodes=nodes)
    async with HTTPClient.for_region(
        lambda: region, NodePrivate.generate(), use_tls=False, lazy=True
    ) as client:
        assert "of a DERP region, not connected" in repr(client)
        with (
            patch.object(connector, "CONNECT_TIMEOUT_S", 1.0),
            pytest.raises(DialError, match=r"no connection to region home, node 901b in 1 s"),
        ):
            await client.connect()
        assert "of region home, node 901b, not connected" in repr(client)


async def test_repr_shows_the_state_and_no_secret(server: FakeServer) -> None:
    client = client_of(server)
    assert repr(client) == (
        f"<HTTPClient {client.public_key.short} of http://127.0.0.1:{server.port}/derp, not connected>"
    )
    await client.close()
    assert repr(client).endswith("closed>")


@pytest.mark.parametrize("url", ["https://bücher.example:8443/derp", "wss://BÜCHER.example"])
def test_a_host_of_other_letters_is_written_in_ascii(url: str) -> None:
    assert "://xn--bcher-kva.example" in repr(HTTPClient(url, NodePrivate.generate()))


def test_a_host_with_an_impossible_label_is_refused() -> None:
    with pytest.raises(ValueError, match="is no host name: each of its parts has 1 to 63"):
        HTTPClient("https://é" + 70 * "x", NodePrivate.generate())
