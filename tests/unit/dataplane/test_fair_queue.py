"""The fair queue of a lane: turns, shares, and which packet makes room."""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque

import pytest

from tests.unit.dataplane.shims import flows


def drain(queue: flows.FairQueue) -> list[tuple[int, int, int]]:
    return list(iter(queue.pop, None))


def test_an_empty_queue_has_nothing() -> None:
    queue = flows.FairQueue()
    assert queue.pop() is None
    assert queue.pop_older(1, 100) is None
    assert queue.counts == (0, 0, 0, 0)


def test_one_sender_is_served_in_order() -> None:
    queue = flows.FairQueue()
    for number in range(500):
        queue.push(1, 1400, number)
    assert [number for _, _, number in drain(queue)] == list(range(500))


def test_senders_of_small_and_of_large_packets_get_equal_bytes() -> None:
    queue = flows.FairQueue()
    sizes = {1: 100, 2: 700, 3: 1437}
    for sender, size in sizes.items():
        for _ in range(200_000 // size):
            queue.push(sender, size)
    taken: Counter[int] = Counter()
    while sum(taken.values()) < 300_000:
        packet = queue.pop()
        assert packet is not None
        sender, size, _ = packet
        taken[sender] += size
    assert max(taken.values()) - min(taken.values()) <= 2 * 2048


def test_a_packet_larger_than_a_turn_waits_for_the_turns_it_needs() -> None:
    queue = flows.FairQueue()
    queue.push(1, 65605)
    for number in range(200):
        queue.push(2, 1400, number)
    before = [sender for sender, _, _ in drain(queue)].index(1)
    assert 65605 // 2048 - 2 <= before * 1400 // 2048 <= 65605 // 2048 + 2


def test_a_sender_that_was_idle_comes_next_and_only_one_at_a_time_does() -> None:
    queue = flows.FairQueue()
    for sender in range(1, 101):
        for _ in range(20):
            queue.push(sender, 1400)
    for _ in range(50):
        queue.pop()
    queue.push(1001, 200)
    queue.push(1002, 200)
    turns = [sender for sender, _, _ in drain(queue)]
    assert turns.index(1001) <= 3
    assert turns.index(1002) > 50


@pytest.mark.parametrize("remember", [True, False])
def test_more_senders_than_slots_lose_no_packet_and_no_order(remember: bool) -> None:
    queue = flows.FairQueue()
    rng = random.Random(1)
    for number in range(20_000):
        queue.push(rng.randrange(1, 3000), 300, number, remember)
    n, n_bytes, n_active, n_slots = queue.counts
    assert (n, n_bytes) == (20_000, 20_000 * 300)
    taken = drain(queue)
    assert n_active == len({sender for sender, _, _ in taken})
    assert n_slots & (n_slots - 1) == 0
    last: dict[int, int] = defaultdict(lambda: -1)
    for sender, _, number in taken:
        assert number > last[sender]
        last[sender] = number
    assert len(taken) == 20_000
    assert queue.counts[:3] == (0, 0, 0)


def test_the_sender_furthest_above_its_share_loses_a_packet() -> None:
    queue = flows.FairQueue()
    for number in range(100):
        queue.push(1, 1400, number)
    queue.push(2, 1400)
    assert queue.displace(2, 1400) == (1, 1400, 0), "the oldest of the one that asked for most"
    assert queue.displace(1, 1400) == (1, 1400, 1), "and it makes room for itself"
    assert queue.displace(3, 1400)[0] == 1


def test_a_flooding_sender_without_packets_keeps_its_charge() -> None:
    queue = flows.FairQueue()
    for _ in range(40):
        queue.push(1, 1400)
    while queue.counts[2]:
        queue.pop_older(1, 1)
    for sender in range(2, 20):
        queue.push(sender, 1400)
    assert queue.displace(1, 1400, 7) == (1, 1400, 7), "it has asked for more than all that wait"


def test_only_packets_of_the_sender_itself_are_too_old() -> None:
    queue = flows.FairQueue()
    queue.push(1, 100, 10)
    queue.push(1, 100, 20)
    queue.push(2, 100, 5)
    assert queue.pop_older(1, 15) == (1, 100, 10)
    assert queue.pop_older(1, 15) is None
    assert queue.pop_older(3, 15) is None


@pytest.mark.parametrize("seed", range(5))
def test_random_use_keeps_count_of_every_packet(seed: int) -> None:
    rng = random.Random(seed)
    queue = flows.FairQueue(rng.getrandbits(64))
    waiting: dict[int, deque[tuple[int, int]]] = defaultdict(deque)

    def gone(packet: tuple[int, int, int] | None) -> None:
        if packet is not None:
            sender, size, number = packet
            assert waiting[sender].popleft() == (size, number)

    for number in range(1, 20_000):
        sender = rng.choice((rng.randrange(1, 8), rng.randrange(1, 400)))
        size = rng.choice((13, 100, 1437, 9000))
        choice = rng.random()
        if choice < 0.35:
            queue.push(sender, size, number, rng.random() < 0.5)
            waiting[sender].append((size, number))
        elif choice < 0.6:
            excess = queue.displace(sender, size, number)
            if excess != (sender, size, number):
                gone(excess)
                waiting[sender].append((size, number))
        elif choice < 0.9:
            gone(queue.pop())
        elif choice < 0.97:
            gone(queue.pop_older(sender, max(0, number - 200)))
        else:
            queue.bypass(rng.randrange(5000))
        held = [packet for packets in waiting.values() for packet in packets]
        if number % 500 == 0:
            n_active = sum(1 for packets in waiting.values() if packets)
            assert queue.counts[:3] == (len(held), sum(n for n, _ in held), n_active)
    for packet in drain(queue):
        gone(packet)
    assert not any(waiting.values())
