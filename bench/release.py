"""`python -m bench.release`: keep the results of bench.goals as those of a release; write its page.

`bench/results/releases/VERSION.json` has every measurement, `docs/releases/VERSION.md` the page:
machine, commit, tables, and what got better or worse since the previous release. With --pages the
pages of all kept releases are written again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import table
from bench.capacity import DELAY_MS, LOSS
from bench.goals import KEPT, Document, columns, noise
from bench.lab import Measurement, cost
from bench.relays import HERE

RELEASES = KEPT.parent / "releases"
PAGES = HERE.parent / "docs" / "releases"
# A number that was measured once may differ by this share without being called a change.
LEAST_CHANGE = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep the results and write pages; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.release", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=KEPT, help="JSON of bench.goals")
    parser.add_argument("--pages", action="store_true", help="only write the pages again")
    options = parser.parse_args(arguments)
    if not options.pages:
        try:
            document = json.loads(options.results.read_text())
        except FileNotFoundError as error:
            print(
                f"bench.release: {error.filename}: not there; run python -m bench.goals first",
                file=sys.stderr,
            )
            return 1
        RELEASES.mkdir(parents=True, exist_ok=True)
        kept = RELEASES / f"{document['environment']['fastderp']}.json"
        shutil.copyfile(options.results, kept)
        print(kept)
    PAGES.mkdir(parents=True, exist_ok=True)
    for path, text in pages():
        path.write_text(text)
        print(path)
    return 0


def pages() -> Iterator[tuple[Path, str]]:
    """Yield the page of each kept release and its text, in the order of the releases."""
    previous: Document | None = None
    for path in sorted(RELEASES.glob("*.json"), key=_in_order):
        document: Document = json.loads(path.read_text())
        yield PAGES / f"{path.stem}.md", page(document, previous)
        previous = document


def _in_order(path: Path) -> list[tuple[int, str]]:
    """Return a key that puts 0.10.0 behind 0.9.0."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.stem.split(".")]


def page(document: Document, previous: Document | None) -> str:
    """Return a release's page, beside the results of the previous release if there are any."""
    version = document["environment"]["fastderp"]
    parts = [
        f"# Benchmarks of fastderp {version}",
        f"`python -m bench.release` writes this page from [{version}.json]"
        f"(../../bench/results/releases/{version}.json), which has every measurement. "
        "[Benchmarks](../benchmarks.md) describes the rows and the method.",
        _machine(document),
        noise(document).replace("machine", "Machine", 1),
        "## Since the previous release",
        _since(document, previous),
        "## Goals that are not reached",
        _not_reached(document),
        "## Packets per second of one core",
        "The highest rate by schedule at which 99 % of the packets arrive within "
        f"{DELAY_MS:.0f} ms and no more than {LOSS:.1%} are lost, as a median over the "
        "rounds. The cores' columns say how busy they were at that rate; the limit is what a "
        "higher rate met.",
        table.capacity(document),
        "## All rows",
        table.rows(document),
        table.notes(document),
        "## All loads",
        "Medians over the rounds.",
        _loads(document),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _machine(document: Document) -> str:
    found = document["environment"]
    commits = sorted({row["commit"] for row in document["rows"].values() if row["commit"]})
    lines = [
        ("machine", f"{found['cpu']}, {found['cores']} cores, Linux {found['kernel']}"),
        ("Python", found["python"]),
        ("commit", "; ".join(commits) or "not recorded"),
        ("relays", table.versions(document)),
        ("TLS suite", found["suite"]),
        ("date", found["when"]),
        ("command", f"`{' '.join(found['command'])}`"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in lines)])


def _since(document: Document, previous: Document | None) -> str:
    if previous is None:
        return "There is no earlier release with results to compare with."
    found = list(changes(document, previous))
    environment, before = document["environment"], previous["environment"]
    lines = [f"Beside {before['fastderp']}, of {before['when']}."]
    if (environment["cpu"], environment["kernel"]) != (before["cpu"], before["kernel"]):
        lines[0] += (
            f" That was measured on another machine ({before['cpu']}, Linux {before['kernel']}): "
            "only ratios can be compared."
        )
    for is_worse, name in ((True, "worse"), (False, "better")):
        some = [text for text, its in found if its == is_worse]
        numbers = "1 number" if len(some) == 1 else f"{len(some)} numbers"
        lines += ["", f"**{numbers} got {name}**" + (":" if some else "."), ""]
        lines += some
    lines += ["", "Other numbers differ by less than their rounds do."]
    return "\n".join(lines)


def changes(document: Document, previous: Document) -> Iterator[tuple[str, bool]]:
    """Yield each number whose rounds are all above, or all below, the earlier ones.

    With it: whether it got worse.
    """
    for name, row in document["rows"].items():
        earlier = previous["rows"].get(name, {"findings": ()})
        values = {finding["what"]: finding for finding in earlier["findings"]}
        for finding in row["findings"]:
            if finding["what"] not in values:
                continue
            now, before = finding["values"], values[finding["what"]]["values"]
            is_more = _range(now)[0] > _range(before)[1]
            if not is_more and _range(now)[1] >= _range(before)[0]:
                continue
            _, _, _, middle, _, _ = columns(finding)
            _, _, _, was, _, _ = columns(values[finding["what"]])
            text = f"- row {row['number']}, {finding['what']}: {middle}, before {was}"
            yield text, is_more == (finding["sense"] == "<=")


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the smallest and largest value; around a single one what may be chance."""
    if len(values) == 1:
        chance = LEAST_CHANGE * abs(values[0])
        return values[0] - chance, values[0] + chance
    return min(values), max(values)


def _not_reached(document: Document) -> str:
    lines = ["| row | what | goal | measured |", "|--:|---|---|---|"]
    for row in document["rows"].values():
        for finding in row["findings"]:
            what, goal, _, middle, spread, verdict = columns(finding)
            if verdict == "not reached":
                measured = f"{middle} ({spread})" if spread else middle
                lines.append(f"| {row['number']} | {what} | {goal} | {measured} |")
    return "\n".join(lines) if len(lines) > 2 else "All goals are reached."


def _loads(document: Document) -> str:
    """Return one line for each load of each row and relay."""
    lines = [
        "| row | load | relay | runs | CPU µs/packet | packets/s | p50 µs | p99 µs | loss |",
        "|--:|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in document["rows"].values():
        groups: dict[tuple[str, str], list[Measurement]] = {}
        for result in row["measurements"]:
            load = " ".join([result["load"], *result["flags"]])
            groups.setdefault((load, result["relay_name"]), []).append(result)
        for (load, relay), results in groups.items():
            lines.append(
                f"| {row['number']} | {load} | {relay} | {len(results)} "
                f"| {median(map(cost, results)):.2f} "
                f"| {_median(results, 'packets_per_s'):,.0f} "
                f"| {_median([r['latency'] for r in results], 'p50_us'):,.0f} "
                f"| {_median([r['latency'] for r in results], 'p99_us'):,.0f} "
                f"| {_median(results, 'loss'):.2%} |"
            )
    return "\n".join(lines)


def _median(results: Sequence[dict[str, Any]], name: str) -> float:
    return median(float(result[name]) for result in results)


if __name__ == "__main__":
    sys.exit(main())
