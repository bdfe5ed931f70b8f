"""The search for the highest rate that a relay carries."""

import pytest

from bench.capacity import AROUND, LOWEST, Search
from bench.lab import Measurement
from bench.relays import RelayError


def result(
    rate: float, p99_us: float = 100.0, loss: float = 0.0, relay: float = 0.5, load: float = 0.5
) -> Measurement:
    return {
        "packets_per_s": rate * (1 - loss),
        "latency": {"p99_us": p99_us},
        "loss": loss,
        "relay": {"cpu_share": relay},
        "load_cpu_share": load,
        "foreign_share": 0.0,
    }


class FakeRelay:
    """Carries up to `capacity` packets per second; some probes are disturbed by other work."""

    def __init__(self, capacity: float, disturbed: tuple[int, ...] = (), **beyond: float) -> None:
        self.capacity = capacity
        self.disturbed = disturbed
        self.beyond = beyond or {"p99_us": 5000.0}
        self.rates: list[float] = []

    def __call__(self, rate: float) -> Measurement:
        self.rates.append(rate)
        if len(self.rates) in self.disturbed:
            return result(rate, p99_us=50_000.0)
        return result(rate, **({} if rate <= self.capacity else self.beyond))


def found(relay: FakeRelay, before: float | None = None) -> Search:
    search = Search()
    search.run(relay, before)
    return search


@pytest.mark.parametrize("capacity", [21_000, 100_000, 950_000])
def test_the_rate_that_is_found_is_the_capacity_within_a_few_percent(capacity: float) -> None:
    assert capacity / 1.08 <= found(FakeRelay(capacity)).packets_per_s <= capacity


def test_packets_that_are_lost_count_like_late_ones() -> None:
    assert found(FakeRelay(100_000, loss=0.01)).packets_per_s <= 100_000


def test_a_disturbed_probe_is_repeated() -> None:
    quiet, disturbed = found(FakeRelay(500_000)), found(FakeRelay(500_000, disturbed=(1, 4)))
    assert disturbed.packets_per_s == quiet.packets_per_s


def test_a_later_round_searches_around_the_rate_of_the_first() -> None:
    relay = FakeRelay(110_000)
    search = found(relay, before=100_000)
    assert 100_000 <= search.packets_per_s <= 110_000
    assert all(100_000 / AROUND <= rate <= 100_000 * AROUND for rate in relay.rates)


def test_a_later_round_that_carries_less_searches_everywhere() -> None:
    assert found(FakeRelay(30_000), before=200_000).packets_per_s > 30_000 / 1.08


def test_a_relay_that_carries_no_rate_is_an_error() -> None:
    relay = FakeRelay(1000)
    with pytest.raises(RelayError, match="p99 above 1 ms or lose more than 0.1%"):
        found(relay)
    assert relay.rates[-1] == LOWEST / 8


def test_a_relay_that_carries_less_than_the_lowest_rate_has_a_capacity() -> None:
    assert found(FakeRelay(LOWEST / 3)).packets_per_s == LOWEST / 4


@pytest.mark.parametrize(
    ("relay_share", "load_share", "limit"),
    [(1.0, 0.6, "relay"), (0.6, 1.0, "load"), (1.0, 1.0, "relay"), (0.9, 0.6, "delay")],
)
def test_the_limit_is_what_the_next_higher_rate_met(
    relay_share: float, load_share: float, limit: str
) -> None:
    relay = FakeRelay(100_000, p99_us=5000.0, relay=relay_share, load=load_share)
    assert found(relay).limit == limit


def test_the_limit_is_unknown_when_every_rate_is_carried() -> None:
    assert found(FakeRelay(10**9)).limit == "not found"


def test_each_probe_is_kept() -> None:
    relay = FakeRelay(100_000)
    search = found(relay)
    assert [probe["rate"] for probe in search.probes] == [round(rate) for rate in relay.rates]
    assert {probe["is_carried"] for probe in search.probes} == {True, False}
