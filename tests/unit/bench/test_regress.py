"""`bench.regress` distinguishes a slower build from a noisy machine."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from bench import regress
from bench.regress import judge

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


def test_the_command_of_ci_compares_and_keeps_the_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    [command] = [line.split() for line in lines if "-m bench.regress" in line]
    assert command == ["python", "-m", "bench.regress", '"$base"']
    kept = tmp_path / "regress.jsonl"
    monkeypatch.setattr(regress, "_commit", lambda name: "a" * 40)
    monkeypatch.setattr(regress, "_base_tree", lambda base: nullcontext(tmp_path))
    monkeypatch.setattr(regress, "_build", lambda tree: None)
    monkeypatch.setattr(regress, "_run", lambda tree, only, *, is_base: {"test_a": 1.0})
    assert regress.main(["main", "--history", str(kept)]) == 0
    assert json.loads(kept.read_text())["benches"][0]["name"] == "test_a"
