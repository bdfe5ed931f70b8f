from typing import Any

import pytest

from fastderp.loadgen.connect import Target
from fastderp.loadgen.scenario import SCENARIOS, Scenario, Shape, parse_sizes


def test_pairs_have_two_clients_each() -> None:
    scenario = Scenario("x", "", shape=Shape.PAIRS, n=2)
    assert scenario.n_clients == 4
    assert scenario.flows() == [(0, 1), (2, 3)]


def test_fan_in_sends_to_the_last_client() -> None:
    assert Scenario("x", "", shape=Shape.FAN_IN, n=3).flows() == [(0, 3), (1, 3), (2, 3)]


def test_fan_out_sends_from_the_first_client() -> None:
    assert Scenario("x", "", shape=Shape.FAN_OUT, n=3).flows() == [(0, 1), (0, 2), (0, 3)]


def test_all_to_all_leaves_out_oneself() -> None:
    flows = Scenario("x", "", shape=Shape.ALL_TO_ALL, n=3).flows()
    assert flows == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]


def test_every_named_scenario_only_names_clients_it_has() -> None:
    for scenario in SCENARIOS.values():
        assert max(max(flow) for flow in scenario.flows()) < scenario.n_clients


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": 1, "shape": Shape.ALL_TO_ALL}, {"window": -1},
                                   {"window": 1, "rate": 5.0}, {"idle": -1}])
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
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        Target.parse(url)
