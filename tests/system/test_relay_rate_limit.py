"""Clients whose rate is limited: what they send arrives later, and all of it. PROTOCOL §6.8."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import time
from collections.abc import Callable

import pytest

from fastderp.server.admission.rate_limit import RateLimit
from fastderp.server.server import Server
from fastderp.wire.keys import MeshKey, NodePrivate
from tests.kit.peer import (
    GONE,
    RECV,
    SERVER_INFO,
    SERVER_KEY,
    client_info,
)
from tests.kit.relay import TRANSPORTS, Relay, Setup, eventually
from tests.kit.streams import StreamPair
from tests.kit.websocket import CLOSE, FIN, WebSocketPeer, message

StartRelay = Callable[..., Relay]


def test_a_limit_slows_a_sender_without_loss_and_is_announced_to_clients(
    start_relay: StartRelay,
) -> None:
    relay = start_relay(rate_limit=RateLimit(400_000, 1), mesh_key=MeshKey(b"m" * 32))
    with relay.connect() as sender, relay.connect() as receiver:
        for peer in (sender, receiver):
            peer.upgrade(relay.server.public_key)
            peer.send(client_info(peer.key, relay.server.public_key))
            info = peer.key.open_from(relay.server.public_key, peer.read_frame()[1])
            assert json.loads(info) == {
                "version": 2, "TokenBucketBytesPerSecond": 400_000, "TokenBucketBytesBurst": 65_568,
            }  # fmt: skip
        packets = [os.urandom(30_000) for _ in range(4)]
        started = time.monotonic()
        for packet in packets:
            sender.send_packet(receiver.public, packet)
        assert [receiver.read_packet()[1] for _ in packets] == packets
        assert time.monotonic() - started >= (4 * 30_032 - 65_568) / 400_000 * 0.9
        metrics = relay.metrics()
        assert metrics["derp_rate_limit_per_client_bytes_per_second"] == 400_000
        assert metrics["derp_rate_limit_per_client_burst_bytes"] == 65_568
        assert metrics["derp_rate_limit_per_client_waited"] >= 1
    with relay.connect() as mesh:
        mesh.login(relay.server.public_key, json=b'{"meshKey":"%s"}' % (b"6d" * 32))


def test_a_new_limit_holds_for_connected_clients(start_relay: StartRelay) -> None:
    relay = start_relay()
    assert "derp_rate_limit_per_client_waited" not in relay.metrics()
    with relay.login() as sender, relay.login() as receiver:
        relay.call(lambda: relay.server.set_rate_limit(RateLimit(1)))
        for peer in (sender, receiver):
            kind, sealed = peer.read_frame()
            told = json.loads(peer.key.open_from(relay.server.public_key, sealed))
            assert (kind, told["TokenBucketBytesPerSecond"]) == (SERVER_INFO, 1)
        for _ in range(3):
            sender.send_packet(receiver.public, bytes(60_000))
        eventually(lambda: relay.metrics()["derp_rate_limit_per_client_waited"])
        relay.call(lambda: relay.server.set_rate_limit(RateLimit(0)))
        received = [receiver.read_frame() for _ in range(4)]
        assert (
            sorted((kind, len(payload)) for kind, payload in received if kind != SERVER_INFO)
            == [(RECV, 60_032)] * 3
        )


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_packets_of_a_client_that_closes_while_it_is_held_back_all_arrive(
    start_relay: StartRelay, transport: str
) -> None:
    relay = start_relay(Setup(transport), rate_limit=RateLimit(1_000_000, 1))
    told = b'{"version":2,"TokenBucketBytesPerSecond":1000000,"TokenBucketBytesBurst":65568}'
    with relay.login(server_info=told) as sender, relay.login(server_info=told) as receiver:
        packets = [bytes([i]) * 3000 for i in range(40)]
        for packet in packets:
            sender.send_packet(receiver.public, packet)
        if isinstance(sender, WebSocketPeer):
            sender.send_raw(message(b"", FIN | CLOSE))
        sender.sock.shutdown(socket.SHUT_WR)
        assert [receiver.read_packet()[1] for _ in packets] == packets
        assert receiver.read_frame() == (GONE, sender.public.raw + b"\0")


async def test_packets_of_a_stream_that_ends_while_it_is_held_back_all_arrive() -> None:
    async with Server(workers=1, rate_limit=RateLimit(1_000_000, 1)) as server:
        sender, receiver, key = StreamPair(), StreamPair(), NodePrivate.generate()
        accepted = [
            asyncio.ensure_future(server.accept(pair.relay_reads, pair.relay_writes))
            for pair in (sender, receiver)
        ]
        receiver.write(client_info(key, server.public_key))
        assert [(await receiver.read_frame())[0] for _ in range(2)] == [SERVER_KEY, SERVER_INFO]
        sender.write(client_info(NodePrivate.generate(), server.public_key))
        packets = [bytes([i]) * 3000 for i in range(40)]
        for packet in packets:
            sender.send_packet(key.public_key, packet)
        sender.end()
        assert [(await receiver.read_frame())[1][32:] for _ in packets] == packets
        await accepted[0]
        receiver.end()
        await accepted[1]


def test_a_client_that_resets_its_connection_while_it_is_held_back_is_removed_at_once(
    start_relay: StartRelay,
) -> None:
    relay = start_relay(rate_limit=RateLimit(1))
    told = b'{"version":2,"TokenBucketBytesPerSecond":1,"TokenBucketBytesBurst":65568}'
    with relay.login(server_info=told) as sender:
        for _ in range(2):
            sender.send_packet(sender.public, bytes(60_000))
        eventually(lambda: relay.metrics()["derp_rate_limit_per_client_waited"])
        sender.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    relay.wait_connected(sender.public, False)
