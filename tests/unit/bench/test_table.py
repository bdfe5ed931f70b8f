"""The output of `bench.goals`: the table in a document, the plots."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import plot, table
from bench.goals import main as goals


def document(foreign_share: float = 0.0) -> dict[str, Any]:
    measurements = [
        {
            "load": "pairs-10",
            "flags": [],
            "relay_name": name,
            "foreign_share": foreign_share,
            "latency": {"p50_us": 10.0, "p99_us": 50.0},
            "relay": {"cpu_us_per_packet": cost},
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
            "cpu": "A CPU",
            "kernel": "6.1",
            "python": "3.13",
            "suite": "TLS_X",
            "when": "2026-01-01",
            "command": ["python", "-m", "bench.goals"],
        },
        "relays": {"derper": "1", "fastderp": "2"},
        "rows": {
            "pairs-10": {
                "number": 1,
                "name": "pairs-10",
                "title": "ten pairs",
                "failed": "",
                "command": "python -m bench.goals pairs-10",
                "findings": [finding],
                "notes": ["a note"],
                "measurements": measurements,
            }
        },
    }


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
    from bench import goals as module
    from bench.relays import Relay

    for name in ("derper", "floor", "fastderp"):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: Relay(name, "1", []))
    value = document() | {"relays": {"derper": "1", "floor": "1", "fastderp": "1"}}
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
    from bench.relays import Relay
    from bench.rows import Bench, Finding, Row

    def quick(bench: Bench) -> Iterator[Finding]:
        yield Finding("x", [1.0], ">=", 1.0)

    def interrupted(bench: Bench) -> Iterator[Finding]:
        raise KeyboardInterrupt
        yield

    for name in ("derper", "floor", "fastderp"):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: Relay(name, "1", []))
    monkeypatch.setattr(module, "ROWS", [Row(1, "a", "", quick), Row(2, "b", "", interrupted)])
    file = tmp_path / "goals.json"
    assert module.main(["--output", str(file)]) == 130
    assert "--resume" in capsys.readouterr().err
    assert list(json.loads(file.read_text())["rows"]) == ["a"]


def test_the_short_table_answers_what_was_measured(tmp_path: Path) -> None:
    value = document()
    finding = value["rows"]["pairs-10"]["findings"][0]
    finding["what"] = "CPU per packet: derper ÷ fastderp"
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench.summary -->\nold\n<!-- /bench.summary -->\nafter\n")
    assert table.main([kept(tmp_path, value), "--summary", "--write", str(readme)]) == 0
    text = readme.read_text()
    assert "| plain, 1,400 bytes, 10 pairs | 10.00 (8.00–12.00) |" in text
    assert "50 pairs" not in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("after\n")
