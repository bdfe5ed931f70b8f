"""`python -m bench.goals`: measure the relay's goals, row by row, and print the verdicts.

Without names it measures every row in about ten minutes and writes results/goals.json, which has
the numbers of the tables in the documents. `--resume` continues an interrupted run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.lab import QUIET, SUITE, Lab
from bench.relays import HERE, RelayError, derper, fastderp, floor, older_derper
from bench.rows import ROWS, Bench, Row
from bench.terminal import Console, Table
from fastderp.loadgen.result import environment

KEPT = HERE / "results" / "goals.json"
EX_INTERRUPTED = 130
# The results, their pages and the tables in documents: written while benches run, or from their results.
WITHOUT_EFFECT = (":(top,exclude)bench/results", ":(top,exclude)*.md")
ROW_NAMES = ", ".join(row.name for row in ROWS)
Document = dict[str, Any]
"""The stored results: `environment`, `relays` (versions), `crypto` (libraries), `rows` by name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure rows, print and write them; return 1 when a row could not be measured."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if unknown := set(options.row) - {row.name for row in ROWS}:
        parser.error(f"{', '.join(sorted(unknown))}: no such row; there are {ROW_NAMES}")
    rows = [row for row in ROWS if not options.row or row.name in options.row]
    output = options.output or (None if options.row else KEPT)
    try:
        bench = Bench(
            lab=Lab(options.relay_core, options.load_core, options.duration),
            rounds=options.rounds,
            derper=derper(options.derper, options.gomaxprocs),
            floor=floor(),
            # with the floor's library; `--crypto` adds others
            fastderp=replace(fastderp(crypto="system"), name="fastderp"),
            two_workers=fastderp(2),
            say=lambda text: print(text, file=sys.stderr, flush=True),
            variants=[fastderp(crypto=crypto) for crypto in options.crypto],
            older_derper=[older_derper(options.older_derper, options.gomaxprocs)],
        )
        document = _document(bench, arguments)
        if options.resume:
            document["rows"] = _done(output, document)
    except RelayError as error:
        print(f"bench.goals: {error}", file=sys.stderr)
        return 1
    try:
        for row in rows:
            if row.name not in document["rows"]:
                document["rows"][row.name] = _measured(bench, row)
                if output:
                    _keep(document, output)
    except KeyboardInterrupt:
        print(
            "bench.goals: interrupted; continue with the same command and --resume", file=sys.stderr
        )
        return EX_INTERRUPTED
    _print(document, output)
    return 1 if any(row["failed"] for row in document["rows"].values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.goals", description=__doc__)
    add = parser.add_argument
    add("row", nargs="*", metavar="ROW", help=f"only these: {ROW_NAMES}")
    add("--derper", metavar="PATH", help="derper's binary; built with Go when not given")
    add("--older-derper", metavar="PATH", help="that of 1.98.9; built with Go when not given")
    add("--gomaxprocs", type=int, metavar="N", help="for derper; by itself it takes its cores")
    add(
        "--crypto",
        nargs="+",
        default=[],
        metavar="LIBRARY",
        help="for rows about TLS, also fastderp with: system, bundled, or the path of a libssl",
    )
    add("--rounds", type=int, default=3, help="%(default)s")
    add("--duration", type=float, default=2.0, metavar="S", help="per measurement (%(default)s)")
    add("--relay-core", type=int, default=0, metavar="N", help="%(default)s")
    add("--load-core", type=int, default=1, metavar="N", help="%(default)s")
    add("--output", metavar="FILE", type=Path, help="JSON; without rows results/goals.json")
    add("--resume", action="store_true", help="leave out the rows that the output has already")
    return parser


def _document(bench: Bench, arguments: Sequence[str] | None) -> Document:
    relays = (bench.derper, *bench.older_derper, bench.floor, bench.fastderp, *bench.variants)
    return {
        "environment": environment(recorded_command(arguments))
        | {"suite": SUITE, "when": time.strftime("%Y-%m-%d"), "commit": commit()},
        "relays": {relay.name: relay.version for relay in relays},
        "crypto": {relay.name: relay.crypto for relay in relays if relay.crypto},
        "rows": {},
    }


def commit(tree: Path = HERE) -> str:
    """Return the commit of a checkout, and whether files that can change a result differ from it.

    What the benches write, and documents, cannot. Outside of a checkout, return "".
    """
    try:
        named = _git(tree, "rev-parse", "--short=12", "HEAD")
        differs = _git(tree, "diff", "--quiet", "HEAD", "--", ":/", *WITHOUT_EFFECT)
    except FileNotFoundError:  # no git
        return ""
    return named.stdout.strip() + ", changed" * (named.returncode == 0 and differs.returncode == 1)


def _git(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=tree, capture_output=True, text=True)


def recorded_command(arguments: Sequence[str] | None) -> list[str]:
    """Return the command that repeats the measurements, wherever it writes them."""
    words = [_public(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    if "--output" in words:
        at = words.index("--output")
        del words[at : at + 2]
    return ["python", "-m", "bench.goals", *(word for word in words if word != "--resume")]


def _public(word: str) -> str:
    """Return the last part of a path, as the rest is of this machine only."""
    return Path(word).name if word.startswith("/") else word


def _done(output: Path | None, document: Document) -> dict[str, Any]:
    """Return the rows of an earlier run of the same relays, without those that failed."""
    if output is None or not output.exists():
        return {}
    earlier: Document = json.loads(output.read_text())
    if earlier["relays"] != document["relays"]:
        raise RelayError(f"{output} is about {earlier['relays']}, not {document['relays']}")
    return {name: row for name, row in earlier["rows"].items() if not row["failed"]}


def _keep(document: Document, output: Path) -> None:
    """Write the results so far in the order of the rows, atomically."""
    rows = sorted(document["rows"].items(), key=lambda item: int(item[1]["number"]))
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh = output.with_suffix(".new")
    fresh.write_text(
        json.dumps(document | {"rows": dict(rows)}, indent=1, ensure_ascii=False) + "\n"
    )
    fresh.replace(output)


def _measured(bench: Bench, row: Row) -> dict[str, Any]:
    bench.say(f"{row.number} {row.name}: {row.title}")
    bench.measurements, bench.notes, bench.capacities, failed = [], [], [], ""
    findings: list[dict[str, Any]] = []
    try:
        findings.extend(asdict(finding) for finding in row.find(bench))
    except (RelayError, ZeroDivisionError) as error:
        failed = str(error) or "nothing was delivered"
        bench.say(f"  could not be measured: {failed}")
    return {
        "number": row.number,
        "name": row.name,
        "title": row.title,
        "command": f"python -m bench.goals {row.name}",
        "commit": commit(),
        "findings": findings,
        "notes": bench.notes,
        "capacities": bench.capacities,
        "failed": failed,
        "measurements": bench.measurements,
    }


def _print(document: Document, output: Path | None) -> None:
    table = Table("", "scenario", "what", "goal", "stretch", "median", "range", "", box=None)
    for row in document["rows"].values():
        for i, finding in enumerate(row["findings"]):
            first = (str(row["number"]), row["title"]) if i == 0 else ("", "")
            table.add_row(*first, *columns(finding))
        if row["failed"]:
            table.add_row(str(row["number"]), row["title"], row["failed"])
    console = Console()
    console.width = max(console.width, 170)
    console.print(table)
    for row in document["rows"].values():
        for note in row["notes"]:
            print(f"{row['number']}: {note}")
    if warning := noise(document):
        print(warning)
    if output:
        print(output)


def columns(finding: dict[str, Any]) -> tuple[str, str, str, str, str, str]:
    """Return subject, goal, stretch, median, range and verdict of a finding as text."""
    sense, unit, values = finding["sense"], finding["unit"], finding["values"]
    sign = {">=": "≥", "<=": "≤"}[sense]

    def goal(value: float | None) -> str:
        return "" if value is None else f"{sign} {_number(value)} {unit}".rstrip()

    median = statistics.median(values)
    spread = f"{_number(min(values))}–{_number(max(values))}" if len(values) > 1 else ""
    return (
        finding["what"],
        goal(finding["goal"]),
        goal(finding["stretch"]),
        f"{_number(median)} {unit}".rstrip(),
        spread,
        _verdict(finding, median),
    )


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def _verdict(finding: dict[str, Any], median: float) -> str:
    def reached(goal: float | None) -> bool:
        if goal is None:
            return False
        return median >= goal if finding["sense"] == ">=" else median <= goal

    if reached(finding["stretch"]):
        return "stretch"
    if finding["goal"] is None:
        return "stretch not reached" if finding["stretch"] is not None else ""
    return "reached" if reached(finding["goal"]) else "not reached"


def noise(document: Document) -> str:
    """Return a warning when the machine was busy, otherwise ""."""
    shares = [
        result["foreign_share"]
        for row in document["rows"].values()
        for result in row["measurements"]
        if row["number"] != 8  # several relays at once: each counts as foreign work for the others
    ]
    noisy = sum(share > QUIET for share in shares)
    if not noisy:
        return ""
    return (
        f"machine busy: during {noisy} of {len(shares)} measurements other work took more than "
        f"{QUIET:.0%} of the two cores (most: {max(shares):.0%}). Trust only the ratios."
    )


if __name__ == "__main__":
    sys.exit(main())
