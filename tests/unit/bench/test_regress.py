"""`bench.regress` distinguishes a slower build from a noisy machine."""

import json
import random
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

from bench import regress
from bench.regress import Verdict, judge

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


def test_further_repetitions_narrow_the_limit() -> None:
    [few] = judge({"x": [1.0, 1.2, 1.4]}, {"x": [1.3, 1.3, 1.5]})
    [many] = judge({"x": [1.0, 1.2, 1.4, 1.01, 1.3, 1.02]}, {"x": [1.3] * 6})
    assert not few.is_slower and many.is_slower


class Machine:
    """Stands in for the two builds and pytest; its medians are disturbed, `runs` notes the runs."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, costs: dict[str, tuple[float, float]]
    ) -> None:
        """`costs` has the CPU time of each bench in the base and in this tree."""
        self.runs: list[list[str]] = []
        self.costs = costs
        self.disturbance = 0.0
        self.base = tmp_path
        self.history = tmp_path / "regress.jsonl"
        self._random = random.Random(1)
        monkeypatch.setattr(regress, "_commit", lambda name: "a" * 40)
        monkeypatch.setattr(regress, "_base_tree", lambda base: nullcontext(tmp_path))
        monkeypatch.setattr(regress, "_build", lambda tree: None)
        monkeypatch.setattr(regress, "_run", self._run)

    def _run(self, tree: Path, selection: Sequence[str], *, is_base: bool) -> dict[str, float]:
        assert is_base == (tree == self.base)
        self.runs.append(list(selection))
        chosen = [bench for bench in self.costs if bench in selection] or list(self.costs)
        return {bench: self.costs[bench][not is_base] * (1 + self._disturbed()) for bench in chosen}

    def _disturbed(self) -> float:
        return self._random.expovariate(1 / self.disturbance) if self.disturbance else 0.0

    def compare(self) -> int:
        """Run bench.regress."""
        return regress.main(["main", "--history", str(self.history)])

    def slower(self) -> set[str]:
        """Return the benches that the last comparison calls slower."""
        last = json.loads(self.history.read_text().splitlines()[-1])
        return {bench["name"] for bench in last["benches"] if bench["verdict"] == "slower"}


def ids(n: int) -> list[str]:
    return [f"bench/micro/test_x.py::test_{number}" for number in range(n)]


@pytest.mark.parametrize("disturbance", [0.0, 0.1, 0.3])
def test_on_a_noisy_machine_a_slowdown_of_a_half_is_found_and_equal_builds_are_not_slower(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, disturbance: float
) -> None:
    benches = ids(100)
    machine = Machine(monkeypatch, tmp_path, dict.fromkeys(benches, (1.0, 1.0)))
    machine.disturbance = disturbance
    assert machine.compare() == 0
    for bench in benches[:20]:
        machine.costs[bench] = (1.0, 1.5)
    assert machine.compare() == 1
    assert machine.slower() == {f"test_{number}" for number in range(20)}


def test_only_benches_without_a_clear_verdict_run_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    same, slow = ids(2)
    machine = Machine(monkeypatch, tmp_path, {same: (1.0, 1.0), slow: (1.0, 1.5)})
    assert machine.compare() == 1
    assert machine.runs == [[]] * 10 + [[slow]] * 10
    machine.runs.clear()
    machine.costs[slow] = (1.0, 1.0)
    assert machine.compare() == 0
    assert machine.runs == [[]] * 10


def test_a_base_in_which_no_bench_runs_has_no_verdicts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report = tmp_path / "bench" / "build" / "micro.json"
    report.parent.mkdir(parents=True)
    report.write_text('{"benchmarks": [{"fullname": "of an earlier run"}]}')
    monkeypatch.setattr(regress, "_done", lambda *_, **__: "")
    assert regress._run(tmp_path, [], is_base=True) == {}


def test_the_table_has_the_parameters_of_a_bench(capsys: pytest.CaptureFixture[str]) -> None:
    regress._print([Verdict("test_x.py::test_a[no-limit]", 1e-6, 1.0, 0.0)], "v1[x]")
    shown = capsys.readouterr().out
    assert "test_a[no-limit]" in shown and "v1[x]" in shown


def test_the_command_of_ci_compares_and_keeps_the_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    [command] = [line.split() for line in lines if "-m bench.regress" in line]
    assert command == ["python", "-m", "bench.regress", '"$base"']
    machine = Machine(monkeypatch, tmp_path, {"bench/micro/test_x.py::test_a": (1.0, 1.0)})
    assert machine.compare() == 0
    assert json.loads(machine.history.read_text())["benches"][0]["name"] == "test_a"
