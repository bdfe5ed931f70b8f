"""Keys of ended links are withdrawn in batches per loop iteration, despite failures."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from fastderp.dataplane.plane import Plane
from fastderp.server.mesh import withdrawals as withdrawals_module
from fastderp.server.mesh.withdrawals import KEYS_PER_TURN, Withdrawals


class Routes:
    """The data plane's side: keys by link; the first `n_failures` removals fail."""

    def __init__(self, n_failures: int = 0) -> None:
        self.removed: list[tuple[bytes, int]] = []
        self.n_failures = n_failures

    def remove_forwarder(self, key: bytes, link: int) -> None:
        if self.n_failures:
            self.n_failures -= 1
            raise MemoryError
        self.removed.append((key, link))


def keys(n: int) -> set[bytes]:
    return {number.to_bytes(32) for number in range(n)}


async def until_done(withdrawals: Withdrawals) -> None:
    async with asyncio.timeout(10):
        while not withdrawals.is_done:
            await asyncio.sleep(0)


async def test_withdrawing_250000_keys_leaves_room_for_other_work() -> None:
    routes = Routes()
    withdrawals = Withdrawals(cast(Plane, routes))
    withdrawals.add(1, keys(250_000))
    n_seen = []
    while not withdrawals.is_done:
        n_seen.append(len(routes.removed))
        await asyncio.sleep(0)
    steps = [later - earlier for earlier, later in zip([0, *n_seen], n_seen, strict=False)]
    assert max(steps) <= KEYS_PER_TURN
    assert len(routes.removed) == len(set(routes.removed)) == 250_000


async def test_several_links_that_end_together_lose_all_their_keys_and_each_its_own() -> None:
    routes = Routes()
    withdrawals = Withdrawals(cast(Plane, routes))
    for handle in (1, 2, 3):
        withdrawals.add(handle, keys(1500))
    assert len(withdrawals.keys) == 1500, "still announced until their turn has come"
    await until_done(withdrawals)
    assert sorted(routes.removed) == sorted((key, link) for key in keys(1500) for link in (1, 2, 3))


async def test_a_failed_withdrawal_is_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(withdrawals_module, "RETRY_S", 0.001)
    routes = Routes(n_failures=3)
    withdrawals = Withdrawals(cast(Plane, routes))
    withdrawals.add(1, keys(10))
    await until_done(withdrawals)
    assert {key for key, _ in routes.removed} == keys(10)
