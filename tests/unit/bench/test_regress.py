"""`bench.regress` distinguishes a slower build from a noisy machine."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from bench import regress
from bench.regress import Verdict, judge, markdown

ROOT = Path(regress.__file__).parents[1]


def slower(old: list[float], new: list[float]) -> bool:
    [verdict] = judge({"x": old}, {"x": new})
    return verdict.is_slower


def test_a_build_that_always_takes_longer_is_slower() -> None:
    assert slower([1.00, 1.01, 1.00], [1.20, 1.21, 1.20])


@pytest.mark.parametrize("disturbed", [[1.5, 1.0, 1.01], [1.01, 1.0, 9.0]])
def test_a_disturbed_repetition_does_not_count(disturbed: list[float]) -> None:
    assert not slower([1.00, 1.01, 1.00], disturbed)


def test_the_tolerance_grows_with_the_spread_of_the_repetitions() -> None:
    assert slower([1.0, 1.0, 1.0], [1.15, 1.15, 1.15])
    assert not slower([1.0, 1.1, 1.2], [1.15, 1.25, 1.3])


def test_two_builds_of_the_same_source_may_differ_a_little() -> None:
    assert not slower([1.0, 1.0], [1.05, 1.05])
    assert not slower([1.0, 1.0], [0.5, 0.5])


def test_a_bench_that_only_one_build_can_run_is_ignored() -> None:
    assert judge({"old": [1.0]}, {"new": [1.0]}) == []


def test_the_table_as_markdown_has_the_slowest_bench_first() -> None:
    text = markdown([Verdict("quick", 0.9, 0.0), Verdict("slow", 1.5, 0.01)], "main")
    assert text.splitlines() == [
        "| bench, beside main | CPU time | allowed | |",
        "|---|--:|--:|---|",
        "| slow | 1.50 × | 1.08 × | SLOWER |",
        "| quick | 0.90 × | 1.08 × |  |",
    ]


def test_the_command_of_the_workflow_is_one_that_the_bench_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    [line] = [
        line
        for line in (ROOT / ".github/workflows/benchmarks.yml").read_text().splitlines()
        if "bench.regress" in line
    ]
    arguments = line.partition("|")[0].replace('"$BASE"', "main").split()
    assert arguments[:3] == ["python", "-m", "bench.regress"]
    monkeypatch.setattr(regress, "_base_tree", lambda base: nullcontext(tmp_path))
    monkeypatch.setattr(regress, "_build", lambda tree: None)
    monkeypatch.setattr(regress, "_run", lambda tree, only, *, is_base: {"a bench": 1.0})
    assert regress.main(arguments[3:]) == 0
    assert "a bench" in (tmp_path / "regress.md").read_text()
