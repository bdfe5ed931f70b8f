"""Traffic and round trips of connections. PROTOCOL §6.10, §14."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from fastderp.dataplane.plane import TcpInfo
from fastderp.server.observe import traffic
from fastderp.server.observe.traffic import BytesSentRecv, RoundTrips
from fastderp.wire.keys import NodePrivate, NodePublic

ANN, BOB = (NodePrivate.generate().public_key for _ in range(2))


class Counters:
    """A data plane's report; `tcp` and `bridged` are (handle, key, sent, received) rows."""

    def __init__(self) -> None:
        self.tcp: list[tuple[int, NodePublic, int, int]] = []
        self.bridged: list[tuple[int, NodePublic, int, int]] = []
        self.rtt_us = 3000

    def tcp_infos(self) -> list[TcpInfo]:
        return [
            TcpInfo(handle, key.raw, self.rtt_us, sent, received)
            for handle, key, sent, received in self.tcp
        ]

    def sessions(self) -> list[Any]:
        return [
            SimpleNamespace(
                handle=handle, key=key.raw, totals=SimpleNamespace(tx_bytes=sent, rx_bytes=received)
            )
            for handle, key, sent, received in [(row[0], row[1], 1, 1) for row in self.tcp]
            + self.bridged
        ]

    def unique_senders(self) -> dict[int, int]:
        return {1: 5}


@pytest.fixture
def plane() -> Any:
    return Counters()


async def test_a_round_has_the_totals_of_clients_that_moved_bytes(plane: Any) -> None:
    rounds = traffic.rounds(plane, dict, 0)
    assert await anext(rounds) == []
    plane.tcp = [(1, ANN, 100, 200), (2, BOB, 7, 7)]
    assert await anext(rounds) == [BytesSentRecv(100, 200, ANN, 5), BytesSentRecv(7, 7, BOB)]
    plane.tcp = [(1, ANN, 100, 201), (2, BOB, 7, 7)]
    assert await anext(rounds) == [BytesSentRecv(100, 201, ANN, 5)]
    plane.tcp = [(2, BOB, 7, 7)]
    assert await anext(rounds) == []


async def test_a_bridged_connection_is_counted_at_its_socket_and_an_embedded_one_by_packets(
    plane: Any,
) -> None:
    plane.bridged = [(8, ANN, 1400, 0), (9, BOB, 1400, 0)]
    rounds = traffic.rounds(plane, lambda: {9: (1499, 77)}, 0)
    assert await anext(rounds) == [BytesSentRecv(1400, 0, ANN), BytesSentRecv(1499, 77, BOB)]


async def test_a_line_has_derpers_format(plane: Any) -> None:
    plane.tcp = [(1, ANN, 100, 200), (2, BOB, 7, 8)]
    assert await anext(traffic.lines(plane, dict, 0)) == (
        b'{"Sent":100,"Recv":200,"Key":"%s","UniqueSenders":5}\n{"Sent":7,"Recv":8,"Key":"%s"}\n\n'
        % (ANN.text.encode(), BOB.text.encode())
    )


def test_round_trips_are_counted_each_time_and_connections_without_one_once() -> None:
    looks = iter(
        [
            ([1, 0, 0, 0, 0, 0, 0, 0], 1, 0),
            ([0, 0, 0, 0, 0, 0, 1, 0], 0, 2),
            ([0, 0, 0, 0, 0, 0, 1, 2], 1, 1),
        ]
    )
    asked = []

    class Sessions:
        def round_trips(self, bounds_us: list[int]) -> tuple[list[int], int, int]:
            asked.append(bounds_us)
            return next(looks)

    round_trips = RoundTrips(cast(Any, Sessions()), lambda: [10_000, 10_001])
    for _ in range(3):
        round_trips.sample()
    assert round_trips.counts == {
        "10ms": 4,
        "20ms": 3,
        "500ms": 2,
        "inf": 2,
        "non-tcp": 2,
        "error": 3,
    }
    assert asked[0] == [10_000, 20_000, 50_000, 100_000, 150_000, 250_000, 500_000]
