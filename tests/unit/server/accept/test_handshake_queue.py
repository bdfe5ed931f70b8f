"""Handshakes begin in the order of their clients, as memory allows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from operator import contains

import pytest

from fastderp.server.accept import handshake_queue
from fastderp.server.accept.handshake_queue import HandshakeQueue, Ticket
from fastderp.server.accept.login_memory import HANDSHAKE_BYTES, Account, LoginMemory

LIMIT = 4 << 20
ROOM_FOR = LIMIT * 3 // 8 // HANDSHAKE_BYTES


class Client:
    """One handshake: it takes memory at its start and gives it back at its end."""

    def __init__(self, queue: HandshakeQueue, memory: LoginMemory, started: list[Client]) -> None:
        self.queue, self.memory, self.started = queue, memory, started
        self.gave_way = False
        self.account = Account(self.end)
        self.ticket = Ticket(self._start, self._give_way)

    def _start(self) -> None:
        self.started.append(self)
        self.memory.charge(self.account, HANDSHAKE_BYTES)

    def _give_way(self) -> None:
        self.gave_way = True
        self.end()

    def end(self) -> None:
        self.queue.leave(self.ticket)
        self.memory.release(self.account)


def make(n: int) -> tuple[list[Client], list[Client], HandshakeQueue]:
    memory = LoginMemory(LIMIT)
    queue = HandshakeQueue(asyncio.get_running_loop(), memory)
    started: list[Client] = []
    return [Client(queue, memory, started) for _ in range(n)], started, queue


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_waiting_handshake_starts_in_order() -> None:
    clients, started, queue = make(ROOM_FOR + 30)
    at_once = [queue.enter(client.ticket) for client in clients]
    assert at_once == [True] * ROOM_FOR + [False] * 30
    assert queue.n_waiting == 30
    for client in clients:
        await until(partial(contains, started, client))
        client.end()
    assert started == clients
    assert queue.n_waiting == 0
    queue.close()


async def test_a_handshake_whose_client_left_is_not_started() -> None:
    clients, started, queue = make(ROOM_FOR + 2)
    for client in clients:
        queue.enter(client.ticket)
    clients[-2].end()
    clients[0].end()
    await until(lambda: clients[-1] in started)
    assert clients[-2] not in started
    queue.close()


async def test_a_slow_handshake_is_ended_for_waiting_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handshake_queue, "LOOK_S", 0.01)
    monkeypatch.setattr(handshake_queue, "PATIENCE_S", 0.0)
    clients, started, queue = make(ROOM_FOR + 1)
    for client in clients[:-1]:
        queue.enter(client.ticket)
    await asyncio.sleep(0.05)
    assert not any(client.gave_way for client in clients), "nothing waits yet"
    queue.enter(clients[-1].ticket)
    await until(lambda: clients[-1] in started)
    assert [client.gave_way for client in clients] == [True] + [False] * ROOM_FOR
    queue.close()


async def test_when_all_handshakes_are_slow_none_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handshake_queue, "LOOK_S", 0.01)
    monkeypatch.setattr(handshake_queue, "PATIENCE_S", 0.0)
    clients, started, queue = make(ROOM_FOR + 2)
    for client in clients:
        queue.enter(client.ticket)
    slow = clients[0]
    slow.ticket.started_s -= 60.0
    queue.note_finished(slow.ticket)
    slow.end()
    await until(lambda: clients[-2] in started)
    await asyncio.sleep(0.05)
    assert not any(client.gave_way for client in clients)
    queue.close()
