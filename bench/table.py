"""`python -m bench.table`: the results of bench.goals as Markdown, printed or in a document.

A document has a line `<!-- bench.table -->` and a line `<!-- /bench.table -->`; the text between
them is replaced. With --summary the short table goes between `<!-- bench.summary -->` and
`<!-- /bench.summary -->`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.goals import KEPT, Document, columns, noise

TABLE = "bench.table"
SUMMARY = "bench.summary"
# the rows of the short table: what a reader asks, the row of bench.goals, and its finding
QUESTIONS = (
    ("plain, 1,400 bytes, 10 pairs", "pairs-10", "CPU per packet: derper ÷ fastderp"),
    ("plain, 1,400 bytes, 50 pairs", "pairs-50", "CPU per packet: derper ÷ fastderp"),
    ("plain, 100 bytes, 10 pairs", "small", "CPU per packet: derper ÷ fastderp"),
    ("TLS 1.3, 1,400 bytes, 10 pairs", "tls", "pairs-10: CPU per packet: derper ÷ fastderp"),
    ("TLS 1.3, 1,400 bytes, 50 pairs", "tls", "pairs-50: CPU per packet: derper ÷ fastderp"),
    ("plain, one packet in flight", "latency", "plain: CPU per packet: derper ÷ fastderp"),
    ("TLS 1.3, one packet in flight", "latency", "TLS: CPU per packet: derper ÷ fastderp"),
    ("fan-in, 100 → 1", "fan", "fan-in: CPU per packet: derper ÷ fastderp"),
    ("fan-out, 1 → 100", "fan", "fan-out: CPU per packet: derper ÷ fastderp"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table or write it into a document; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=KEPT, help="JSON of bench.goals")
    parser.add_argument(
        "--write", type=Path, metavar="DOCUMENT", help="put it between the markers there"
    )
    parser.add_argument("--summary", action="store_true", help="the short table of the README")
    options = parser.parse_args(arguments)
    name = SUMMARY if options.summary else TABLE
    try:
        document = json.loads(options.results.read_text())
        text = summary(document) if options.summary else markdown(document)
        if options.write:
            options.write.write_text(replaced(options.write.read_text(), text, name))
        else:
            print(text, end="")
    except FileNotFoundError as error:
        return _fail(f"{error.filename}: not there; run python -m bench.goals first")
    except ValueError as error:
        return _fail(str(error))
    return 0


def markdown(document: Document) -> str:
    """Return the table, its environment, and the commands that repeat it."""
    lines = ["| | scenario | what | goal | stretch | measured | |", "|--:|---|---|---|---|---|---|"]
    for row in document["rows"].values():
        for i, finding in enumerate(row["findings"]):
            what, goal, stretch, median, spread, verdict = columns(finding)
            first = f"{row['number']}. | {row['title']}" if i == 0 else " | "
            measured = f"{median} ({spread})" if spread else median
            lines.append(f"| {first} | {what} | {goal} | {stretch} | {measured} | {verdict} |")
        if row["failed"]:
            lines.append(f"| {row['number']} | {row['title']} | could not be measured | | | | |")
    notes = [
        f"- Row {row['number']}: {note}."
        for row in document["rows"].values()
        for note in row["notes"]
    ]
    return "\n".join([*lines, "", _made_with(document), "", *notes, "", _again(document), ""])


def summary(document: Document) -> str:
    """Return how many times as much CPU derper uses per packet, for the measured questions."""
    lines = ["| load | CPU per packet, derper ÷ fastderp |", "|---|--:|"]
    for question, row, what in QUESTIONS:
        for finding in document["rows"].get(row, {}).get("findings", ()):
            if finding["what"] == what:
                _, _, _, median, spread, _ = columns(finding)
                lines.append(f"| {question} | {median} ({spread}) |")
    return "\n".join([*lines, "", _made_with(document), ""])


def _made_with(document: Document) -> str:
    found = document["environment"]
    relays = ", ".join(f"{name} {version}" for name, version in document["relays"].items())
    text = (
        f"Medians, and the range over the rounds: {relays}; {found['cpu']}, Linux "
        f"{found['kernel']}, Python {found['python']}, {found['suite']}, {found['when']}; "
        "one core for the relay, another for the load. "
        f"`{' '.join(found['command'])}`"
    )
    return f"{text} {noise(document)}".rstrip()


def _again(document: Document) -> str:
    commands = (f"{row['number']} `{row['command']}`" for row in document["rows"].values())
    return "One row again: " + ", ".join(commands) + "."


def replaced(document: str, text: str, name: str = TABLE) -> str:
    """Return the document with `text` between the markers of `name`; raise ValueError without."""
    opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before, begin, rest = document.partition(opening)
    _, end, after = rest.partition(closing)
    if not begin or not end:
        raise ValueError(f"the document has no lines {opening.strip()} and {closing.strip()}")
    return f"{before}{begin}{text}{end}{after}"


def _fail(text: str) -> int:
    print(f"bench.table: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
