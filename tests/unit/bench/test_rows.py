"""The rows of `bench.goals` on a fake laboratory: their loads and their verdicts."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bench.goals import columns
from bench.lab import TLS, Lab
from bench.relays import Relay, Running
from bench.rows import ROWS, Bench, Row
from fastderp.loadgen.scenario import SCENARIOS


def result(relay: Relay, load: str) -> dict[str, Any]:
    """Return costs: derper's are ten times the others'."""
    cost = 10.0 if relay.name == "derper" else 1.0
    return {
        "packets_per_s": 1000.0,
        "mbit_per_s": 11.2,
        "load_cpu_share": 0.5,
        "n_clients": 15_000 if "15000" in load else 5000,
        "loss": 0.0,
        "fairness": 1.0,
        "logins_per_s": 100.0,
        "storm_logins_per_s": 100.0,
        "foreign_share": 0.0,
        "relay_name": relay.name,
        "scenario": {"rate": 1000.0, "storm": 2000 if load == "storm" else 0},
        "latency": {"p50_us": cost, "p99_us": cost},
        "relay": {
            "cpu_us_per_packet": cost,
            "cpu_share": 0.5,
            "cpu_us_per_login": cost,
            "rss_before_kib": 0,
            "rss_connected_kib": 6000,
            "rss_idle_kib": 5000,
            "rss_after_kib": 9000,
            "rss_settled_kib": 5000,
            "settle_s": 1.0,
        },
    }


class DryLab(Lab):
    """Records its calls instead of measuring."""

    loads: list[str]

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "loads", [])

    def measure(
        self, relay: Relay, load: str, *flags: str, cores: Collection[int] = ()
    ) -> dict[str, Any]:
        return self.load(Running("", 0), relay, load, *flags)

    def load(self, target: Running, relay: Relay, load: str, *flags: str) -> dict[str, Any]:
        self.loads.append(load)
        return result(relay, load)

    @contextmanager
    def running(
        self, relay: Relay, load: str = "", cores: Collection[int] = ()
    ) -> Iterator[Running]:
        yield Running("", 0)

    @contextmanager
    def region(self, relay: Relay, load: str) -> Iterator[Running]:
        yield Running("", 0, Running("", 0))


def bench(lab: Lab) -> Bench:
    derper, floor, ours = (Relay(name, "", []) for name in ("derper", "floor", "fastderp"))
    return Bench(lab, 2, derper, floor, ours, ours, say=lambda text: None)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_measures_scenarios_that_exist_and_finds_numbers_with_goals(row: Row) -> None:
    lab = DryLab()
    findings = list(row.find(bench(lab)))
    assert findings
    assert {load.removeprefix(TLS) for load in lab.loads} <= set(SCENARIOS)
    for finding in findings:
        assert finding.values
        if row.name != "capacity":  # it has no goals
            assert finding.goal is not None or finding.stretch is not None


def test_the_capacity_of_each_relay_is_kept_with_its_probes() -> None:
    both = bench(DryLab())
    both.variants = [Relay("fastderp-bundled", "", [])]
    both.older_derper = [Relay("derper-1.98", "", [])]
    row = next(row for row in ROWS if row.name == "capacity")
    found = [finding.what for finding in row.find(both)]
    assert "TLS, pairs-10: packets/s: fastderp ÷ derper" in found
    assert [(each["load"], each["relay_name"]) for each in both.capacities] == [
        (load, name)
        for load in ("pairs-10", "pairs-50", "tls/pairs-10", "tls/pairs-50")
        for name in ("derper", "derper-1.98", "fastderp", "fastderp-bundled")
        if load.startswith(TLS) or name != "fastderp-bundled"
    ]
    assert both.capacities[0]["packets_per_s"] == [1000.0, 1000.0]
    assert both.capacities[0]["gbit_per_s"] == [0.0112, 0.0112]
    assert all(len(probes) > 2 for probes in both.capacities[0]["probes"])


@pytest.mark.parametrize("name", ["latency", "fan", "login", "logins", "memory"])
def test_rows_of_the_short_table_have_the_older_derper_beside_them(name: str) -> None:
    both = bench(DryLab())
    both.older_derper = [Relay("derper-1.98", "", [])]
    row = next(row for row in ROWS if row.name == name)
    whats = [finding.what for finding in row.find(both)]
    assert "derper-1.98" in {result["relay_name"] for result in both.measurements}
    assert not any("1.98" in what for what in whats)


@pytest.mark.parametrize("name", ["tls", "logins"])
def test_rows_about_tls_have_other_crypto_libraries_beside_the_relays_own(name: str) -> None:
    both = bench(DryLab())
    both.variants = [Relay("fastderp-system", "", []), Relay("fastderp-bundled", "", [])]
    row = next(row for row in ROWS if row.name == name)
    found = [finding.what for finding in row.find(both)]
    for variant in both.variants:
        assert any(variant.name in what for what in found), found


def test_the_ratio_to_derper_is_derpers_cost_over_ours() -> None:
    [first, *_] = ROWS[0].find(bench(DryLab()))
    assert first.values == [10.0, 10.0]


@pytest.mark.parametrize(
    ("sense", "goal", "stretch", "values", "verdict"),
    [
        (">=", 5.0, None, [4.0, 6.0, 5.5], "reached"),
        (">=", 5.0, 7.0, [8.0], "stretch"),
        (">=", 5.0, None, [4.9], "not reached"),
        ("<=", 1.5, 1.0, [1.2], "reached"),
        ("<=", None, 1.2, [1.3], "stretch not reached"),
    ],
)
def test_a_number_is_judged_by_its_median(
    sense: str, goal: float | None, stretch: float | None, values: list[float], verdict: str
) -> None:
    finding = {
        "what": "x",
        "values": values,
        "sense": sense,
        "goal": goal,
        "stretch": stretch,
        "unit": "",
    }
    assert columns(finding)[-1] == verdict
