"""The results of `bench.regress` become a table and a history on a branch."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.regress import Verdict, _keep

ROOT = Path(__file__).parents[3]
HISTORY = runpy.run_path(str(ROOT / ".ci" / "bench_history.py"))
ERROR = HISTORY["HistoryError"]


def result(number: int = 1, **changes: Any) -> dict[str, Any]:
    bench = {
        "name": "test_seal[1400-aes128]",
        "cpu_ns": 812.5,
        "ratio": 1.31,
        "allowed": 1.08,
        "verdict": "slower",
    }
    return {
        "commit": f"{number}" * 40,
        "base": f"{number - 1}" * 40,
        "date": "2026-11-29T10:00:00Z",
        "machine": "Intel(R) Xeon(R) CPU @ 2.80GHz, Python 3.13.1",
        "benches": [bench | changes],
    }


def git(*arguments: str, at: Path) -> str:
    done = subprocess.run(["git", *arguments], cwd=at, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_table_names_what_is_slower() -> None:
    table = HISTORY["table"](HISTORY["parse"](json.dumps(result())))
    assert "Slower beyond the noise: `test_seal[1400-aes128]`." in table
    assert "| `test_seal[1400-aes128]` | 812 ns | 1.31 | 1.08 | **slower** |" in table
    assert "`python -m bench.regress 0000000000`" in table


@pytest.mark.parametrize(
    "forged",
    [
        {"name": "test_x` [click](https://evil.example)"},
        {"name": "test_x\n| a"},
        {"verdict": "@everyone"},
        {"ratio": "<img>"},
        {"cpu_ns": None},
    ],
)
def test_a_forged_result_is_refused(forged: dict[str, Any]) -> None:
    with pytest.raises(ERROR):
        HISTORY["parse"](json.dumps(result(**forged)))


@pytest.mark.parametrize("line", ["", "[]", "{}", "null", "not JSON", '{"benches": 1}'])
def test_what_is_no_result_is_refused(line: str) -> None:
    with pytest.raises(ERROR):
        HISTORY["parse"](line)


def test_the_name_of_each_micro_bench_is_accepted() -> None:
    collected = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "bench/micro",
            "--collect-only",
            "-q",
            "-p",
            "no:cacheprovider",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        # The options of this run are not for that one.
        env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
    )
    names = [line.partition("::")[2] for line in collected.stdout.splitlines() if "::" in line]
    assert len(set(names)) == len(names) > 50
    assert [name for name in names if not HISTORY["BENCH"].fullmatch(name)] == []


def test_results_are_kept_on_a_branch_of_the_remote(tmp_path: Path) -> None:
    git("init", "-q", "--bare", "remote", at=tmp_path)
    remote = tmp_path / "remote"
    for number in (1, 2):
        file = tmp_path / "regress.jsonl"
        file.write_text(json.dumps(result(number)) + "\n")
        assert HISTORY["main"](["keep", str(file), str(remote)]) == 0
    kept = git("show", "benchmarks:history.jsonl", at=remote).splitlines()
    assert [json.loads(line)["commit"] for line in kept] == [f"{n}" * 40 for n in (1, 2)]
    assert git("rev-list", "--count", "benchmarks", at=remote) == "2\n"
    shown = git("show", "benchmarks:README.md", at=remote)
    assert shown.index("| 2222222222 ") < shown.index("| 1111111111 ")


def test_an_error_of_git_does_not_show_the_remote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "regress.jsonl"
    file.write_text(json.dumps(result()) + "\n")
    assert HISTORY["main"](["keep", str(file), "file:///nowhere/token@here"]) == 1
    said = capsys.readouterr()
    assert "ended with" in said.err and "token" not in said.err


def test_a_run_adds_a_line_that_the_table_reads(tmp_path: Path) -> None:
    kept = tmp_path / "build" / "regress.jsonl"
    names = ["test_a", "test_b[1-2]"]
    for ratio in (1.0, 1.5):
        _keep([Verdict(name, 1e-6, ratio, 0.01) for name in names], "a" * 40, "b" * 40, kept)
    first, second = (HISTORY["parse"](line) for line in kept.read_text().splitlines())
    assert [bench.name for bench in first.benches] == names
    assert not first.slower and second.slower == second.benches
    assert HISTORY["newest"](kept) == kept.read_text().splitlines()[1]
