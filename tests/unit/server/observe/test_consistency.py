"""The relay's check of its tables. PROTOCOL §6.9."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from fastderp.server.observe.consistency import LOOKS, inconsistencies
from fastderp.wire.keys import NodePublic

ANN, BOB, FAR = (os.urandom(32) for _ in range(3))


class Tables:
    """A data plane with Ann twice, Bob once, a link that leads to Far, and correct counters."""

    def __init__(self) -> None:
        self.n_looks = 0
        self.keys = [ANN, ANN, BOB]
        self.routes = {ANN, BOB}
        self.counted = {
            "current_connections": 3, "current_dup_client_conns": 2, "current_dup_client_keys": 1,
            "clients_local": 2, "clients_remote": 1,
        }  # fmt: skip

    def sessions(self) -> list[Any]:
        self.n_looks += 1
        own = [SimpleNamespace(key=key, link=False) for key in self.keys]
        return [*own, SimpleNamespace(key=os.urandom(32), link=True)]

    def counters(self) -> dict[str, int]:
        return self.counted

    def is_connected(self, key: bytes) -> bool:
        return key in self.routes


def found(tables: Any, announced: set[bytes] = {FAR, ANN}) -> list[str]:
    return inconsistencies(tables, lambda: announced)


def test_duplicates_links_and_keys_at_two_relays_are_consistent() -> None:
    assert found(Tables()) == []


@pytest.mark.parametrize(
    ("counter", "problem"),
    [
        ("current_connections", "4 connections counted, 3 found"),
        (
            "current_dup_client_conns",
            "2 connections beyond the first of their key counted, 1 found",
        ),
        ("clients_local", "3 local keys counted, 2 found"),
        ("clients_remote", "2 remote keys counted, 1 found"),
    ],
)
def test_a_wrong_count_is_reported(counter: str, problem: str) -> None:
    tables = Tables()
    tables.counted[counter] += 1
    assert found(tables) == [problem]
    assert tables.n_looks == LOOKS


def test_an_announced_key_without_a_route_is_reported() -> None:
    assert found(Tables(), {FAR, os.urandom(32)}) == ["1 remote keys counted, 2 found"]


def test_a_session_without_a_route_is_reported_with_its_key() -> None:
    tables = Tables()
    tables.routes.remove(BOB)
    assert found(tables) == [f"session of {NodePublic(BOB).short} has no route"]


def test_a_login_during_the_check_is_not_reported() -> None:
    tables = Tables()
    looks = iter([2, 3])
    tables.counters = (  # type: ignore[method-assign]
        lambda: tables.counted | {"current_connections": next(looks)}
    )
    assert found(tables) == []
