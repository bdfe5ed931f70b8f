"""Back-pressure: sending waits for the stream and the relay's rate, and drops nothing.

PROTOCOL §4.
"""

import asyncio
from collections import Counter
from typing import Any

import pytest

from fastderp.client.outbox import LIMIT_BYTES, SendRate
from fastderp.errors import ConnectionClosed
from fastderp.wire.keys import NodePublic
from fastderp.wire.login import ServerInfo
from fastderp.wire.protocol import FrameType
from tests.unit.fake_relay import RelayEnd, logged_in

PEER = NodePublic(b"\x11" * 32)
COST = 5 + 32 + 1000  # what a packet of 1,000 bytes takes of the relay's rate


def at_a_rate(bytes_per_s: int, packets_at_once: int) -> ServerInfo:
    return ServerInfo(2, bytes_per_s, packets_at_once * COST)


async def packets_until_home(relay: RelayEnd) -> list[bytes]:
    """Return the data of the packets that arrive before the NotePreferred that ends them."""
    packets = []
    while (received := await relay.next_frame())[0] == FrameType.SEND_PACKET:
        packets.append(received[1][32:])
    assert received[0] == FrameType.NOTE_PREFERRED
    return packets


async def test_the_relays_rate_is_kept_by_waiting_and_every_packet_arrives() -> None:
    async with logged_in(at_a_rate(100_000, packets_at_once=2)) as (client, relay):
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        sent = [bytes([number]) * 1000 for number in range(10)]
        for data in sent:
            await client.send(PEER, data)
        # Two packets are free; eight wait for their 1,037 bytes each.
        assert loop.time() - began_s >= 0.95 * 8 * COST / 100_000
        await client.note_preferred(True)
        assert await packets_until_home(relay) == sent


async def test_without_a_rate_everything_is_sent_at_once() -> None:
    async with logged_in() as (client, relay):
        for _ in range(200):
            assert client.try_send(PEER, bytes(100))
        for _ in range(200):
            assert (await relay.next_frame())[0] == FrameType.SEND_PACKET


async def test_rate_without_a_burst_lets_the_largest_packet_through() -> None:
    async with logged_in(ServerInfo(2, 1, 0)) as (client, relay):
        await client.send(PEER, bytes(65536))
        assert (await relay.next_frame())[0] == FrameType.SEND_PACKET


async def test_a_burst_smaller_than_a_packet_still_lets_it_through() -> None:
    async with logged_in(ServerInfo(2, 1_000_000, 100)) as (client, relay):
        for _ in range(3):
            await client.send(PEER, bytes(1000))
        for _ in range(3):
            assert (await relay.next_frame())[0] == FrameType.SEND_PACKET


async def test_try_send_drops_packets_above_the_rate_and_returns_false() -> None:
    async with logged_in(at_a_rate(1, packets_at_once=3)) as (client, relay):
        assert [client.try_send(PEER, bytes(1000)) for _ in range(5)] == [True] * 3 + [False] * 2
        await client.note_preferred(True)
        assert len(await packets_until_home(relay)) == 3


async def test_try_send_drops_packets_without_room_and_returns_false() -> None:
    async with logged_in() as (client, relay):
        taken = sum(client.try_send(PEER, bytes(1000)) for _ in range(1000))
        # Nothing leaves before the loop has its turn: the limit, and the packet that reaches it.
        assert taken == LIMIT_BYTES // COST + 1
        await client.note_preferred(True)
        assert len(await packets_until_home(relay)) == taken


async def test_a_send_cancelled_while_it_waits_for_the_rate_sends_nothing() -> None:
    async with logged_in(at_a_rate(1, packets_at_once=1)) as (client, relay):
        await client.send(PEER, b"1" * 1000)
        waiting = [asyncio.create_task(client.send(PEER, b"2" * 1000)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert all(task.cancelled() for task in waiting)
        await client.note_preferred(True)
        assert await packets_until_home(relay) == [b"1" * 1000]


async def test_sends_that_time_out_never_arrive_and_the_others_arrive_once() -> None:
    async with logged_in() as (client, relay):
        delivered: Counter[bytes] = Counter()
        n_timed_out = 0
        for number in range(300):
            data = number.to_bytes(4, "big") + bytes(65_000)
            try:
                # A relay that reads nothing: the socket and the outbox are full after a few.
                async with asyncio.timeout(0 if number > 100 else 0.001):
                    await client.send(PEER, data)
                delivered[data[:4]] += 1
            except TimeoutError:
                n_timed_out += 1
        assert n_timed_out > 100
        reading = asyncio.create_task(packets_until_home(relay))
        await client.note_preferred(True)
        assert Counter(data[:4] for data in await reading) == delivered


async def test_a_sender_cancelled_when_it_is_granted_delays_no_other() -> None:
    async with logged_in(at_a_rate(1, packets_at_once=1)) as (client, relay):
        await client.send(PEER, b"first" * 200)
        hasty = asyncio.create_task(client.send(PEER, b"hasty" * 200))
        patient = asyncio.create_task(client.send(PEER, b"patient" * 100))
        await asyncio.sleep(0)
        # A new budget of one packet grants the first its turn; it is cancelled before it resumes.
        client._outbox.set_rate(SendRate(1, COST, lambda: 0.0))
        hasty.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hasty
        await patient
        await client.note_preferred(True)
        assert await packets_until_home(relay) == [b"first" * 200, b"patient" * 100]


async def test_100_000_sends_in_a_row_let_other_tasks_run() -> None:
    async with logged_in() as (client, relay):
        n_turns = 0

        async def other() -> None:
            nonlocal n_turns
            while True:
                n_turns += 1
                await asyncio.sleep(0)

        async def read() -> None:
            while await relay.reader.read(1 << 20):
                pass

        tasks = [asyncio.create_task(other()), asyncio.create_task(read())]
        for _ in range(100_000):
            await client.send(PEER, bytes(100))
        # At least once for each time that the outbox is full.
        assert n_turns >= 100_000 * 137 // LIMIT_BYTES
        for task in tasks:
            task.cancel()


async def test_waiting_senders_are_served_in_order() -> None:
    async with logged_in(at_a_rate(50_000, packets_at_once=1)) as (client, relay):
        senders = [
            asyncio.create_task(client.send(PEER, bytes([number]) * 1000)) for number in range(8)
        ]
        await asyncio.gather(*senders)
        await client.note_preferred(True)
        assert [data[0] for data in await packets_until_home(relay)] == list(range(8))


async def test_waiting_senders_raise_when_the_client_is_closed() -> None:
    async with logged_in(at_a_rate(1, packets_at_once=1)) as (client, _relay):
        await client.send(PEER, bytes(1000))
        waiting = asyncio.create_task(client.send(PEER, bytes(1000)))
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(ConnectionClosed, match="the client is closed"):
            await waiting


async def test_many_packets_are_sent_in_order() -> None:
    async with logged_in() as (client, relay):
        sent = [number.to_bytes(4, "big") * 300 for number in range(500)]
        reading = asyncio.create_task(packets_until_home(relay))
        await client.send_many((PEER, data) for data in sent)
        await client.note_preferred(True)
        assert await reading == sent


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_any_bytes_are_sent_and_may_change_afterwards(kind: Any) -> None:
    async with logged_in() as (client, relay):
        data = bytearray(b"before")
        await client.send(PEER, kind(bytes(data)) if kind is bytes else kind(data))
        data[:] = b"behind"
        assert await relay.next_frame() == (FrameType.SEND_PACKET, PEER.raw + b"before")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("nodekey:" + "11" * 32, b""), r"destination must be a NodePublic, not str; NodePublic\."),
        ((PEER.raw, b""), "destination must be a NodePublic, not bytes$"),
        ((PEER, "text"), "data must be bytes, bytearray or memoryview, not str"),
        ((PEER, 1), "data must be bytes, bytearray or memoryview, not int"),
    ],
)
async def test_wrong_types_name_argument_type_and_what_is_expected(
    arguments: Any, complaint: str
) -> None:
    async with logged_in() as (client, _relay):
        with pytest.raises(TypeError, match=complaint):
            await client.send(*arguments)
        with pytest.raises(TypeError, match=complaint):
            client.try_send(*arguments)


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_rates_budget_grows_with_time_up_to_its_burst() -> None:
    clock = Clock()
    rate = SendRate(100, 300, clock)
    assert rate.take(300)
    assert not rate.take(1)
    assert rate.wait_s(50) == pytest.approx(0.5)
    clock.now_s += 0.5
    assert rate.take(50)
    clock.now_s += 3600
    assert rate.take(300)
    assert not rate.take(1)


def test_released_memory_can_be_taken_again() -> None:
    rate = SendRate(100, 300, Clock())
    assert rate.take(300)
    rate.give_back(300)
    assert rate.take(300)


def test_more_than_the_burst_is_taken_from_a_full_budget_and_paid_later() -> None:
    clock = Clock()
    rate = SendRate(100, 300, clock)
    assert rate.take(500)
    assert rate.wait_s(300) == pytest.approx(5.0)
    clock.now_s += 5.0
    assert rate.take(300)
