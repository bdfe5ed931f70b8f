"""The choice of the closed login when the memory for logins is used up."""

from __future__ import annotations

from fastderp.server.accept.login_memory import HANDSHAKE_BYTES, Account, LoginMemory

KIB = 1024
LIMIT = 4 << 20


class Holder:
    """An account and the fate of its owner."""

    def __init__(self, memory: LoginMemory) -> None:
        self.memory = memory
        self.account = Account(self.evicted)
        self.is_evicted = False

    def evicted(self) -> None:
        self.is_evicted = True
        self.memory.release(self.account)

    def hold(self, n_bytes: int) -> bool:
        return self.memory.charge(self.account, n_bytes)


def holders(memory: LoginMemory, n: int, n_bytes: int) -> list[Holder]:
    made = [Holder(memory) for _ in range(n)]
    for holder in made:
        assert holder.hold(n_bytes)
    return made


def test_every_byte_is_released() -> None:
    memory = LoginMemory(LIMIT)
    made = holders(memory, 10, 3 * KIB)
    made[0].hold(200 * KIB)
    made[1].hold(1 * KIB)
    assert memory.held_bytes == (8 * 3 + 200 + 1) * KIB
    for holder in made:
        memory.release(holder.account)
    assert memory.held_bytes == 0
    assert memory.freed_bytes == (10 * 3 + 200 - 3) * KIB
    assert not any(holder.is_evicted for holder in made)


def test_the_largest_holders_are_closed_first_and_of_these_the_oldest() -> None:
    memory = LoginMemory(LIMIT)
    small = holders(memory, 100, 3 * KIB)
    large = holders(memory, 14, 250 * KIB)
    assert holders(memory, 2, 250 * KIB)
    assert [holder.is_evicted for holder in large] == [True] + 13 * [False]
    assert not any(holder.is_evicted for holder in small)


def test_the_largest_holder_is_closed_when_it_asks_for_more() -> None:
    memory = LoginMemory(LIMIT)
    others = holders(memory, 60, 60 * KIB)
    greedy = Holder(memory)
    assert not greedy.hold(900 * KIB)
    memory.release(greedy.account)
    assert not any(holder.is_evicted for holder in others)


def test_any_number_of_small_holders_leaves_room_for_handshakes() -> None:
    memory = LoginMemory(LIMIT)
    crowd = [Holder(memory) for _ in range(4000)]
    for holder in crowd:
        assert holder.hold(2 * KIB)
    assert memory.has_room_for_handshake
    assert memory.held_bytes <= LIMIT * 5 // 8
    n_evicted = sum(holder.is_evicted for holder in crowd)
    assert n_evicted == 4000 - LIMIT * 5 // 8 // (2 * KIB)
    assert all(holder.is_evicted for holder in crowd[:n_evicted])


def test_clients_are_accepted_beside_any_number_of_handshakes() -> None:
    memory = LoginMemory(LIMIT)
    handshakes = []
    while memory.has_room_for_handshake:
        handshakes += holders(memory, 1, HANDSHAKE_BYTES)
    holders(memory, LIMIT * 5 // 8 // (4 * KIB), 4 * KIB)
    assert not any(holder.is_evicted for holder in handshakes)
