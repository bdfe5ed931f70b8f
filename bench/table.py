"""`python -m bench.table`: the results of bench.goals as Markdown, printed or in documents.

A document has lines such as `<!-- bench.table -->` and `<!-- /bench.table -->`; the text between
them is replaced. There are three tables: `bench.table` has every row beside its goals,
`bench.capacity` the packets per second of one core, and `bench.summary` ten questions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.capacity import DELAY_MS, LOSS
from bench.goals import KEPT, Document, columns, noise
from bench.lab import TLS, Measurement, cost, cost_per_login
from bench.rows import idle_kib

TABLE = "bench.table"
CAPACITY = "bench.capacity"
SUMMARY = "bench.summary"
# the columns of the short table
RELAYS = ("derper", "derper-1.98", "fastderp", "fastderp-bundled")
LIMITS = {
    "relay": "the relay's core",
    "load": "the load's core",
    "delay": "delay or loss before a core was full",
    "not found": "not found",
}


@dataclass(frozen=True, slots=True)
class Question:
    """A row of the short table: the loads and the value of a row of bench.goals.

    With `is_rate` the relays' columns have their packets per second of one core, and only the last
    column has the value.
    """

    text: str
    row: str
    load: str
    value: Callable[[Measurement], float] = cost
    is_rate: bool = False


QUESTIONS = (
    Question("plain, 10 pairs: packets/s", "pairs-10", "pairs-10", is_rate=True),
    Question("plain, 50 pairs: packets/s", "pairs-50", "pairs-50", is_rate=True),
    Question("TLS 1.3, 10 pairs: packets/s", "tls", "tls/pairs-10", is_rate=True),
    Question("TLS 1.3, 50 pairs: packets/s", "tls", "tls/pairs-50", is_rate=True),
    Question("plain, one packet in flight: CPU µs per packet", "latency", "latency"),
    Question("TLS 1.3, one packet in flight: CPU µs per packet", "latency", "tls/latency"),
    Question("plain, 100 senders, one receiver: CPU µs per packet", "fan", "fan-in"),
    Question("login over TLS 1.3, one at a time: CPU µs", "login", "tls/login", cost_per_login),
    Question("login over TLS 1.3, 64 at a time: CPU µs", "logins", "tls/logins", cost_per_login),
    Question("idle client over TLS 1.3: KiB", "memory", "tls/memory-5000", idle_kib),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table or write it into documents; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=KEPT, help="JSON of bench.goals")
    parser.add_argument(
        "--write",
        type=Path,
        nargs="+",
        default=[],
        metavar="DOCUMENT",
        help="put every table between its markers there",
    )
    parser.add_argument("--summary", action="store_true", help="print the ten questions")
    options = parser.parse_args(arguments)
    try:
        document = json.loads(options.results.read_text())
        for path in options.write:
            path.write_text(filled(path.read_text(), document))
        if not options.write:
            print(summary(document) if options.summary else markdown(document), end="")
    except FileNotFoundError as error:
        return _fail(f"{error.filename}: not there; run python -m bench.goals first")
    except ValueError as error:
        return _fail(str(error))
    return 0


def filled(text: str, document: Document) -> str:
    """Return a document with the tables between its markers. Raises ValueError without markers."""
    tables = {TABLE: markdown, CAPACITY: capacity, SUMMARY: summary}
    found = [name for name in tables if f"<!-- {name} -->" in text]
    if not found:
        raise ValueError(f"the document has no line <!-- {' --> or <!-- '.join(tables)} -->")
    for name in found:
        text = replaced(text, tables[name](document), name)
    return text


def markdown(document: Document) -> str:
    """Return the rows beside their goals, the environment, and the commands that repeat them."""
    parts = [rows(document), made_with(document) + "\n", notes(document), _again(document) + "\n"]
    return "\n".join(part for part in parts if part)


def rows(document: Document) -> str:
    """Return the table of all rows and findings."""
    lines = ["| | scenario | what | goal | stretch | measured | |", "|--:|---|---|--:|--:|--:|---|"]
    for row in document["rows"].values():
        for i, finding in enumerate(row["findings"]):
            what, goal, stretch, middle, spread, verdict = columns(finding)
            first = f"{row['number']}. | {row['title']}" if i == 0 else " | "
            measured = f"{middle} ({spread})" if spread else middle
            lines.append(f"| {first} | {what} | {goal} | {stretch} | {measured} | {verdict} |")
        if row["failed"]:
            lines.append(f"| {row['number']} | {row['title']} | could not be measured | | | | |")
    return "\n".join([*lines, ""])


def notes(document: Document) -> str:
    """Return the notes of the rows as a list."""
    return "".join(
        f"- Row {row['number']}: {note}.\n"
        for row in document["rows"].values()
        for note in row["notes"]
    )


def capacity(document: Document) -> str:
    """Return the packets per second of one core, by load and relay, and what limited them."""
    lines = [
        "| load | relay | packets/s | Gbit/s | relay's core | load's core | limit |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for found in _capacities(document):
        rates = found["packets_per_s"]
        spread = f" ({min(rates):,.0f}–{max(rates):,.0f})" if len(rates) > 1 else ""
        name = _relay_name(document, found["relay_name"])
        lines.append(
            f"| {_load_name(found['load'])} | {name} | {median(rates):,.0f}{spread} "
            f"| {median(found['gbit_per_s']):.2f} | {median(found['relay_cpu_share']):.0%} "
            f"| {median(found['load_cpu_share']):.0%} | {LIMITS[_limit(found)]} |"
        )
    return "\n".join([*lines, ""])


def summary(document: Document) -> str:
    """Return the ten questions, as far as they were measured."""
    relays = [name for name in RELAYS if name in document["relays"]]
    names = [_relay_name(document, name) for name in relays]
    lines = [
        f"| 1,400 bytes | {' | '.join(names)} | cost, derper ÷ fastderp |",
        f"|---|{'--:|' * (len(names) + 1)}",
    ]
    for question in QUESTIONS:
        values = {name: _values(document, question, name) for name in relays}
        if not values["derper"] or not values["fastderp"]:
            continue
        if question.is_rate:
            cells = [_rate(document, question.load, name) for name in relays]
        else:
            cells = [_quantity(median(each)) if (each := values[name]) else "–" for name in relays]
        ratios = [a / b for a, b in zip(values["derper"], values["fastderp"], strict=True)]
        spread = f" ({min(ratios):.2f}–{max(ratios):.2f})" if len(ratios) > 1 else ""
        lines.append(f"| {question.text} | {' | '.join(cells)} | {median(ratios):.2f}{spread} |")
    return "\n".join([*lines, "", _legend(document), "", made_with(document), ""])


def _legend(document: Document) -> str:
    text = (
        f"Packets/s and Gbit/s of one core: the highest rate at which 99 % of the packets arrive "
        f"within {DELAY_MS:.0f} ms and no more than {LOSS:.1%} are lost. The cost is CPU time per "
        "packet or login, or memory."
    )
    busy = [
        median(found["relay_cpu_share"])
        for found in _capacities(document)
        if _limit(found) == "load"
    ]
    if busy:
        text += (
            f" ≥: the load's core was full first; the relay's was then {min(busy):.0%} to "
            f"{max(busy):.0%} busy."
        )
    return text


def _values(document: Document, question: Question, relay: str) -> list[float]:
    """Return the values of a relay, one per round; [] when they were not measured."""
    row = document["rows"].get(question.row)
    if row is None or row["failed"]:
        return []
    return [
        question.value(result)
        for result in row["measurements"]
        if result["load"] == question.load
        and result["relay_name"] == relay
        and result["n_cores"] == 1
        and "--window" not in result["flags"]
    ]


def _quantity(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _capacities(document: Document) -> Iterator[dict[str, Any]]:
    yield from document["rows"].get("capacity", {}).get("capacities", ())


def _rate(document: Document, load: str, relay: str) -> str:
    for found in _capacities(document):
        if (found["load"], found["relay_name"]) == (load, relay):
            sign = "≥ " if _limit(found) == "load" else ""
            # thousands: the search is no more exact than a few percent
            rate = round(median(found["packets_per_s"]), -3)
            return f"{sign}{rate:,.0f} ({median(found['gbit_per_s']):.1f} Gbit/s)"
    return "–"


def _limit(found: dict[str, Any]) -> str:
    """Return the most frequent limit over the rounds."""
    [(limit, _)] = Counter(found["limit"]).most_common(1)
    return str(limit)


def _load_name(load: str) -> str:
    kind = "TLS 1.3" if load.startswith(TLS) else "plain"
    return f"{kind}, {load.removeprefix(TLS + 'pairs-').removeprefix('pairs-')} pairs"


def _relay_name(document: Document, relay: str) -> str:
    """Return a relay with what tells it apart: its crypto library, otherwise its version."""
    library = document["crypto"].get(relay, "")
    name = relay.partition("-")[0]
    return f"{name}, {library}" if library else f"{name} {document['relays'][relay]}"


def versions(document: Document) -> str:
    """Return the relays and their versions, fastderp last and with its crypto libraries."""
    relays = (f"{name.partition('-')[0]} {of}" for name, of in document["relays"].items())
    libraries = " and ".join(document["crypto"].values())
    return ", ".join(dict.fromkeys(relays)) + (f" with {libraries}" if libraries else "")


def made_with(document: Document) -> str:
    """Return the versions, the machine and the command."""
    found = document["environment"]
    text = (
        f"Medians, and the range over the rounds: {versions(document)}; {found['cpu']}, Linux "
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
