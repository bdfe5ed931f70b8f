"""The rest of the client library. ARCHITECTURE §8, PROTOCOL §16 lines 22 and 23."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import fastderp
from fastderp import (
    HTTPClient,
    NodePrivate,
    NodePublic,
    PeerGone,
    PeerPresent,
    run_watch_connection_loop,
)
from fastderp.wire.protocol import FrameType, peer_present_payload
from tests.unit.fake_relay import RelayEnd, fake_server

ONE, TWO = NodePublic(b"\x11" * 32), NodePublic(b"\x22" * 32)

MESSAGES = [
    fastderp.ServerInfo(),
    fastderp.ReceivedPacket(ONE, b""),
    fastderp.PeerGone(ONE, fastderp.PeerGoneReason.DISCONNECTED),
    fastderp.PeerPresent(ONE),
    fastderp.Ping(bytes(8)),
    fastderp.Pong(bytes(8)),
    fastderp.KeepAlive(),
    fastderp.Health(""),
    fastderp.ServerRestarting(0, 0),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_cannot_be_changed(message: Any) -> None:
    names: tuple[str, ...] = type(message).__match_args__
    for name in (*names, "other"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(message, name, None)
    again = type(message)(**{name: getattr(message, name) for name in names})
    assert message == again and hash(message) == hash(again)


def test_constants_are_those_of_the_protocol() -> None:
    assert (fastderp.MAX_PACKET_SIZE, fastderp.PROTOCOL_VERSION) == (65536, 2)


def present(relay: RelayEnd, key: NodePublic) -> None:
    relay.send(FrameType.PEER_PRESENT, peer_present_payload(key.raw, bytes(16), 0, 1))


async def test_a_link_broken_while_a_report_is_made_is_watched_anew() -> None:
    async with fake_server() as server:
        client = HTTPClient(f"http://127.0.0.1:{server.port}/derp", NodePrivate.generate())
        reports: asyncio.Queue[PeerPresent | PeerGone] = asyncio.Queue()
        links: list[RelayEnd] = []

        def report(message: PeerPresent) -> None:
            reports.put_nowait(message)
            if message.key == ONE:
                links[-1].writer.transport.abort()

        loop = asyncio.create_task(
            run_watch_connection_loop(
                client, on_present=report, on_gone=reports.put_nowait, retry_s=0
            )
        )
        links.append((await server.next_login())[1])
        present(links[-1], ONE)
        links.append((await server.next_login())[1])
        present(links[-1], TWO)
        async with asyncio.timeout(10):
            told = [await reports.get() for _ in range(3)]
        assert [(type(message), message.key) for message in told] == [
            (PeerPresent, ONE),
            (PeerGone, ONE),
            (PeerPresent, TWO),
        ]
        await client.close()
        await asyncio.wait_for(loop, 10)


async def test_a_zero_key_ignores_no_relay() -> None:
    async with fake_server() as server:
        client = HTTPClient(f"http://127.0.0.1:{server.port}/derp", NodePrivate.generate())
        reports: asyncio.Queue[PeerPresent | PeerGone] = asyncio.Queue()
        loop = asyncio.create_task(
            run_watch_connection_loop(
                client,
                on_present=reports.put_nowait,
                on_gone=reports.put_nowait,
                ignore_server_key=NodePublic(bytes(32)),
                retry_s=0,
            )
        )
        _, relay = await server.next_login()
        present(relay, ONE)
        async with asyncio.timeout(10):
            assert (await reports.get()).key == ONE
        await client.close()
        await asyncio.wait_for(loop, 10)
