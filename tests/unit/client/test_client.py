"""The behaviour of a Client for its program and for the relay (PROTOCOL sections 3 and 4)."""

import asyncio
from unittest.mock import patch

import pytest

from fastderp.client import Client
from fastderp.client import client as client_module
from fastderp.errors import ConnectionClosed, ConnectionLost, PingTimeout, ProtocolError
from fastderp.net import stream as stream_module
from fastderp.wire import login
from fastderp.wire.keys import MeshKey, NodePrivate, NodePublic
from fastderp.wire.login import ServerInfo
from fastderp.wire.messages import Health, KeepAlive, PeerGone, Ping, Pong, ReceivedPacket
from fastderp.wire.protocol import MAGIC, FrameType, PeerGoneReason
from tests.unit.fake_relay import RelayEnd, fake_server, logged_in, refused, stream_pairs

PEER = NodePublic(b"\x11" * 32)
OTHER = NodePublic(b"\x22" * 32)


async def test_login_sends_the_client_key() -> None:
    async with stream_pairs() as (near, far):
        relay, key = RelayEnd(far, NodePrivate.generate()), NodePrivate.generate()
        mesh_key = MeshKey.generate()
        client, seen = await asyncio.gather(
            Client.handshake(
                near, key, can_ack_pings=True, is_prober=True, mesh_key=mesh_key, app_name="test"
            ),
            relay.accept_login(ServerInfo()),
        )
        async with client:
            assert seen.public == key.public_key == client.public_key
            assert seen.info == login.ClientInfo(2, True, True, mesh_key, "test")
            assert client.server_public_key == relay.key.public_key
            assert await client.recv() == ServerInfo()


async def test_known_server_key_saves_a_round_trip_and_its_frame_is_skipped() -> None:
    async with stream_pairs() as (near, far):
        relay, key = RelayEnd(far, NodePrivate.generate()), NodePrivate.generate()
        client = await Client.handshake(near, key, server_public_key=relay.key.public_key)
        await relay.accept_login()
        assert await client.recv() == ServerInfo()
        await client.close()


@pytest.mark.parametrize(
    "first",
    [
        b"HTTP/1.1 404 Not Found\r\n\r\n",
        bytes.fromhex("06 00000000"),
        bytes.fromhex("01 00000027") + MAGIC + bytes(31),
        bytes.fromhex("01 00000028") + MAGIC + bytes(32),
        bytes.fromhex("01 00000028") + MAGIC + b"\1" + bytes(31),
        bytes.fromhex("01 ffffffff"),
    ],
    ids=["http", "keep-alive", "short", "zero key", "low order", "huge"],
)
async def test_handshake_with_something_else_fails_and_closes(first: bytes) -> None:
    async with stream_pairs() as (near, (reader, writer)):
        writer.write(first)
        with pytest.raises(Exception, match="key|frame|Server") as caught:
            await Client.handshake(near, NodePrivate.generate())
        assert type(caught.value).__module__ == "fastderp.errors"
        assert await reader.read() == b""
        writer.close()


async def test_a_refused_login_is_distinguished_from_an_orderly_end() -> None:
    async with refused() as client:
        with pytest.raises(ConnectionLost, match="instead of accepting the login"):
            async for _message in client:
                pass


async def test_packets_arrive_with_their_source() -> None:
    async with logged_in() as (client, relay):
        relay.send(FrameType.RECV_PACKET, PEER.raw, b"hello")
        relay.send(FrameType.RECV_PACKET, OTHER.raw)
        relay.send(FrameType.RECV_PACKET, PEER.raw, bytes(65536))
        assert await client.recv() == ReceivedPacket(PEER, b"hello")
        assert await client.recv() == ReceivedPacket(OTHER, b"")
        assert await client.recv() == ReceivedPacket(PEER, bytes(65536))


async def test_frames_in_any_pieces_are_joined() -> None:
    async with logged_in() as (client, relay):
        receiving = asyncio.create_task(client.recv())
        for byte in bytes.fromhex("08 00000021") + PEER.raw + b"\1":
            relay.writer.write(bytes((byte,)))
            await relay.writer.drain()
            await asyncio.sleep(0)
        assert await receiving == PeerGone(PEER, PeerGoneReason.NOT_HERE)


async def test_short_and_unknown_frames_do_not_end_the_connection() -> None:
    async with logged_in() as (client, relay):
        relay.send(FrameType.RECV_PACKET, bytes(31))
        relay.send(FrameType.PEER_GONE, bytes(31))
        relay.send(FrameType.PING, bytes(7))
        relay.send(FrameType.PONG, bytes(7))
        relay.send(FrameType.RESTARTING, bytes(7))
        relay.send(FrameType.SERVER_KEY, bytes(40))
        relay.send(0x7F, bytes(1000))
        relay.send(FrameType.KEEP_ALIVE)
        assert await client.recv() == KeepAlive()


async def test_iteration_ends_when_the_relay_closes_in_order() -> None:
    async with logged_in() as (client, relay):
        relay.send(FrameType.HEALTH, b"two of you")
        relay.send(FrameType.HEALTH)
        await relay.close()
        assert [message async for message in client] == [Health("two of you"), Health("")]
        with pytest.raises(ConnectionClosed):
            await client.send(PEER, b"late")


async def test_iteration_raises_when_the_connection_is_cut_inside_a_frame() -> None:
    async with logged_in() as (client, relay):
        relay.writer.write(bytes.fromhex("05 00000030 1111"))
        await relay.close()
        with pytest.raises(ConnectionLost, match="inside a frame"):
            async for _message in client:
                pass


@pytest.mark.parametrize(
    "sent",
    [
        bytes.fromhex("05 00100001"),
        bytes.fromhex("7f ffffffff"),
        bytes.fromhex("03 00000017") + bytes(23),
        bytes.fromhex("03 00000035") + bytes(53),
    ],
    ids=["over 1 MiB", "unknown and huge", "short ServerInfo", "ServerInfo that does not open"],
)
async def test_fatal_frames_end_the_client(sent: bytes) -> None:
    async with logged_in() as (client, relay):
        relay.writer.write(sent)
        with pytest.raises(ProtocolError) as first:
            await client.recv()
        with pytest.raises(ProtocolError) as second:
            await client.recv()
        assert first.value is second.value
        assert await relay.reader.read() == b""


async def test_silence_ends_the_client() -> None:
    with patch.object(client_module, "READ_TIMEOUT_S", 0.5):
        async with logged_in() as (client, relay):
            relay.writer.write(b"\x06\0")
            with pytest.raises(ConnectionLost, match="nothing from the relay"):
                await client.recv()
            assert await relay.reader.read() == b""


async def test_cancelled_receive_loses_nothing() -> None:
    async with logged_in() as (client, relay):
        receiving = asyncio.create_task(client.recv())
        relay.writer.write(bytes.fromhex("12 00000008 0102"))
        await asyncio.sleep(0)
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving
        relay.writer.write(bytes.fromhex("030405060708"))
        assert await client.recv() == Ping(bytes(range(1, 9)))


async def test_every_request_is_its_frame() -> None:
    async with logged_in() as (client, relay):
        await client.send(PEER, b"data")
        await client.send(PEER, b"")
        await client.forward_packet(OTHER, PEER, b"data")
        await client.note_preferred(True)
        await client.note_preferred(False)
        await client.watch_connection_changes()
        await client.close_peer(PEER)
        await client.send_ping(b"12345678")
        await client.send_pong(b"abcdefgh")
        for expected in [
            (FrameType.SEND_PACKET, PEER.raw + b"data"),
            (FrameType.SEND_PACKET, PEER.raw),
            (FrameType.FORWARD_PACKET, OTHER.raw + PEER.raw + b"data"),
            (FrameType.NOTE_PREFERRED, b"\1"),
            (FrameType.NOTE_PREFERRED, b"\0"),
            (FrameType.WATCH_CONNS, b""),
            (FrameType.CLOSE_PEER, PEER.raw),
            (FrameType.PING, b"12345678"),
            (FrameType.PONG, b"abcdefgh"),
        ]:
            assert await relay.next_frame() == expected


async def test_wrong_arguments_send_nothing_and_change_nothing() -> None:
    async with logged_in() as (client, relay):
        for refused in (
            client.send(PEER, bytes(65537)),
            client.forward_packet(PEER, OTHER, bytes(65537)),
            client.send_ping(b"1234567"),
            client.send_pong(b"123456789"),
        ):
            with pytest.raises(ValueError, match="bytes, not"):
                await refused
        await client.send(PEER, bytes(65536))
        assert await relay.next_frame() == (FrameType.SEND_PACKET, PEER.raw + bytes(65536))


async def test_an_http_answer_to_a_fast_start_is_quoted() -> None:
    async with stream_pairs() as (near, (_, relay)):
        known = NodePrivate.generate().public_key
        client = await Client.handshake(near, NodePrivate.generate(), server_public_key=known)
        relay.write(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\n\r\nToo many logins.\n")
        with pytest.raises(ProtocolError, match="429 Too Many Requests': 'Too many logins.'"):
            await client.recv()


async def test_ping_waits_for_its_own_pong_and_returns_others() -> None:
    async with logged_in() as (client, relay):
        receiving = asyncio.create_task(client.recv())
        pinging = asyncio.create_task(client.ping())
        frame_type, data = await relay.next_frame()
        assert frame_type == FrameType.PING
        relay.send(FrameType.PONG, data)
        assert 0 <= await pinging < 5
        relay.send(FrameType.PONG, data)
        assert await receiving == Pong(data)


async def test_pings_of_several_tasks_are_sent_one_after_another() -> None:
    # A relay drops a ping that arrives before it has sent the pong of the previous one.
    async with logged_in() as (client, relay):
        await client.send_ping(b"by hand!")
        pinging = [asyncio.create_task(client.ping()) for _ in range(3)]
        impatient = asyncio.create_task(client.ping(timeout_s=0.01))
        assert await relay.next_frame() == (FrameType.PING, b"by hand!")
        with pytest.raises(PingTimeout):
            await impatient
        await client.send_pong(b"the mark")
        assert await relay.next_frame() == (FrameType.PONG, b"the mark")
        relay.send(FrameType.PONG, b"by hand!")
        assert await client.recv() == Pong(b"by hand!")
        for _ in range(3):
            frame_type, data = await relay.next_frame()
            assert frame_type == FrameType.PING
            relay.send(FrameType.PONG, data)
            await asyncio.wait(pinging, return_when=asyncio.FIRST_COMPLETED)
            [answered] = [task for task in pinging if task.done()]
            assert await answered >= 0
            pinging.remove(answered)


async def test_a_ping_without_an_answer_lets_no_later_ping_wait_beyond_its_pong() -> None:
    async with logged_in() as (client, relay):
        with pytest.raises(PingTimeout):
            await client.ping(timeout_s=0.01)
        _, late = await relay.next_frame()
        pinging = asyncio.create_task(client.ping())
        relay.send(FrameType.PONG, late)
        assert await client.recv() == Pong(late)
        _, data = await relay.next_frame()
        relay.send(FrameType.PONG, data)
        assert await pinging >= 0


async def test_a_lost_pong_delays_later_pings_and_stops_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with logged_in() as (client, relay):
        with pytest.raises(PingTimeout):
            await client.ping(timeout_s=0.01)
        await relay.next_frame()
        monkeypatch.setattr(client_module, "PING_TIMEOUT_S", 0.05)
        pinging = [asyncio.create_task(client.ping(timeout_s=10)) for _ in range(2)]
        for _ in pinging:
            frame_type, data = await asyncio.wait_for(relay.next_frame(), 10)
            assert frame_type == FrameType.PING
            relay.send(FrameType.PONG, data)
        assert min(await asyncio.gather(*pinging)) >= 0


async def test_waiting_pings_raise_when_the_connection_ends() -> None:
    async with logged_in() as (client, relay):
        pinging = [asyncio.create_task(client.ping()) for _ in range(3)]
        await relay.next_frame()
        await relay.close()
        for task in pinging:
            with pytest.raises(ConnectionClosed):
                await task


async def test_ping_times_out_and_the_connection_stays_open() -> None:
    async with logged_in() as (client, relay):
        with pytest.raises(PingTimeout, match=r"no pong within 0\.01 s"):
            await client.ping(timeout_s=0.01)
        relay.send(FrameType.KEEP_ALIVE)
        assert await client.recv() == KeepAlive()


async def test_ping_raises_when_the_connection_ends() -> None:
    async with logged_in() as (client, relay):
        pinging = asyncio.create_task(client.ping())
        await relay.next_frame()
        await relay.close()
        with pytest.raises(ConnectionClosed):
            await client.recv()
        with pytest.raises(ConnectionClosed):
            await pinging


async def test_forwarding_to_a_relay_that_does_not_read_closes_the_connection() -> None:
    async with logged_in(mesh_key=MeshKey.generate()) as (client, _relay):
        with (
            patch.object(client_module, "FORWARD_TIMEOUT_S", 0.05),
            pytest.raises(ConnectionLost, match="read no data"),
        ):
            while True:
                await client.forward_packet(PEER, OTHER, bytes(65536))
        with pytest.raises(ConnectionLost, match="read no data"):
            await client.recv()


async def test_closing_ends_a_waiting_receiver_and_the_iteration() -> None:
    async with logged_in() as (client, relay):
        receiving = asyncio.create_task(client.recv())
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(ConnectionClosed, match="the client is closed"):
            await receiving
        assert [message async for message in client] == []
        assert await relay.reader.read() == b""
        await client.close()


async def test_packets_sent_before_closing_still_arrive() -> None:
    async with logged_in() as (client, relay):
        for _ in range(5):
            await client.send(PEER, bytes(1000))
        await client.close()
        for _ in range(5):
            assert await relay.next_frame() == (FrameType.SEND_PACKET, PEER.raw + bytes(1000))


async def test_closing_does_not_wait_for_a_relay_that_never_reads() -> None:
    async with logged_in() as (client, _relay):

        async def flood() -> None:
            while True:
                await client.send(PEER, bytes(65536))

        flooding = asyncio.create_task(flood())
        await asyncio.sleep(0.01)
        with patch.object(stream_module, "CLOSE_TIMEOUT_S", 0.01):
            await client.close()
            await client.close()
        with pytest.raises(ConnectionClosed):
            await flooding


async def test_local_address_is_known_until_the_connection_is_over() -> None:
    async with fake_server() as server:
        near = await asyncio.open_connection("127.0.0.1", server.port)
        near[1].write(b"GET /derp HTTP/1.1\r\n\r\n")
        await near[0].readuntil(b"\r\n\r\n")
        client, _ = await asyncio.gather(
            Client.handshake(near, NodePrivate.generate()), server.next_login()
        )
        assert client.local_addr == near[1].get_extra_info("sockname")
        await client.close()
        with pytest.raises(ConnectionClosed):
            _ = client.local_addr


async def test_one_object_with_both_sets_of_methods_is_a_stream_too() -> None:
    async with stream_pairs() as ((reader, writer), far):

        class Both:
            read = reader.read
            write = writer.write
            drain = writer.drain
            close = writer.close
            wait_closed = writer.wait_closed
            get_extra_info = writer.get_extra_info

        relay = RelayEnd(far, NodePrivate.generate())
        client, _ = await asyncio.gather(
            Client.handshake(Both(), NodePrivate.generate()), relay.accept_login()
        )
        async with client:
            assert await client.recv() == ServerInfo()


async def test_repr_shows_short_keys_and_the_state() -> None:
    async with logged_in() as (client, relay):
        assert repr(client).startswith(f"<Client {client.public_key.short} at ")
        await relay.close()
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert "over: the connection was closed" in repr(client)
