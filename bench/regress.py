"""`python -m bench.regress [BASE]`: fail when a micro bench is slower beyond the noise.

The base commit is built beside this tree, with this tree's benches, and both run alternately on one
core. For each bench and build there is one median of CPU time per repetition; the smallest median is
the undisturbed cost of the code. The distance of the other medians from it is the noise. Benches
that look slower, or whose noise would hide that, run again.

Each run adds its result, one line of JSON, to `--history`; `.ci/bench_history.py table` shows the
newest as Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.terminal import Console, Table
from fastderp.loadgen.result import environment

ROOT = Path(__file__).parents[1]
MICRO = Path("bench") / "micro"
TESTS_FAILED = 1  # pytest's exit code
# Two builds of the same source differ by a few percent, because addresses of code differ.
LEAST_ALLOWED = 0.08
# A bench may be slower by this multiple of the noise of its repetitions.
NOISE_FACTOR = 2.0
KEPT = ROOT / "bench" / "build" / "regress.jsonl"
# Above this noise a bench gives no verdict: its limit is beyond a slowdown of 1.4.
TOO_NOISY = 0.2
# How often the repetitions of benches without a clear verdict are run again at most.
EXTRA_ROUNDS = 3

Medians = dict[str, list[float]]
"""CPU seconds by bench (pytest's node ID), one per repetition."""


class RegressError(Exception):
    """A build or a run failed; the text has its name and its end."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One bench in both builds. `ratio` is new to base; `allowed` is the limit of the noise.

    `is_apart`: every repetition of the new build took longer than every one of the base.
    """

    bench: str
    cpu_s: float
    ratio: float
    noise: float
    is_apart: bool = False

    @property
    def name(self) -> str:
        """The bench without its file."""
        return self.bench.rpartition("::")[2]

    @property
    def allowed(self) -> float:
        return 1 + max(LEAST_ALLOWED, NOISE_FACTOR * self.noise)

    @property
    def is_slower(self) -> bool:
        return self.ratio > self.allowed

    @property
    def is_too_noisy(self) -> bool:
        return self.noise > TOO_NOISY

    @property
    def is_clear(self) -> bool:
        """Whether it is the same for sure, so that it need not run again."""
        return self.ratio <= 1 + LEAST_ALLOWED and not self.is_too_noisy

    @property
    def word(self) -> str:
        if self.is_slower:
            return "slower"
        return "noisy" if self.is_too_noisy else "same"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; return 1 when a bench is slower, 2 when builds or benches failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.regress", description=__doc__)
    parser.add_argument(
        "base", nargs="?", default="HEAD~1", help="commit to compare with (%(default)s)"
    )
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="%(default)s")
    parser.add_argument(
        "-k", dest="only", default="", metavar="EXPRESSION", help="only these benches"
    )
    parser.add_argument(
        "--history", type=Path, default=KEPT, metavar="FILE", help="add the result (%(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        commit, base_commit = _commit("HEAD"), _commit(options.base)
        with _base_tree(base_commit) as base:
            _build(ROOT)
            verdicts = _compare(base, options.repetitions, options.only)
    except RegressError as error:
        print(f"bench.regress: {error}", file=sys.stderr)
        return 2
    _print(verdicts, options.base)
    _keep(verdicts, commit, base_commit, options.history)
    return 1 if any(verdict.is_slower for verdict in verdicts) else 0


def _compare(base: Path, repetitions: int, only: str) -> list[Verdict]:
    """Run both builds alternately; repeat the benches without a clear verdict."""
    old: Medians = {}
    new: Medians = {}
    _repeat(base, old, new, repetitions, ["-k", only] if only else [])
    if left_out := new.keys() - old.keys():
        print(f"the base cannot run: {', '.join(sorted(left_out))}", file=sys.stderr)
    for number in range(EXTRA_ROUNDS):
        unclear = [each for each in judge(old, new) if not each.is_clear]
        if number:  # twice the repetitions that never overlap are sure
            unclear = [each for each in unclear if not (each.is_slower and each.is_apart)]
        if not unclear:
            break
        print(f"again, to be sure: {', '.join(each.name for each in unclear)}", file=sys.stderr)
        _repeat(base, old, new, repetitions, [each.bench for each in unclear])
    return judge(old, new)


def _repeat(
    base: Path, old: Medians, new: Medians, repetitions: int, selection: Sequence[str]
) -> None:
    for number in range(repetitions):
        print(f"repetition {number + 1}/{repetitions}", file=sys.stderr)
        turns = [(base, old), (ROOT, new)]
        for tree, medians in turns if number % 2 else reversed(turns):
            for bench, median in _run(tree, selection, is_base=tree == base).items():
                medians.setdefault(bench, []).append(median)


def judge(old: Medians, new: Medians) -> list[Verdict]:
    """Judge every bench that both builds could run."""
    return [
        Verdict(
            bench,
            min(new[bench]),
            min(new[bench]) / min(old[bench]),
            max(_noise(old[bench]), _noise(new[bench])),
            min(new[bench]) > max(old[bench]),
        )
        for bench in new
        if bench in old
    ]


def _noise(medians: Sequence[float]) -> float:
    """Return the distance of an undisturbed repetition from the best one, as a share of it.

    Of up to five repetitions that is the median; of more, the third, so that further ones help.
    """
    best, *others = sorted(medians)
    return statistics.median([best, *others[:4]]) / best - 1


@contextmanager
def _base_tree(commit: str) -> Iterator[Path]:
    """Check the commit out and build it, with this tree's micro benches."""
    with tempfile.TemporaryDirectory(prefix="regress-") as directory:
        tree = Path(directory) / "base"
        _done(["git", "worktree", "add", "--detach", str(tree), commit], ROOT)
        try:
            _bring_benches(tree / MICRO)
            _build(tree)
            yield tree
        finally:
            _done(["git", "worktree", "remove", "--force", str(tree)], ROOT)


def _bring_benches(into: Path) -> None:
    """Copy this tree's benches, except modules that call C functions, which stay the base's."""
    into.mkdir(parents=True, exist_ok=True)
    for source in (ROOT / MICRO).glob("*.py*"):
        if source.suffix != ".pyx" or not (into / source.name).exists():
            shutil.copy(source, into)


def _build(tree: Path) -> None:
    print(f"building {'this tree' if tree == ROOT else 'the base'} …", file=sys.stderr)
    _done([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], tree)


def _run(tree: Path, selection: Sequence[str], *, is_base: bool) -> dict[str, float]:
    """Run the micro benches of a tree once; return the median CPU seconds of each.

    selection: node IDs, or options of pytest that choose; all benches if empty. The base may fail
    benches of functions and modules that it does not have.
    """
    report = tree / "bench" / "build" / "micro.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    # The tree is the working directory, so its fastderp precedes an installed one.
    _done(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--continue-on-collection-errors",
            f"--benchmark-json={report}",
            *([] if any("::" in word for word in selection) else [str(MICRO)]),
            *selection,
        ],
        tree,
        {"BENCH_TREE": str(tree)},
        good=(0, TESTS_FAILED) if is_base else (0,),
    )
    # Without a bench that passed there is no report, or an empty one.
    text = report.read_text() if report.exists() else ""
    found = json.loads(text)["benchmarks"] if text else []
    return {bench["fullname"]: bench["stats"]["median"] for bench in found}


def _done(
    command: Sequence[str],
    directory: Path,
    environment: dict[str, str] | None = None,
    good: Collection[int] = (0,),
) -> str:
    """Run a command; return its output, or raise RegressError with its end."""
    done = subprocess.run(
        command,
        cwd=directory,
        env=os.environ | (environment or {}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode not in good:
        end = "\n".join(done.stdout.splitlines()[-15:])
        raise RegressError(f"{' '.join(command)} ended with {done.returncode}\n{end}")
    return done.stdout


def _print(verdicts: Sequence[Verdict], base: str) -> None:
    words = {"slower": "SLOWER", "noisy": "too noisy to tell", "same": ""}
    table = Table("bench", "CPU time", "allowed", "", title=f"beside {base}", box=None)
    for verdict in sorted(verdicts, key=lambda verdict: -verdict.ratio):
        table.add_row(
            verdict.name,
            f"{verdict.ratio:.2f} ×",
            f"{verdict.allowed:.2f} ×",
            words[verdict.word],
        )
    Console(width=max(Console().width, 120)).print(table)


def _keep(verdicts: Sequence[Verdict], commit: str, base: str, history: Path) -> None:
    """Add the result to the history."""
    here = environment(sys.argv)
    result = {
        "commit": commit,
        "base": base,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{here['cpu']}, Python {here['python']}",
        "benches": [
            {
                "name": verdict.name,
                "cpu_ns": round(verdict.cpu_s * 1e9, 1),
                "ratio": round(verdict.ratio, 4),
                "allowed": round(verdict.allowed, 4),
                "verdict": verdict.word,
            }
            for verdict in verdicts
        ],
    }
    history.parent.mkdir(parents=True, exist_ok=True)
    with history.open("a") as file:
        file.write(json.dumps(result) + "\n")


def _commit(name: str) -> str:
    return _done(["git", "rev-parse", f"{name}^{{commit}}"], ROOT).strip()


if __name__ == "__main__":
    sys.exit(main())
