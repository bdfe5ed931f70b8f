"""`python -m bench.compare`: the same load on every relay, one after another in each round.

The relay has one core, the load another; each measurement has a fresh relay process; the order
rotates from round to round. The results are the ratios to derper in the same round: absolute
times depend on this machine at this moment. Under loads of pairs, a search follows for the highest
rate that each relay carries with a p99 of 1 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.capacity import NoRateError, capacity_of, searched
from bench.lab import QUIET, Lab, Measurement, cost, cost_per_login
from bench.relays import (
    HERE,
    Relay,
    RelayError,
    derper,
    fastderp,
    floor,
    older_derper,
    other,
)
from bench.terminal import Console, Table
from fastderp.loadgen.result import environment
from fastderp.loadgen.scenario import SCENARIOS, Shape

RESULTS = HERE / "results"
BASE = "derper"
OLDER = "derper-1.98"
TABLE_WIDTH = 140
CROWD = 1000
QUICK_DURATION_S = 0.5
Found = dict[str, dict[str, dict[str, Any]]]
"""The search's result by scenario and relay."""

DEFAULT_SCENARIOS = ("pairs-10", "tls/pairs-10")


@dataclass(frozen=True)
class Plan:
    """The plan of a comparison. Scenarios are names, with the prefix tls/ over TLS."""

    relays: Sequence[Relay]
    scenarios: Sequence[str]
    rounds: int
    lab: Lab


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a comparison, print its table, write its JSON; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        scenarios = _scenarios(options.scenario)
        plan = Plan(
            relays=_relays(options),
            scenarios=scenarios,
            rounds=1 if options.quick else options.rounds,
            lab=Lab(
                options.relay_core,
                options.load_core,
                QUICK_DURATION_S if options.quick else options.duration,
            ),
        )
        _check(plan)
        measured = compare(plan, _say)
        found = {} if options.no_search else search(plan, _say)
    except RelayError as error:
        print(f"bench.compare: {error}", file=sys.stderr)
        return 1
    command = ["python", "-m", "bench.compare", *(sys.argv[1:] if arguments is None else arguments)]
    path = _keep(plan, measured, found, command, options.output)
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    for name, by_relay in measured.items():
        console.print(_table(plan, name, by_relay, found.get(name, {})))
    print(f"\n{' '.join(command)}\n{path}")
    if any(each["limit"] == ["load"] for by_relay in found.values() for each in by_relay.values()):
        print("≥: the load's core was full before the relay's.")
    _warn_of_noise(measured)
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    add = parser.add_argument
    add(
        "scenario",
        nargs="*",
        default=list(DEFAULT_SCENARIOS),
        help=f"names of `fastderp-bench --list`, with tls/ in front over TLS; or all "
        f"(default: {' '.join(DEFAULT_SCENARIOS)})",
    )
    add("--relays", default="derper,derper-1.98,floor,fastderp", help="which of them (%(default)s)")
    add("--derper", metavar="PATH", help="derper's binary; built with Go when not given")
    add("--older-derper", metavar="PATH", help="that of derper-1.98; built with Go when not given")
    add("--gomaxprocs", type=int, metavar="N", help="for derper; by itself it takes its cores")
    add(
        "--relay",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="another relay, for example Hyper-DERP; {port} is replaced",
    )
    add("--workers", type=int, default=1, help="fastderp's worker threads (%(default)s)")
    add("--rounds", type=int, default=5, help="%(default)s")
    add("--duration", type=float, default=3.0, metavar="S", help="per measurement (%(default)s)")
    add("--relay-core", type=int, default=0, metavar="N", help="%(default)s")
    add("--load-core", type=int, default=1, metavar="N", help="%(default)s")
    add(
        "--quick",
        action="store_true",
        help="one round of half a second each, and the search: under two minutes",
    )
    add("--no-search", action="store_true", help="do not search for the highest rate")
    add("--output", metavar="FILE", help="JSON; by default a new file in bench/results")
    return parser


def _relays(options: argparse.Namespace) -> list[Relay]:
    known: dict[str, Callable[[], Relay]] = {
        "derper": lambda: derper(options.derper, options.gomaxprocs),
        "derper-1.98": lambda: older_derper(options.older_derper, options.gomaxprocs),
        "floor": floor,
        "fastderp": lambda: fastderp(options.workers),
        "fastderp-bundled": lambda: fastderp(options.workers, "bundled"),
        "fastderp-system": lambda: fastderp(options.workers, "system"),
    }
    names = [name for name in options.relays.split(",") if name]
    for name in names:
        if name not in known:
            raise RelayError(f"--relays {name}: there are {', '.join(known)}")
    return [known[name]() for name in names] + [other(text) for text in options.relay]


def _scenarios(names: Sequence[str]) -> list[str]:
    if list(names) == ["all"]:
        return [prefix + name for prefix in ("", "tls/") for name in SCENARIOS]
    for name in names:
        if name.removeprefix("tls/") not in SCENARIOS:
            raise RelayError(f"{name}: no such scenario; see fastderp-bench --list")
    return list(names)


def _check(plan: Plan) -> None:
    if not plan.relays:
        raise RelayError("no relay to measure: see --relays and --relay")
    for name in plan.scenarios:
        if not any(_can(relay, name) for relay in plan.relays):
            raise RelayError(f"{name}: none of the relays is set up for TLS")


def compare(plan: Plan, say: Callable[[str], None]) -> dict[str, dict[str, list[Measurement]]]:
    """Run every round; return the measurements by scenario and relay, one per round."""
    measured: dict[str, dict[str, list[Measurement]]] = {name: {} for name in plan.scenarios}
    for number in range(plan.rounds):
        for name in plan.scenarios:
            able = [relay for relay in plan.relays if _can(relay, name)]
            turn = number % len(able)
            for relay in able[turn:] + able[:turn]:
                result = plan.lab.measure(relay, name)
                measured[name].setdefault(relay.name, []).append(result)
                say(
                    f"round {number + 1}/{plan.rounds}  {name:<16} {relay.name:<10} "
                    f"{cost(result):8.3f} µs/packet"
                )
    return measured


def search(plan: Plan, say: Callable[[str], None]) -> Found:
    """Search for the highest rate of each relay, under the loads of pairs."""
    found: Found = {}
    for name in plan.scenarios:
        scenario = SCENARIOS[name.removeprefix("tls/")]
        if scenario.shape is not Shape.PAIRS or scenario.window < 2 or scenario.idle:
            continue
        found[name] = {}
        for relay in (relay for relay in plan.relays if _can(relay, name)):
            try:
                result = capacity_of(relay, name, [searched(plan.lab, relay, name)])
            except NoRateError as error:
                say(str(error))
                continue
            found[name][relay.name] = result
            say(f"search     {name:<16} {relay.name:<10} {result['packets_per_s'][0]:10,.0f}/s")
    return found


def _can(relay: Relay, name: str) -> bool:
    return bool(relay.tls_command) or not name.startswith("tls/")


def _table(
    plan: Plan,
    name: str,
    by_relay: dict[str, list[Measurement]],
    found: dict[str, dict[str, Any]],
) -> Table:
    """Return the medians over the rounds; a ratio also has the range of its rounds."""
    [summary] = {result["scenario"]["summary"] for result in next(iter(by_relay.values()))}
    table = Table(title=f"\n{name}: {summary}", title_justify="left", box=None)
    columns: dict[str, Callable[[Sequence[Measurement]], str]] = {
        "CPU µs/packet": lambda results: _median(results, cost, ".2f"),
        f"{BASE} costs": lambda results: _ratios(by_relay.get(BASE), results),
        "packets/s": lambda results: _median(results, lambda r: r["packets_per_s"], ",.0f"),
        "p50 µs": lambda results: _median(results, lambda r: r["latency"]["p50_us"], ",.0f"),
        "p99 µs": lambda results: _median(results, lambda r: r["latency"]["p99_us"], ",.0f"),
        "loss": lambda results: _median(results, lambda r: r["loss"], ".2%"),
        "CPU µs/login": lambda results: _median(results, cost_per_login, ",.0f"),
    }
    if all(map(_is_crowd, by_relay.values())):
        columns["KiB/client"] = lambda results: _median(results, _kib_per_client, ".1f")
    table.add_column("relay")
    for column in [*columns, *(("at p99 ≤ 1 ms", "Gbit/s") if found else ())]:
        table.add_column(column, justify="right")
    for relay in plan.relays:
        if relay.name not in by_relay:
            continue
        cells = [text(by_relay[relay.name]) for text in columns.values()]
        table.add_row(
            _title(relay),
            *cells,
            *(_carried(found.get(relay.name)) if found else ()),
        )
    return table


def _title(relay: Relay) -> str:
    name = BASE if relay.name == OLDER else relay.name
    return f"{name} {relay.version}".strip()


def _carried(found: dict[str, Any] | None) -> tuple[str, str]:
    """Return packets/s and Gbit/s at the highest rate that the relay carries."""
    if found is None:
        return "none", ""
    sign = "≥ " if found["limit"] == ["load"] else ""
    return f"{sign}{found['packets_per_s'][0]:,.0f}/s", f"{found['gbit_per_s'][0]:.1f}"


def _median(
    results: Sequence[Measurement], value: Callable[[Measurement], float], form: str
) -> str:
    return format(statistics.median(value(result) for result in results), form)


def _ratios(base: Sequence[Measurement] | None, results: Sequence[Measurement]) -> str:
    """Return the cost of the base over the relay's, round by round."""
    if base is None:
        return ""
    ratios = [cost(b) / cost(r) for b, r in zip(base, results, strict=True)]
    spread = f" ({min(ratios):.2f}–{max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f} ×{spread}"


def _is_crowd(results: Sequence[Measurement]) -> bool:
    """Return whether the clients' memory is large enough to measure beside the relay's own."""
    return all(result["n_clients"] >= CROWD for result in results)


def _kib_per_client(result: Measurement) -> float:
    relay = result["relay"]
    grown_kib: int = relay["rss_connected_kib"] - relay["rss_before_kib"]
    return grown_kib / int(result["n_clients"])


def _warn_of_noise(measured: dict[str, dict[str, list[Measurement]]]) -> None:
    shares = [
        result["foreign_share"]
        for by_relay in measured.values()
        for results in by_relay.values()
        for result in results
    ]
    noisy = sum(share > QUIET for share in shares)
    if noisy:
        print(
            f"machine busy: during {noisy} of {len(shares)} measurements other work took more than "
            f"{QUIET:.0%} of the two cores (most: {max(shares):.0%}). Trust only the ratios."
        )


def _keep(
    plan: Plan,
    measured: dict[str, dict[str, list[Measurement]]],
    found: Found,
    command: Sequence[str],
    output: str | None,
) -> Path:
    """Write all measurements; return the file."""
    path = Path(output) if output else RESULTS / f"compare-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "environment": environment(command),
        "relays": {relay.name: relay.version for relay in plan.relays},
        "measured": measured,
        "capacities": found,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
