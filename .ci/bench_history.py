"""The results of `python -m bench.regress`, one JSON object per line: as a table, and on a branch.

`table FILE` prints the newest result in Markdown. `keep FILE REMOTE` appends it to history.jsonl on
the branch `benchmarks` of a Git remote, whose README.md shows the results of the last commits.
Needs nothing but Python and Git.

A file may come from a contributor's fork: everything that is printed is checked.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BRANCH = "benchmarks"
HISTORY = "history.jsonl"
# What README.md of the branch shows: the newest first.
N_SHOWN = 50
MAX_BYTES = 1 << 20
COMMIT = re.compile(r"[0-9a-f]{40}")
DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
BENCH = re.compile(r"test_\w{1,80}(\[[\w.-]{1,40}\])?")
MACHINE = re.compile(r"[\w ().,@+-]{1,120}")


class HistoryError(Exception):
    """A result that cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Bench:
    """One bench beside the base: `ratio` is new to base, `allowed` the limit of the noise."""

    name: str
    cpu_ns: float
    ratio: float
    allowed: float
    verdict: str


@dataclass(frozen=True, slots=True)
class Result:
    """One run of bench.regress."""

    commit: str
    base: str
    date: str
    machine: str
    benches: list[Bench]

    @property
    def slower(self) -> list[Bench]:
        return [bench for bench in self.benches if bench.verdict == "slower"]


def parse(line: str) -> Result:
    """Return the result of a line; raise HistoryError unless every value has its form."""
    try:
        document = json.loads(line)
        return Result(
            _matching(COMMIT, document["commit"]),
            _matching(COMMIT, document["base"]),
            _matching(DATE, document["date"]),
            _matching(MACHINE, document["machine"]),
            [
                Bench(
                    _matching(BENCH, bench["name"]),
                    float(bench["cpu_ns"]),
                    float(bench["ratio"]),
                    float(bench["allowed"]),
                    _matching(re.compile("same|slower|noisy"), bench["verdict"]),
                )
                for bench in document["benches"]
            ],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise HistoryError(f"not a result of bench.regress: {error!r}") from error


def _matching(pattern: re.Pattern[str], value: str) -> str:
    if not pattern.fullmatch(value):
        raise ValueError(value)
    return value


def newest(path: Path) -> str:
    """Return the last line of a file of results."""
    if path.stat().st_size > MAX_BYTES:
        raise HistoryError(f"{path} is larger than {MAX_BYTES} bytes")
    lines = path.read_text().splitlines()
    if not lines:
        raise HistoryError(f"{path} has no result")
    return lines[-1]


def table(result: Result) -> str:
    """Return a result as a Markdown table, the greatest slowdown first."""
    slower = ", ".join(f"`{bench.name}`" for bench in result.slower)
    lines = [
        f"### Micro benches of {result.commit[:10]} beside {result.base[:10]}",
        "",
        f"Slower beyond the noise: {slower}." if slower else "No bench is slower beyond the noise.",
        "",
        "| bench | CPU time | × base | limit | |",
        "|---|--:|--:|--:|---|",
    ]
    words = {"same": "", "slower": "**slower**", "noisy": "too noisy to tell"}
    lines += [
        f"| `{bench.name}` | {_time(bench.cpu_ns)} | {bench.ratio:.2f} | {bench.allowed:.2f} "
        f"| {words[bench.verdict]} |"
        for bench in sorted(result.benches, key=lambda bench: -bench.ratio)
    ]
    command = f"`python -m bench.regress {result.base[:10]}`"
    return "\n".join([*lines, "", f"{result.machine}, {result.date}. {command}", ""])


def _time(nanoseconds: float) -> str:
    return f"{nanoseconds:.0f} ns" if nanoseconds < 10_000 else f"{nanoseconds / 1000:.0f} µs"


def overview(results: Sequence[Result]) -> str:
    """Return the README of the branch: a row per commit, then the newest result in full."""
    lines = [
        "# Micro benches of each commit of main beside the previous one",
        "",
        f"`{HISTORY}` has all results, one JSON object per line; this page has the last {N_SHOWN}.",
        "",
        "| commit | date | benches | slower beyond the noise |",
        "|---|---|--:|---|",
    ]
    shown = results[-N_SHOWN:]
    for result in reversed(shown):
        slower = ", ".join(f"`{bench.name}` {bench.ratio:.2f} ×" for bench in result.slower)
        lines.append(
            f"| {result.commit[:10]} | {result.date[:10]} | {len(result.benches)} | {slower} |"
        )
    return "\n".join([*lines, "", table(results[-1])])


def keep(line: str, remote: str) -> None:
    """Append a result to the history on the branch of the remote; make the branch if needed."""
    result = parse(line)
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        _git(tree, "init", "-q", "-b", BRANCH)
        if _git(tree, "ls-remote", "--heads", remote, BRANCH):
            _git(tree, "fetch", "-q", "--depth=1", remote, BRANCH)
            _git(tree, "reset", "-q", "--hard", "FETCH_HEAD")
        history = tree / HISTORY
        kept = history.read_text().splitlines() if history.exists() else []
        history.write_text("".join(f"{entry}\n" for entry in [*kept, line]))
        (tree / "README.md").write_text(overview([parse(entry) for entry in [*kept, line]]))
        _git(tree, "add", ".")
        author = ["-c", "user.name=benchmarks", "-c", "user.email=benchmarks@fastderp.invalid"]
        _git(tree, *author, "commit", "-q", "-m", f"{result.commit[:10]}: micro benches")
        _git(tree, "push", "-q", remote, BRANCH)


def _git(tree: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=tree, capture_output=True, text=True)
    if done.returncode:
        # The remote may contain a token: only the subcommand is named.
        raise HistoryError(f"git {arguments[0]} ended with {done.returncode}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or keep the newest result; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("table", "keep"):
        command = commands.add_parser(name)
        command.add_argument("file", type=Path)
        if name == "keep":
            command.add_argument("remote")
    options = parser.parse_args(arguments)
    try:
        line = newest(options.file)
        if options.command == "keep":
            keep(line, options.remote)
        else:
            print(table(parse(line)), end="")
    except (HistoryError, OSError) as error:
        print(f"bench_history: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
