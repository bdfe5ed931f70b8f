"""The dashboard asks for metrics that the relay exports, by labels that they have."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import pytest

from fastderp.cli.gen.grafana import OF_EVERY_RELAY, dashboard
from fastderp.server.observe.metrics import METRICS, Metric

DASHBOARD = json.loads(dashboard())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
QUERIES = [
    pytest.param(target["expr"], target["legendFormat"], id=f"{panel['title']}-{target['refId']}")
    for panel in PANELS
    for target in panel.get("targets", [])
]
# by Prometheus
ADDED = {"job", "instance"}
# of every sample of a histogram, with the labels of the samples
SAMPLES: dict[str, tuple[Metric, set[str]]] = {
    name: (metric, {*metric.labels, *labels})
    for metric in METRICS
    for name, labels in (
        [
            (metric.name + "_bucket", ["le"]),
            (metric.name + "_sum", []),
            (metric.name + "_count", []),
        ]
        if metric.kind == "histogram"
        else [(metric.name, [])]
    )
}
# words of PromQL before a parenthesis or an operand
FUNCTIONS = {
    "by", "count", "histogram_quantile", "increase", "max", "min", "or", "rate", "sum", "time",
    "vector",
}  # fmt: skip


def selectors(query: str) -> list[tuple[str, set[str]]]:
    """Return the samples of a query, with the labels that it compares."""
    return [
        (name, set(re.findall(r"(\w+)=~?", labels)))
        for name, labels in re.findall(r"(\w+)\{(.*?)\}", query)
    ]


@pytest.mark.parametrize(("query", "legend"), QUERIES)
def test_the_metrics_and_labels_of_every_query_exist(query: str, legend: str) -> None:
    found = selectors(query)
    assert found
    of_all: set[str] = set(ADDED)
    for name, compared in found:
        assert name in SAMPLES, name
        labels = SAMPLES[name][1]
        assert compared <= labels | ADDED
        assert compared >= ADDED, "the choice of relays"
        of_all |= labels
    named = {label.strip() for by in re.findall(r"by \((.*?)\)", query) for label in by.split(",")}
    named |= set(re.findall(r"\{\{(\w+)\}\}", legend))
    assert named <= of_all


@pytest.mark.parametrize(("query", "legend"), QUERIES)
def test_no_query_has_a_metric_without_the_choice_of_relays(query: str, legend: str) -> None:
    bare = re.sub(r"\w+\{.*?\}|\[.*?\]|by \(.*?\)|\d[\d.]*", "", query)
    assert set(re.findall(r"[a-z]\w*", bare)) <= FUNCTIONS


@pytest.mark.parametrize(("query", "legend"), QUERIES)
def test_counters_are_shown_as_rates_and_gauges_as_they_are(query: str, legend: str) -> None:
    rated = re.findall(r"(?:rate|increase)\((\w+)\{.*?\}\[", query)
    for name, _ in selectors(query):
        metric = SAMPLES[name][0]
        # derper's name of a time that only grows
        is_counter = metric.kind in ("counter", "histogram") and metric.name != "uptime_sec"
        assert (name in rated) is is_counter, name


def test_the_legend_tells_the_lines_of_a_panel_apart() -> None:
    for panel in PANELS:
        legends = [target["legendFormat"] for target in panel.get("targets", [])]
        assert len(set(legends)) == len(legends), panel["title"]


def test_panels_do_not_overlap() -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        assert columns.stop <= 24
        return {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}

    assert not any(cells(first) & cells(second) for first, second in combinations(PANELS, 2))
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


def test_the_data_source_is_a_variable() -> None:
    kinds = {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]}
    assert kinds == {"datasource": "datasource", "job": "query", "instance": "query"}
    sources = [item["uid"] for item in _values(DASHBOARD, "datasource") if isinstance(item, dict)]
    assert set(sources) == {"${datasource}"}
    assert OF_EVERY_RELAY in SAMPLES


def _values(tree: Any, key: str) -> list[Any]:
    """Return the values of a key anywhere in a JSON value."""
    if isinstance(tree, list):
        return [value for item in tree for value in _values(item, key)]
    if isinstance(tree, dict):
        below = [value for item in tree.values() for value in _values(item, key)]
        return [tree[key], *below] if key in tree else below
    return []


def test_panels_explain_their_metrics() -> None:
    [reloads] = [panel for panel in PANELS if panel["title"].startswith("Refused reloads")]
    assert "reloads that left the previous input in force, by part" in reloads["description"]
    assert all(panel["description"] for panel in PANELS if panel["type"] != "row")
