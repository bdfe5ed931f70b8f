"""The command `fastderp-bench`: puts load on a DERP relay and measures it."""

from __future__ import annotations

import argparse
import json
import os
import resource
import stat
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from fastderp.cli.output import refuse, show
from fastderp.cli.parser import Parser, with_two_dashes
from fastderp.errors import (
    EX_FAILURE,
    EX_IOERR,
    EX_OK,
    EX_OSERR,
    EX_UNAVAILABLE,
    EX_USAGE,
    DerpError,
)
from fastderp.loadgen.connect import Target
from fastderp.loadgen.result import Result, environment
from fastderp.loadgen.run import Timing, run
from fastderp.loadgen.scenario import (
    RATE_MAX,
    SCENARIOS,
    Scenario,
    Shape,
    parse_sizes,
    read_scenario,
)
from fastderp.tls.errors import TlsError
from fastderp.util.net import is_address
from fastderp.util.shortage import descriptor_limits, shortage_of
from fastderp.util.standard_streams import open_standard_streams

NAME = "fastderp-bench"
EX_INTERRUPTED = 130
BAR_COLUMNS = 40
# the lowest value of each flag that counts
_LEAST = {"pairs": 1, "idle": 0, "in-a-row": 1, "slow": 0, "storm": 0, "at-once": 1}


EXIT_CODES = """\
exit codes:
  0    the relay was measured
  1    packets were damaged, or connections were lost
  2    wrong flags, or files that cannot be used
  69   the relay cannot be reached or refuses the clients; no process --pid
  71   the system refused: no descriptors, threads or memory left
  74   the result could not be written
  130  interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code, which `--help` explains."""
    open_standard_streams()
    try:
        parser = _parser()
        options = parser.parse_args(
            with_two_dashes(sys.argv[1:] if arguments is None else arguments)
        )
        if options.help:
            return show(NAME, lambda: print(help_text(), end=""))
        if options.list:
            return show(NAME, _print_scenarios)
        if options.url is None:
            parser.error("missing URL of the relay, for example http://127.0.0.1:3340/derp")
        return _bench(options, arguments)
    except ValueError as error:
        return refuse(NAME, str(error), EX_USAGE)
    except KeyboardInterrupt:
        return EX_INTERRUPTED
    except DerpError as error:
        return refuse(NAME, str(error), error.exit_code)
    except ProcessLookupError as error:
        return refuse(NAME, f"--pid: {error}", EX_UNAVAILABLE)
    except OSError as error:
        return refuse(NAME, str(error), EX_OSERR)
    except (RuntimeError, MemoryError) as error:
        if shortage := shortage_of(error):
            return refuse(NAME, shortage, EX_OSERR)
        raise


def _bench(options: argparse.Namespace, arguments: Sequence[str] | None) -> int:
    """Measure and print the result. Raises ValueError for invalid flags."""
    _check(options)
    target = _target(options, options.url)
    to = _target(options, options.to) if options.to is not None else None
    scenario = _scenario(options)
    timing = Timing(options.warmup, options.duration, options.settle)
    _prepare_process(options.cpu, scenario)
    with _open_json(options.json) as json_file:
        result = _run_with_bar(target, to, scenario, timing, options)
        text = _json(result, arguments)
        if options.json == "-":
            shown = show(NAME, lambda: print(text))
        else:
            shown = show(NAME, lambda: _print_result(result, scenario))
        written = _write_json(json_file, text) if json_file is not None else EX_OK
    return shown or written or _verdict(result)


def help_text() -> str:
    """Return what `--help` prints."""
    return _parser().format_help()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        see="--help",
        prog=NAME,
        description="Put load on a DERP relay (any: derper, fastderp or another) and measure it.",
        epilog="Flags have one dash or two, and override the scenario.\n\n" + EXIT_CODES,
    )
    add = parser.add_argument
    add("url", nargs="?", help="the relay: http://host:port or https://host:port")
    add("-h", "--help", action="store_true", help="show this and exit")
    add("--list", action="store_true", help="list the named scenarios and exit")
    add("--scenario", default="pairs-10", metavar="NAME", help="named scenario (%(default)s)")
    add("--scenario-file", metavar="FILE", type=Path, help="a scenario of your own (TOML)")
    add(
        "--shape", choices=[shape.value for shape in Shape], help="pattern of senders and receivers"
    )
    add("--pairs", type=int, metavar="N", help="pairs; senders, receivers or clients by shape")
    add("--size", metavar="SIZES", help="payload bytes, or a mix such as 100:3,1400:1")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--window", type=int, metavar="N", help="packets in flight per flow")
    pace.add_argument(
        "--rate",
        type=float,
        metavar="PPS",
        help="packets per second of all senders together, by schedule",
    )
    pace.add_argument("--never-wait", action="store_true", help="senders write whenever they can")
    add("--idle", type=int, metavar="N", help="additional clients that stay logged in and silent")
    add("--in-a-row", type=int, metavar="N", help="packets of one flow before those of the next")
    add("--slow", type=int, metavar="N", help="receivers that read 64 KiB/s only")
    add("--storm", type=int, metavar="N", help="clients that log in during the measurement")
    add("--storm-rate", type=float, metavar="N", help="logins per second of --storm (no limit)")
    add("--at-once", type=int, metavar="N", help="logins under way before the measurement")
    add(
        "--fast-start",
        action=argparse.BooleanOptionalAction,
        help="https: send request and ClientInfo in one write, as clients that know the relay's key",
    )
    add("--duration", type=float, default=3.0, metavar="S", help="seconds measured (%(default)s)")
    add("--warmup", type=float, default=0.5, metavar="S", help="seconds before (%(default)s)")
    add(
        "--settle",
        type=float,
        default=0.0,
        metavar="S",
        help="seconds before and after for the relay to free memory (%(default)s)",
    )
    add(
        "--source",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="connect from this local address; several share the clients",
    )
    add("--insecure", action="store_true", help="https: do not verify the certificate")
    add("--cafile", metavar="FILE", help="https: additional trusted certificates (PEM)")
    add("--suite", metavar="NAME", help="https: the only TLS 1.3 suite to offer")
    add(
        "--joined-records",
        action="store_const",
        const=True,
        help="https: fill TLS records with packets; real clients send one record per packet",
    )
    add(
        "--busy-wait",
        action="store_const",
        const=True,
        help="poll for packets instead of sleeping until they come; real clients sleep",
    )
    add("--no-box-check", action="store_true", help="accept any ServerInfo (the bench's floor)")
    add("--verify", action="store_true", help="compare every payload byte on arrival")
    add("--seed", type=int, default=0, help="fixes packet sizes and contents (%(default)s)")
    add("--to", metavar="URL", help="another relay of the region, for clients that only receive")
    add(
        "--pid",
        type=int,
        action="append",
        default=[],
        help="the relay's process, for its CPU time and memory; repeat to add more",
    )
    add("--cpu", type=int, metavar="N", help="run the load on this core only")
    add("--json", metavar="FILE", help="write the result there; - for standard output")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Check the flags. Raises ValueError that names the flag."""
    if options.window is not None and options.window < 1:
        raise ValueError(
            f"--window {options.window}: must be at least 1; for no limit use --never-wait"
        )
    for flag, least in _LEAST.items():
        count = getattr(options, flag.replace("-", "_"))
        if count is not None and count < least:
            raise ValueError(f"--{flag} {count}: must be at least {least}")
    if options.rate is not None and not 1 <= options.rate <= RATE_MAX:
        raise ValueError(
            f"--rate {options.rate:g}: must be 1 to {RATE_MAX:g}; for no limit use --never-wait"
        )
    for source in options.source:
        if not is_address(source):
            raise ValueError(f"--source {source}: not an IP address")


def _target(options: argparse.Namespace, url: str) -> Target:
    try:
        return Target.parse(
            url,
            insecure=options.insecure,
            cafile=options.cafile,
            suite=options.suite,
            check_box=not options.no_box_check,
        )
    except TlsError as error:
        raise ValueError(f"--cafile {options.cafile}: {error}") from None


def _scenario(options: argparse.Namespace) -> Scenario:
    """Return the scenario with the flags' changes. Raises ValueError for an unknown name."""
    base = _base_scenario(options)
    changes: dict[str, object] = {}
    if options.shape is not None:
        changes["shape"] = Shape(options.shape)
    if options.pairs is not None:
        changes["n"] = options.pairs
    if options.size is not None:
        changes["sizes"] = parse_sizes(options.size)
    if options.window is not None:
        changes |= {"window": options.window, "rate": 0.0}
    if options.rate is not None:
        changes |= {"window": 0, "rate": options.rate}
    if options.never_wait:
        changes |= {"window": 0, "rate": 0.0}
    for name in (
        "idle",
        "in_a_row",
        "slow",
        "storm",
        "storm_rate",
        "at_once",
        "fast_start",
        "joined_records",
        "busy_wait",
    ):
        if (value := getattr(options, name)) is not None:
            changes[name] = value
    if not changes:
        return base
    return replace(base, name=f"{base.name} (changed)", **changes)  # type: ignore[arg-type]


def _base_scenario(options: argparse.Namespace) -> Scenario:
    if options.scenario_file is not None:
        try:
            return read_scenario(options.scenario_file)
        except ValueError as error:
            raise ValueError(f"--scenario-file {error}") from None
    try:
        return SCENARIOS[options.scenario]
    except KeyError:
        raise ValueError(f"--scenario {options.scenario}: no such scenario; see --list") from None


def _prepare_process(cpu: int | None, scenario: Scenario) -> None:
    """Pin this process to a core and raise its limit of descriptors."""
    if cpu is not None:
        try:
            os.sched_setaffinity(0, {cpu})
        except (OSError, ValueError, OverflowError):
            raise ValueError(
                f"--cpu {cpu}: no such core, or not allowed for this process"
            ) from None
    needed = scenario.n_clients + scenario.idle + scenario.storm + 64
    soft, hard = descriptor_limits()
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ValueError(f"{needed} descriptors needed, {hard} allowed: raise `ulimit -n`")
    if needed > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        except OSError as error:
            raise ValueError(
                f"{needed} descriptors needed, {soft} in force: {error.strerror}"
            ) from None


def _run_with_bar(
    target: Target,
    to: Target | None,
    scenario: Scenario,
    timing: Timing,
    options: argparse.Namespace,
) -> Result:
    is_shown = not options.quiet and sys.stderr.isatty()
    try:
        return run(
            target,
            scenario,
            timing,
            to=to,
            pids=options.pid,
            verify=options.verify,
            seed=options.seed,
            sources=options.source,
            on_progress=_draw_bar if is_shown else lambda what, share: None,
        )
    finally:
        if is_shown:
            print(end="\r\x1b[K", file=sys.stderr, flush=True)


def _draw_bar(what: str, share: float) -> None:
    """Draw the progress over the line of the terminal that has it."""
    done = round(BAR_COLUMNS * min(share, 1.0))
    bar = "#" * done + "." * (BAR_COLUMNS - done)
    print(f"\r{what:>10} [{bar}]", end="\x1b[K", file=sys.stderr, flush=True)


def _json(result: Result, arguments: Sequence[str] | None) -> str:
    command = [NAME, *(sys.argv[1:] if arguments is None else arguments)]
    return json.dumps({"environment": environment(command), "result": result.to_json()}, indent=1)


def _open_json(path: str | None) -> AbstractContextManager[TextIO | None]:
    """Open the file of --json before the measurement; its content stays until the end."""
    if path is None or path == "-":
        return nullcontext()
    try:
        return open(path, "a")
    except OSError as error:
        raise ValueError(f"--json {path}: {error.strerror}") from None


def _write_json(file: TextIO, text: str) -> int:
    try:
        with file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                file.truncate(0)
            file.write(text + "\n")
    except OSError as error:
        return refuse(NAME, f"--json {file.name}: {error.strerror}", EX_IOERR)
    return EX_OK


def _print_scenarios() -> None:
    rows = [(scenario.name, scenario.summary) for scenario in SCENARIOS.values()]
    width = max(len(name) for name, _ in rows)
    for name, summary in [("scenario", "load"), *rows]:
        print(f" {name:<{width}}  {summary}")


def _print_result(result: Result, scenario: Scenario) -> None:
    rows = _rows(result)
    width = max(len(name) for name, _ in rows)
    print(f"{scenario.name} · {result.url}")
    for name, value in rows:
        print(f" {name:>{width}}  {value}")


def _rows(result: Result) -> list[tuple[str, str]]:
    latency, relay = result.latency, result.relay
    rows = [
        ("delivered", f"{result.packets_per_s:,.0f} packets/s, {result.mbit_per_s:,.0f} Mbit/s"),
        ("lost", f"{result.loss:.3%} ({result.lost:,} of {result.sent:,})"),
        (
            "latency",
            f"p50 {latency.p50_us:,.0f} µs   p99 {latency.p99_us:,.0f} µs   "
            f"p99.9 {latency.p999_us:,.0f} µs   max {latency.max_us:,.0f} µs",
        ),
        ("fairness", f"{result.fairness:.3f} (Jain's index between flows)"),
        ("logins", f"{result.logins_per_s:,.0f} per second"),
        ("load", f"{result.load_cpu_share:.0%} of a core"),
    ]
    if result.storm_logins_per_s:
        rows.append(("storm", f"{result.storm_logins_per_s:,.0f} logins per second meanwhile"))
    if result.cipher:
        rows.append(("cipher", result.cipher))
    if relay:
        per_packet = relay.cpu_us_per_packet
        rows += [
            (
                "relay CPU",
                f"{per_packet:.3f} µs per delivered packet, {relay.cpu_share:.0%} of a core"
                if per_packet is not None
                else "nothing was delivered",
            ),
            ("per login", f"{relay.cpu_us_per_login:.0f} µs CPU"),
            (
                "relay memory",
                f"{relay.rss_before_kib:,} KiB before, {relay.rss_connected_kib:,} "
                f"connected, {relay.rss_idle_kib:,} idle, {relay.rss_after_kib:,} after, "
                f"{relay.rss_settled_kib:,} {relay.settle_s:.0f} s later",
            ),
        ]
    if result.corrupt or result.unexpected or result.connections_lost:
        rows.append(
            (
                "WRONG",
                f"{result.corrupt} damaged, {result.unexpected} unexpected, "
                f"{result.connections_lost} connections lost",
            )
        )
    return rows


def _verdict(result: Result) -> int:
    return EX_FAILURE if result.corrupt or result.connections_lost else EX_OK
