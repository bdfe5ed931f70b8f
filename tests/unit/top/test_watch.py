"""What the view knows after answers, failures and restarts of a relay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from fastderp.top.pages import Address, NoRelayError, PageError, RelayPages
from fastderp.top.watch import LIST_LIMIT, Watch
from tests.unit.top.test_figures import LATER, VARZ, item, page


class RecordedRelay:
    """Answers with recorded pages, at times of its own clock; `list_s` is the time of a list."""

    def __init__(self) -> None:
        self.address = Address.parse("http://127.0.0.1")
        self.now_s = 100.0
        self.list_s = 0.0
        self.text = VARZ
        self.pages = {"-rx": page(item())}
        self.asked: list[str] = []
        self.is_down = False

    @contextmanager
    def connection(self) -> Iterator[RecordedRelay]:
        if self.is_down:
            raise NoRelayError(f"{self.address}: connection refused")
        yield self

    def varz(self) -> str:
        return self.text

    def clients(self, sort: str, limit: int) -> dict[str, Any]:
        assert limit == LIST_LIMIT
        self.asked.append(sort)
        self.now_s += self.list_s
        return cast(dict[str, Any], json.loads(json.dumps(self.pages[sort])))


@pytest.fixture
def relay() -> RecordedRelay:
    return RecordedRelay()


@pytest.fixture
def watch(relay: RecordedRelay) -> Watch:
    return Watch(cast(RelayPages, relay), monotonic=lambda: relay.now_s)


def ask_later(watch: Watch, relay: RecordedRelay, seconds: float = 2.0) -> None:
    relay.now_s += seconds
    watch.ask()


def test_the_second_answer_gives_rates(watch: Watch, relay: RecordedRelay) -> None:
    watch.ask()
    assert watch.state.rows[0].bytes_in is None
    relay.text, relay.pages = LATER, {"-rx": page(item(rxBytes=5000))}
    ask_later(watch, relay)
    assert watch.state.rates is not None
    assert watch.state.rates.rate("derp_packets_received") == 250
    assert watch.state.rows[0].bytes_in == 2000


def test_a_relay_that_is_gone_keeps_its_figures_until_it_is_back(
    watch: Watch, relay: RecordedRelay
) -> None:
    watch.ask()
    relay.is_down = True
    watch.try_ask()
    watch.try_ask()
    assert watch.state.trouble.startswith("http://127.0.0.1:80: connection refused; figures of ")
    assert len(watch.state.rows) == 1
    relay.is_down = False
    ask_later(watch, relay)
    assert watch.state.trouble == ""


def test_a_relay_that_is_gone_is_an_error_at_the_start(watch: Watch, relay: RecordedRelay) -> None:
    relay.is_down = True
    with pytest.raises(PageError, match="refused"):
        watch.ask()


def test_a_restarted_relay_gives_no_negative_rates(watch: Watch, relay: RecordedRelay) -> None:
    watch.ask()
    relay.text = LATER.replace("1796035838.066", "1796035999.5").replace(" 1500", " 3")
    relay.pages = {"-rx": page(item(rxBytes=5))}
    ask_later(watch, relay)
    assert watch.state.rates is not None
    assert watch.state.rates.rate("derp_packets_received") is None
    assert watch.state.rows[0].bytes_in is None


def test_beyond_the_limit_both_directions_are_asked_for(watch: Watch, relay: RecordedRelay) -> None:
    relay.pages = {
        "-rx": page(item(1), conns=5000) | {"remaining": 4999},
        "-tx": page(item(2), conns=5000) | {"remaining": 4999},
    }
    watch.ask()
    assert relay.asked == ["-rx", "-tx"]
    assert (len(watch.state.rows), watch.state.n_connections) == (2, 5000)


def test_a_list_that_takes_the_relay_long_is_asked_for_less_often(
    watch: Watch, relay: RecordedRelay
) -> None:
    relay.list_s = 0.5
    watch.ask()
    ask_later(watch, relay)
    for _ in range(4):
        ask_later(watch, relay)
    assert len(relay.asked) == 2
    assert len(watch.state.rows) == 1
    ask_later(watch, relay)
    assert len(relay.asked) == 3


def test_a_snapshot_of_a_slow_relay_has_the_rates_of_its_clients(
    watch: Watch, relay: RecordedRelay
) -> None:
    relay.list_s = 0.5
    watch.ask()
    relay.text, relay.pages = LATER, {"-rx": page(item(rxBytes=6000))}
    ask_later(watch, relay)
    assert watch.state.rows[0].bytes_in == 2000
