from pathlib import Path
from typing import Any

import pytest

from fastderp.loadgen.connect import Target, loopback_sources
from fastderp.loadgen.scenario import SCENARIOS, Scenario, Shape, parse_sizes, read_scenario


def test_pairs_have_two_clients_each() -> None:
    scenario = Scenario("x", "", shape=Shape.PAIRS, n=2)
    assert scenario.n_clients == 4
    assert scenario.flows() == [(0, 1), (2, 3)]


def test_fan_in_sends_to_the_last_client() -> None:
    assert Scenario("x", "", shape=Shape.FAN_IN, n=3).flows() == [(0, 3), (1, 3), (2, 3)]


def test_fan_out_sends_from_the_first_client() -> None:
    assert Scenario("x", "", shape=Shape.FAN_OUT, n=3).flows() == [(0, 1), (0, 2), (0, 3)]


def test_all_to_all_excludes_the_sender() -> None:
    flows = Scenario("x", "", shape=Shape.ALL_TO_ALL, n=3).flows()
    assert flows == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]


def test_flows_of_every_named_scenario_are_between_its_clients() -> None:
    for scenario in SCENARIOS.values():
        assert max(max(flow) for flow in scenario.flows()) < scenario.n_clients


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 0},
        {"n": 1, "shape": Shape.ALL_TO_ALL},
        {"window": -1},
        {"window": 1, "rate": 5.0},
        {"idle": -1},
    ],
)
def test_an_impossible_load_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Scenario("x", "", **wrong)


def test_sizes_are_one_number_or_a_weighted_mix() -> None:
    assert parse_sizes("1400") == ((1400, 1.0),)
    assert parse_sizes("100:3,1400:0.5") == ((100, 3.0), (1400, 0.5))
    with pytest.raises(ValueError, match="'big'"):
        parse_sizes("100,big")


def test_a_url_gets_the_usual_port_and_path() -> None:
    assert Target.parse("https://relay.example").url == "https://relay.example:443/derp"
    assert Target.parse("http://[::1]:3340/x").authority == "[::1]:3340"


@pytest.mark.parametrize("url", ["relay.example", "ftp://relay.example", "http://", "http://h:x"])
def test_a_malformed_relay_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        Target.parse(url)


def test_a_ring_goes_through_every_client_once() -> None:
    scenario = Scenario("x", "", shape=Shape.RING, n=3)
    assert scenario.flows() == [(0, 1), (1, 2), (2, 0)]
    assert scenario.n_clients == 3


def test_the_last_receivers_are_the_slow_ones() -> None:
    assert Scenario("x", "", n=3, slow=2).slow_readers() == [3, 5]
    assert Scenario("x", "").slow_readers() == []
    with pytest.raises(ValueError, match="slow"):
        Scenario("x", "", n=3, slow=4)


def test_a_file_describes_a_scenario(tmp_path: Path) -> None:
    file = tmp_path / "office.toml"
    file.write_text('shape = "fan-in"\nn = 5\nsizes = "100:3,1400:1"\nrate = 500\nslow = 1\n')
    assert read_scenario(file) == Scenario(
        "office",
        "",
        shape=Shape.FAN_IN,
        n=5,
        sizes=((100, 3.0), (1400, 1.0)),
        window=0,
        rate=500,
        slow=1,
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pears = 3", "pears: unknown field"),
        ('n = "many"', "n: 'many' has the wrong type"),
        ("idle = true", "idle: True has the wrong type"),
        ('shape = "star"', "'star' is not a valid Shape"),
        ('sizes = "big"', "'big'"),
        ("n = 0", "n must be 1 or more"),
        ("n =", "Invalid value"),
        ("in_a_row = 0", "in_a_row must be 1 or more"),
        ("n = " + "[" * 5000, "too many nested arrays"),
        ("n = 1000000000000", "n must be at most 1000000"),
        ('shape = "all-to-all"\nn = 1000000', "1000000 clients have more than"),
        ("window = 18446744073709551616", "window must be at most 1000000"),
        ("in_a_row = 4294967296", "in_a_row must be at most 1000000"),
        ("slow = 1\nslow_kib_per_s = 18446744073709551616", "slow_kib_per_s must be at most"),
        ("at_once = 99999999", "at_once must be at most"),
        ("rate = nan", "rate must be 0 to 1e+09, but is nan"),
        ("storm_rate = 2e9", "storm_rate must be 0 to 1e+09"),
        ('sizes = "100:nan"', "the weight of size 100 must be positive"),
        ('sizes = "100:inf"', "the weight of size 100 must be positive"),
    ],
)
def test_a_wrong_scenario_file_is_named_with_its_error(
    tmp_path: Path, text: str, words: str
) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(ValueError) as refused:
        read_scenario(file)
    assert str(refused.value).startswith(f"{file}: ")
    assert words in str(refused.value)


def test_more_clients_than_an_address_has_ports_for_come_from_several() -> None:
    assert loopback_sources("127.0.0.1", 20_000) == []
    assert loopback_sources("127.0.0.1", 45_000) == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    assert loopback_sources("192.0.2.1", 45_000) == []
    assert loopback_sources("::1", 45_000) == []
