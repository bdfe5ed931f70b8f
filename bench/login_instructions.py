"""`python -m bench.login_instructions`: instructions of a relay per login, by library.

The relay of bench/login_cost.py runs in valgrind, whose callgrind counts from the end of the
warm-up; logins come one at a time. Other work of the machine does not change the numbers. The
kernel's instructions are not in them, and valgrind has no AVX-512: libraries run their code for
other processors.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench.login_cost import client_context, client_logins, log_in, serving
from bench.parts import part_of
from bench.relays import RelayError, fastderp

KINDS = {"plain": False, "TLS": True}


def main(arguments: Sequence[str] | None = None) -> int:
    """Count and print; return 1 when valgrind or the relay fails."""
    parser = argparse.ArgumentParser(prog="python -m bench.login_instructions", description=__doc__)
    parser.add_argument("-n", type=int, default=50, help="logins to count (%(default)s)")
    parser.add_argument("--warm-up", type=int, default=100, metavar="N", help="%(default)s before")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this one")
    parser.add_argument(
        "--fast-start", action="store_true", help="the login in one write with the request"
    )
    options = parser.parse_args(arguments)
    try:
        tool = _output("valgrind", "--version").strip()
        relay = fastderp()
        found = {
            kind: count(KINDS[kind], options.n, options.warm_up, options.fast_start)
            for kind in options.kind or KINDS
        }
    except (RelayError, RuntimeError, OSError) as error:
        print(f"bench.login_instructions: {error}", file=sys.stderr)
        return 1
    print(
        f"fastderp {relay.version}, {relay.crypto}, Python {platform.python_version()}, {tool}, "
        f"{options.n} logins{' with fast start' * options.fast_start}"
    )
    print(table(found, options.n))
    return 0


def count(tls: bool, n_logins: int, n_before: int, fast_start: bool) -> Counter[str]:
    """Return the instructions of a fresh relay for `n_logins` after `n_before`, by part.

    Raises RuntimeError when valgrind or the relay fails.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        output = Path(directory) / "callgrind"
        under = ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no"]
        under += [f"--callgrind-out-file={output}", f"--log-file={directory}/log"]
        with serving(*["--tls"] * tls, under=under) as (pid, port, key):
            logins, context = client_logins(key), client_context(tls)
            log_in(port, n_before, logins, context, fast_start)
            _control(pid, "--instr=on")
            log_in(port, n_logins, logins, context, fast_start)
            _control(pid, "--dump")
            _control(pid, "--instr=off")
        with output.with_suffix(".1").open() as dump:
            by_object = self_costs(dump)
    parts: Counter[str] = Counter()
    for name, n in by_object.items():
        parts[part_of(name)] += n
    return parts


def self_costs(lines: Iterable[str]) -> Counter[str]:
    """Return the instructions executed in each object, from a file in callgrind's format.

    Raises RuntimeError when they do not add up to the file's own total.
    """
    names: dict[str, str] = {}
    found: Counter[str] = Counter()
    current, is_call, total = "???", False, None
    for line in lines:
        if line.startswith(("ob=", "cob=")):
            # "(1) /usr/lib/libc.so.6" at first, then "(1)"
            number, _, name = line.partition("=")[2].strip().partition(" ")
            name = names.setdefault(number, name or number)
            if line.startswith("ob="):
                current = name
        elif line.startswith("calls="):
            is_call = True  # the next line has the cost of the called functions
        elif line[:1] in "0123456789+-*" and line.strip():
            if not is_call:
                found[current] += int(line.split()[1])
            is_call = False
        elif line.startswith(("totals:", "summary:")):
            total = int(line.split()[1])
    if total != found.total():
        raise RuntimeError(f"callgrind counted {total} instructions, its file has {found.total()}")
    return found


def table(found: Mapping[str, Counter[str]], n_logins: int) -> str:
    """Return the instructions per login, by part and kind, as a Markdown table."""
    everything = sum(found.values(), Counter())
    lines = [
        f"| instructions per login | {' | '.join(found)} |",
        f"|---|{'--:|' * len(found)}",
    ]
    for part, _ in everything.most_common():
        cells = [
            f"{parts[part] / n_logins:,.0f} ({parts[part] / parts.total():.1%})"
            for parts in found.values()
        ]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    totals = [f"{parts.total() / n_logins:,.0f}" for parts in found.values()]
    return "\n".join([*lines, f"| all | {' | '.join(totals)} |"])


def _control(pid: int, flag: str) -> None:
    said = _output("callgrind_control", flag, str(pid))
    if "OK." not in said:
        raise RuntimeError(f"callgrind_control {flag} failed: {said.strip()}")


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"no {command[0]}: install valgrind and its callgrind_control")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
