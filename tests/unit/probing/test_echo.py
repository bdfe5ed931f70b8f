"""The echo of a probe: lost, late, damaged and repeated packets are found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from fastderp.client.client import Client
from fastderp.errors import ConnectionLost
from fastderp.probing.echo import PACKET_BYTES, Echo
from fastderp.probing.step import Finding, Outcome
from fastderp.wire.keys import NodePrivate, NodePublic
from fastderp.wire.messages import Health, Message, ReceivedPacket

Change = Callable[[int, bytes], list[bytes]]


class FakeClient:
    """A client whose relay delivers what `change` makes of each packet and its number."""

    def __init__(self, change: Change = lambda _, packet: [packet]) -> None:
        self.public_key = NodePrivate.generate().public_key
        self.peer = self
        self._change = change
        self._n_sent = 0
        self._received: asyncio.Queue[Message | Exception] = asyncio.Queue()

    def gets(self, message: Message | Exception) -> None:
        self._received.put_nowait(message)

    async def send(self, destination: NodePublic, data: bytes) -> None:
        assert destination == self.peer.public_key and len(data) == PACKET_BYTES
        for packet in self._change(self._n_sent, data):
            self.peer.gets(ReceivedPacket(self.public_key, packet))
        self._n_sent += 1

    async def recv(self) -> Message:
        message = await self._received.get()
        if isinstance(message, Exception):
            raise message
        return message


async def echoed(change: Change, count: int, timeout_s: float = 10.0) -> Finding:
    near, far = FakeClient(change), FakeClient()
    near.peer, far.peer = far, near
    far.gets(Health("busy"))
    return await Echo(cast(Client, near), cast(Client, far), count).run(timeout_s)


async def test_packets_that_all_come_back_in_order_are_good() -> None:
    found = await echoed(lambda _, packet: [packet], 50)
    assert found.outcome is Outcome.OK
    assert found.details["lost"] == found.details["out_of_order"] == 0
    assert found.seconds is not None and found.seconds <= found.details["max_seconds"] + 1e-6


async def test_a_client_may_send_to_itself() -> None:
    alone = FakeClient()
    found = await Echo(cast(Client, alone), cast(Client, alone), 20).run(10.0)
    assert found.outcome is Outcome.OK
    assert found.text.startswith("20 packets to itself, in order")


async def test_a_lost_packet_is_counted() -> None:
    found = await echoed(lambda n, packet: [] if n == 3 else [packet], 20, timeout_s=1.0)
    assert found.outcome is Outcome.FAILED
    assert found.text == "19 of 20 packets came back in 1 s"
    assert found.details["lost"] == 1


async def test_a_relay_that_delivers_nothing_has_no_median() -> None:
    found = await echoed(lambda _n, _packet: [], 20, timeout_s=0.1)
    assert (found.text, found.seconds) == ("0 of 20 packets came back in 0.1 s", None)
    assert found.details["max_seconds"] is None


async def test_packets_out_of_order_are_counted() -> None:
    held: list[bytes] = []

    def swap(number: int, packet: bytes) -> list[bytes]:
        if number == 4:
            held.append(packet)
            return []
        return [packet, *held] if number == 5 else [packet]

    found = await echoed(swap, 20)
    assert (found.outcome, found.text) == (Outcome.FAILED, "1 out of order")


async def test_a_damaged_packet_is_counted() -> None:
    found = await echoed(lambda n, packet: [packet[:-1] + b"!" if n == 2 else packet], 10, 1.0)
    assert found.outcome is Outcome.FAILED
    assert found.text == "9 of 10 packets came back in 1 s, 1 damaged"


async def test_a_repeated_packet_does_not_replace_a_lost_one() -> None:
    found = await echoed(lambda n, packet: [packet, packet][: 2 if n else 0], 10, 1.0)
    assert found.details["lost"] == 1


@pytest.mark.parametrize("end", ["near", "far"])
async def test_the_end_of_either_connection_ends_the_echo(end: str) -> None:
    clients = {"near": FakeClient(), "far": FakeClient(lambda _n, _packet: [])}
    clients["near"].peer, clients["far"].peer = clients["far"], clients["near"]
    clients[end].gets(ConnectionLost("reset"))
    near, far = (cast(Client, client) for client in clients.values())
    with pytest.raises(ConnectionLost, match="reset"):
        await Echo(near, far, 20).run(10.0)
