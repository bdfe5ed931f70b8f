"""The cost of a relay without clients: the time of its start, and its resident memory.

    python bench/idle.py [--rounds 5] [--derper PATH | --no-derper] [--settle 12] [--parts]

Each start is the first one in an empty directory, with STUN: the relay makes its key. With TLS, the
bench makes its certificate, in the measured time and with code of fastderp. A start before the
measurement, which is not counted, leaves compiled bytecode, as an installation does. The relay
serves when it has answered /derp/probe. `private` is the part of the resident memory that no other
process shares; `PSS` counts shared pages in equal parts. `--parts` adds the memory of each library
and of the heap, in the last round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.parts import part_of
from bench.relays import Relay, RelayError, derper, fastderp, running

MIB = 1024  # in the KiB of /proc


Parts = dict[str, Counter[str]]
"""KiB by field of smaps and part."""


@dataclass(frozen=True, slots=True)
class Idle:
    """One start: seconds until the relay served, CPU seconds until then, MiB while idle."""

    serves_s: float
    cpu_s: float
    rss_mib: float
    pss_mib: float
    private_mib: float
    parts: Parts


def measure(relay: Relay, *, tls: bool, settle_s: float) -> Idle:
    """Start a relay, ask for a page, and read its memory `settle_s` later."""
    began = time.monotonic()
    with running(relay, tls=tls) as started:
        started.page("/derp/probe")
        serves_s = time.monotonic() - began
        cpu_s = cpu_of(started.pid)
        time.sleep(settle_s)
        memory = memory_kib(started.pid)
        parts = by_part(Path(f"/proc/{started.pid}/smaps").read_text().splitlines())
    return Idle(
        serves_s,
        cpu_s,
        memory["Rss"] / MIB,
        memory["Pss"] / MIB,
        (memory["Private_Clean"] + memory["Private_Dirty"]) / MIB,
        parts,
    )


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def memory_kib(pid: int) -> dict[str, int]:
    """Return the sums over all mappings of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}


def by_part(smaps: Iterable[str]) -> Parts:
    """Return the resident, proportional and private KiB of each part, from lines of smaps."""
    found: Parts = {"RSS": Counter(), "PSS": Counter(), "private": Counter()}
    fields = {"Rss": "RSS", "Pss": "PSS", "Private_Clean": "private", "Private_Dirty": "private"}
    part = ""
    for line in smaps:
        head, _, rest = line.partition(" ")
        if not head.endswith(":"):
            # 55d0c0a00000-55d0c0a01000 r--p 00000000 fd:01 1234    /usr/bin/python3.11
            words = rest.split(maxsplit=4)
            part = part_of(words[4] if len(words) > 4 else "")
        elif head[:-1] in fields:
            found[fields[head[:-1]]][part] += int(rest.split()[0])
    return found


def with_stun(relay: Relay) -> Relay:
    """Return the relay with STUN, on the port of a plain start; all run one after another."""
    flags = ["-stun", "-stun-port=34780"]

    def on(command: Sequence[str]) -> list[str]:
        return [word for word in command if not word.startswith("-stun")] + flags

    return replace(relay, command=on(relay.command), tls_command=on(relay.tls_command))


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--settle", type=float, default=12.0, metavar="S", help="%(default)s")
    parser.add_argument("--derper", metavar="PATH", help="derper's binary; built when not given")
    parser.add_argument("--no-derper", action="store_true")
    parser.add_argument("--parts", action="store_true", help="the memory of each library, too")
    options = parser.parse_args()
    try:
        relays = [] if options.no_derper else [derper(options.derper)]
        relays.append(fastderp(workers=0))  # one per core, as by default
        print_rows(
            [with_stun(relay) for relay in relays], options.rounds, options.settle, options.parts
        )
    except RelayError as error:
        print(f"bench.idle: {error}", file=sys.stderr)
        return 1
    return 0


def print_rows(
    relays: Sequence[Relay], rounds: int, settle_s: float, with_parts: bool = False
) -> None:
    """Measure in turn, and print medians and ranges."""
    python = sys.version.split()[0]
    load = os.getloadavg()[0]
    print(
        f"Linux {os.uname().release}, Python {python}, medians of {rounds} rounds, load {load:.1f}"
    )
    print(
        f"{'relay':17} {'':6} {'serves after':>20} {'CPU':>7} {'RSS':>8} {'PSS':>8} {'private':>8}"
    )
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for relay in relays:
        measure(relay, tls=True, settle_s=0)
    for tls in (False, True):
        found: list[list[Idle]] = [[] for _ in relays]
        for _ in range(rounds):
            for relay, results in zip(relays, found, strict=True):
                results.append(measure(relay, tls=tls, settle_s=settle_s))
        for relay, results in zip(relays, found, strict=True):
            print_row(f"{relay.name} {relay.version}", "TLS" if tls else "plain", results)
            if with_parts:
                print(table(results[-1].parts), flush=True)


def table(parts: Parts) -> str:
    """Return the memory of each part as a Markdown table, the largest first."""
    lines = [f"| KiB | {' | '.join(parts)} |", f"|---|{'--:|' * len(parts)}"]
    for part, kib in parts["RSS"].most_common():
        if kib:
            lines.append(f"| {part} | {' | '.join(f'{each[part]:,}' for each in parts.values())} |")
    totals = [f"{each.total():,}" for each in parts.values()]
    return "\n".join([*lines, f"| all | {' | '.join(totals)} |"])


def print_row(name: str, kind: str, results: Sequence[Idle]) -> None:
    def median(field: str) -> float:
        return float(statistics.median(getattr(result, field) for result in results))

    starts = [result.serves_s for result in results]
    serves = f"{median('serves_s'):.3f} s ({min(starts):.2f}–{max(starts):.2f})"
    memory = " ".join(f"{median(f'{part}_mib'):4.1f} MiB" for part in ("rss", "pss", "private"))
    print(f"{name:17} {kind:6} {serves:>20} {median('cpu_s'):5.2f} s {memory}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
