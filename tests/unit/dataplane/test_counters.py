"""The table of counters: every row is a C member, an entry of `Plane.counters()` and a metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fastderp
from fastderp.dataplane import counters
from fastderp.dataplane.counters import COUNTERS, KIND, PER_THREAD, Counter
from fastderp.dataplane.plane import Plane
from fastderp.server.observe import metrics
from fastderp.wire.protocol import FrameType
from tests.kit.plane import PlanePeer


def test_the_c_struct_is_what_the_table_says() -> None:
    declared = Path(fastderp.__file__).parent / "dataplane" / "counters.pxd"
    assert declared.read_text() == counters.declarations(), "run setup.py build_ext --inplace"


def test_every_row_is_an_entry_and_nothing_else_is(plane: Plane) -> None:
    assert plane.counters().keys() == {row.name for row in COUNTERS} - {"opened", "closed"}


def test_every_entry_has_a_metric_with_the_labels_of_its_row() -> None:
    shown = {metric.name: metric for metric in metrics.METRICS}
    for row in COUNTERS:
        if row.owner != "part":
            assert shown[row.metric].labels == tuple(label.name for label in row.labels)
            assert shown[row.metric].help == row.help


def test_entries_follow_the_members_of_the_struct(plane: Plane) -> None:
    a, b = PlanePeer(plane), PlanePeer(plane)
    a.send_packet(b.key, b"data")
    b.receive()
    a.send(FrameType.PING, bytes(8))
    a.receive()
    a.send_packet(bytes(32), b"to an absent key")
    a.sync()
    seen: dict[str, Any] = plane.counters()
    assert seen["packets_received_kind"] == {"disco": 0, "other": 2}
    assert seen["packets_dropped"]["unknown_dest", "other"] == 1
    assert seen["bytes_dropped"]["unknown_dest", "other"] == len(b"to an absent key")
    assert seen["got_ping"] == seen["sent_pong"] == 2
    assert seen["bytes_sent"] == 4
    counts, _total = seen["buffered_write_frames"]
    assert len(counts) == len(counters.FLUSH_BOUNDS) + 1


def test_the_recipe_a_new_counter_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """CONTRIBUTING, "Add a counter": the row alone makes the member, the entry and the metric."""
    row = Counter("lost_socks", "socks that did not come back", "fastderp", labels=(KIND,))
    monkeypatch.setattr(counters, "PER_THREAD", (row, *PER_THREAD))
    assert "    uint64_t lost_socks[N_KINDS]\n" in counters.declarations()
    assert counters.entries(iter(range(1000)))["lost_socks"] == {"disco": 0, "other": 1}
    metric = metrics.counted(row)
    monkeypatch.setattr(metrics, "_BY_NAME", {metric.name: metric})
    monkeypatch.setattr(metrics, "METRICS", (metric,))
    assert metrics.varz({row.metric: {"disco": 3}}).splitlines() == [
        "# TYPE fastderp_lost_socks_total counter",
        "# HELP fastderp_lost_socks_total socks that did not come back",
        'fastderp_lost_socks_total{kind="disco"} 3',
        'fastderp_lost_socks_total{kind="other"} 0',
    ]
