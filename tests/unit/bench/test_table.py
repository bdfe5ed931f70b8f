"""The output of `bench.goals`: the table in a document, the plots."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import plot, table
from bench.goals import KEPT, recorded_command
from bench.goals import main as goals
from bench.relays import Relay

ROOT = Path(__file__).parents[3]


def document(foreign_share: float = 0.0) -> dict[str, Any]:
    measurements = [
        {
            "load": "pairs-10",
            "flags": [],
            "relay_name": name,
            "foreign_share": foreign_share,
            "latency": {"p50_us": 10.0, "p99_us": 50.0},
            "relay": {"cpu_us_per_packet": cost},
            "packets_per_s": 1000.0,
            "loss": 0.0,
            "n_cores": 1,
        }
        for name, cost in (("derper", 4.0), ("fastderp", 0.5), ("derper", 6.0), ("fastderp", 0.5))
    ]
    finding = {
        "what": "derper ÷ fastderp",
        "values": [8.0, 12.0],
        "sense": ">=",
        "goal": 5.0,
        "stretch": None,
        "unit": "",
    }
    return {
        "environment": {
            "fastderp": "2",
            "cpu": "A CPU",
            "cores": 4,
            "kernel": "6.1",
            "python": "3.13",
            "suite": "TLS_X",
            "when": "2026-01-01",
            "command": ["python", "-m", "bench.goals"],
        },
        "relays": {"derper": "1", "fastderp": "2"},
        "crypto": {"fastderp": "OpenSSL 3"},
        "rows": {
            "pairs-10": {
                "number": 1,
                "name": "pairs-10",
                "title": "ten pairs",
                "failed": "",
                "command": "python -m bench.goals pairs-10",
                "commit": "abc",
                "capacities": [],
                "findings": [finding],
                "notes": ["a note"],
                "measurements": measurements,
            }
        },
    }


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the relays by ones that nothing has to be built for."""
    names = {"derper": "derper", "older_derper": "derper-1.98", "floor": "floor"}
    for function, name in (names | {"fastderp": "fastderp"}).items():
        monkeypatch.setattr(
            f"bench.goals.{function}", lambda *_, name=name, **__: Relay(name, "1", [])
        )


def kept(directory: Path, value: dict[str, Any]) -> str:
    file = directory / "goals.json"
    file.write_text(json.dumps(value))
    return str(file)


def test_a_table_goes_between_the_markers_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench.table -->\nold\n<!-- /bench.table -->\nafter\n")
    assert table.main([kept(tmp_path, document()), "--write", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- bench.table -->\n| |")
    assert text.endswith("<!-- /bench.table -->\nafter\n")
    assert "old" not in text
    assert (
        "| 1. | ten pairs | derper ÷ fastderp | ≥ 5.00 |  | 10.00 (8.00–12.00) | reached |" in text
    )
    assert "A CPU, Linux 6.1, Python 3.13, TLS_X, 2026-01-01" in text
    assert "Row 1: a note." in text
    assert "1 `python -m bench.goals pairs-10`" in text
    assert "machine busy" not in text


def test_a_table_of_a_busy_machine_has_a_warning() -> None:
    assert "machine busy" in table.markdown(document(foreign_share=0.3))


def test_a_document_without_markers_is_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("no markers\n")
    assert table.main([kept(tmp_path, document()), "--write", str(page)]) == 1
    assert "bench.table" in capsys.readouterr().err
    assert page.read_text() == "no markers\n"


@pytest.mark.parametrize("command", [table.main, plot.main])
def test_without_results_the_command_that_makes_them_is_named(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command([str(tmp_path / "none.json")]) == 1
    assert "python -m bench.goals" in capsys.readouterr().err


def test_plots_are_beside_their_results_and_name_the_relays(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert plot.main([kept(tmp_path, document())]) == 0
    for name in ("cost.svg", "delay.svg"):
        assert "<svg" in (tmp_path / name).read_text()


def test_a_row_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        goals(["pears"])
    assert ended.value.code == 2
    assert "pears: no such row; there are pairs-10" in capsys.readouterr().err


def test_a_resumed_run_skips_measured_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Return the one requested row, which is already measured."""
    stand_in(monkeypatch)
    value = document() | {
        "relays": {"derper": "1", "derper-1.98": "1", "floor": "1", "fastderp": "1"}
    }
    assert goals(["pairs-10", "--resume", "--output", kept(tmp_path, value)]) == 0
    assert "10.00" in capsys.readouterr().out

    value["relays"]["fastderp"] = "0"
    assert goals(["pairs-10", "--resume", "--output", kept(tmp_path, value)]) == 1
    assert "is about" in capsys.readouterr().err


def test_an_interrupted_run_keeps_its_finished_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from collections.abc import Iterator

    from bench import goals as module
    from bench.rows import Bench, Finding, Row

    def quick(bench: Bench) -> Iterator[Finding]:
        yield Finding("x", [1.0], ">=", 1.0)

    def interrupted(bench: Bench) -> Iterator[Finding]:
        raise KeyboardInterrupt
        yield

    stand_in(monkeypatch)
    monkeypatch.setattr(module, "ROWS", [Row(1, "a", "", quick), Row(2, "b", "", interrupted)])
    file = tmp_path / "goals.json"
    assert module.main(["--output", str(file)]) == 130
    assert "--resume" in capsys.readouterr().err
    assert list(json.loads(file.read_text())["rows"]) == ["a"]


def with_capacity(limit: str = "relay") -> dict[str, Any]:
    value = document()
    value["rows"]["capacity"] = value["rows"]["pairs-10"] | {
        "number": 15,
        "name": "capacity",
        "findings": [],
        "measurements": [],
        "capacities": [
            {
                "load": "pairs-10",
                "relay_name": name,
                "packets_per_s": [rate, 1.1 * rate, 1.2 * rate],
                "gbit_per_s": [rate / 1e5] * 3,
                "relay_cpu_share": [1.0] * 3,
                "load_cpu_share": [0.5] * 3,
                "limit": ["delay", limit, limit],
            }
            for name, rate in (("derper", 100_123.0), ("fastderp", 800_456.0))
        ],
    }
    return value


def test_the_short_table_has_the_rates_beside_the_ratio_of_costs(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench.summary -->\nold\n<!-- /bench.summary -->\nafter\n")
    file = kept(tmp_path, with_capacity())
    assert table.main([file, "--write", str(readme)]) == 0
    text = readme.read_text()
    assert "| 1,400 bytes | derper 1 | fastderp, OpenSSL 3 | cost, derper ÷ fastderp |" in text
    assert (
        "| plain, 10 pairs: packets/s | 110,000 (1.0 Gbit/s) | 881,000 (8.0 Gbit/s) "
        "| 10.00 (8.00–12.00) |" in text
    )
    assert "50 pairs" not in text and "old" not in text and "≥" not in text
    assert text.startswith("before\n") and text.endswith("after\n")


def test_a_rate_that_the_load_limits_has_a_sign_and_its_explanation() -> None:
    text = table.summary(with_capacity("load"))
    assert "| ≥ 881,000 (8.0 Gbit/s) |" in text
    assert "≥: the load's core was full first; the relay's was then 100% to 100% busy." in text


def test_the_table_of_rates_has_the_range_the_cores_and_the_limit() -> None:
    assert (
        "| plain, 10 pairs | fastderp, OpenSSL 3 | 880,502 (800,456–960,547) | 8.00 | 100% | 50% "
        "| the load's core |" in table.capacity(with_capacity("load"))
    )


def test_all_tables_of_a_document_are_written_together(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in (table.TABLE, table.CAPACITY))
    )
    assert table.main([kept(tmp_path, with_capacity()), "--write", str(page)]) == 0
    assert "| 1. | ten pairs |" in page.read_text()
    assert "| plain, 10 pairs | derper 1 |" in page.read_text()


@pytest.mark.parametrize("name", ["README.md", "docs/benchmarks.md"])
def test_the_documents_have_the_tables_of_the_kept_results(name: str) -> None:
    text = (ROOT / name).read_text()
    assert table.filled(text, json.loads(KEPT.read_text())) == text


def test_the_kept_command_repeats_the_measurements_and_names_no_files(tmp_path: Path) -> None:
    arguments = ["tls", "--output", str(tmp_path / "x.json"), "--resume", "--rounds", "3"]
    kept_command = ["python", "-m", "bench.goals", "tls", "--rounds", "3"]
    assert recorded_command(arguments) == kept_command
    assert recorded_command(["--derper", "/opt/derper"])[-1] == "derper"
