"""`fastderp-relay probe URL`: an operator's check of a relay from outside, derper or fastderp."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import shutil
import socket
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence

import fastderp
from fastderp.cli.output import refuse, show
from fastderp.cli.parser import Parser, with_one_dash
from fastderp.errors import EX_FAILURE, EX_OK, EX_USAGE, DerpError, UsageError
from fastderp.net.target import UrlTarget
from fastderp.probing.probe import Probe, ProbeOptions
from fastderp.probing.step import Outcome, Step, ms
from fastderp.util.net import bracketed, is_address
from fastderp.wire.keys import load_key

NAME = "fastderp-relay probe"
MAX_COUNT = 10_000
# of the line of a step: outcome, name and time are before
TEXT_COLUMN = 30

EXIT_CODES = """\
exit codes:
  0   every step is "ok" or "note"
  1   a step failed
  2   wrong flags, or not a URL of a relay
  69  a library is missing, such as OpenSSL or websockets
  74  the result could not be written
  78  a file of -key or -cafile cannot be used
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code, which `-help` explains."""
    try:
        flags = _parser().parse_args(with_one_dash(arguments))
        if flags.help:
            return show(NAME, lambda: print(help_text()))
        return _probe(flags)
    except DerpError as error:
        return refuse(NAME, str(error), error.exit_code)
    except ValueError as error:
        return refuse(NAME, str(error), EX_USAGE)


def _probe(flags: argparse.Namespace) -> int:
    """Probe the relay and print the result. Raises ValueError for invalid flags."""
    if flags.url is None:
        raise UsageError("missing URL of the relay, for example https://derp.example.com")
    target = _target(flags.url, flags.cert_name)
    options = ProbeOptions(
        cert_name=flags.cert_name,
        cafile=flags.cafile,
        keys=[load_key(path) for path in flags.key],
        family=flags.family,
        stun_port=flags.stun_port if flags.stun else 0,
        timeout_s=flags.timeout,
        count=flags.count,
    )
    steps: list[Step] = []
    codes: list[int] = []

    def report(step: Step) -> None:
        steps.append(step)
        if not flags.json:
            codes.append(show(NAME, lambda: print(_fitted(line_of(step)), flush=True)))

    asyncio.run(Probe(target, options, report).run())
    good = all(step.is_good for step in steps)
    summary = _json(target.url, steps, good) if flags.json else summary_of(target.url, steps)
    codes.append(show(NAME, lambda: print(summary)))
    return max(codes) or (EX_OK if good else EX_FAILURE)


def line_of(step: Step) -> str:
    """Return the line of a step."""
    took = "" if step.seconds is None else ms(step.seconds)
    outcome = step.outcome.value
    shown = outcome.upper() if step.outcome is Outcome.FAILED else outcome
    return f"{shown:<7} {step.name:<10} {took:>9}  {step.text}"


def _fitted(line: str) -> str:
    """Wrap a line for a terminal; a file or a pipe gets whole lines."""
    if not sys.stdout.isatty():
        return line
    return "\n".join(
        textwrap.wrap(
            line,
            max(shutil.get_terminal_size().columns, 2 * TEXT_COLUMN),
            subsequent_indent=" " * TEXT_COLUMN,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def summary_of(url: str, steps: Sequence[Step]) -> str:
    """Return the last line."""
    counts = Counter(step.outcome for step in steps)
    parts = [
        f"{counts[outcome]} {outcome.value}"
        for outcome in (Outcome.FAILED, Outcome.SKIPPED, Outcome.NOTE)
        if counts[outcome]
    ]
    verdict = "all good" if all(step.is_good for step in steps) else "NOT good"
    return f"{url}: {verdict}" + (f" ({', '.join(parts)})" if parts else "")


def _json(url: str, steps: Sequence[Step], good: bool) -> str:
    return json.dumps(
        {
            "url": url,
            "good": good,
            "version": fastderp.__version__,
            "failed": [step.name for step in steps if step.outcome is Outcome.FAILED],
            "steps": [step.as_json() for step in steps],
        }
    )


def _target(url: str, cert_name: str) -> UrlTarget:
    """Return the relay at a URL; a host alone means https, and no path means /derp."""
    scheme, found, rest = url.partition("://")
    if not found:
        scheme, rest = "https", bracketed(url) if is_address(url) else url
    return UrlTarget(f"{scheme}://{rest.rstrip('/')}", cert_name, "")


def help_text() -> str:
    """Return what `-help` prints."""
    return _parser().format_help().rstrip()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        see=f"{NAME} -help",
        prog=NAME,
        usage=f"{NAME} [FLAGS] URL",
        description="Check a DERP relay (any: derper, fastderp or another) from outside.",
        epilog=EXIT_CODES,
        allow_abbrev=False,
    )
    parser.add_argument(
        "url", nargs="?", metavar="URL", help="https:// (default), http://, wss:// or ws:// relay"
    )

    def add(name: str, help_text: str, **settings: object) -> None:
        parser.add_argument(f"-{name}", help=help_text, **settings)  # type: ignore[arg-type]

    add(
        "stun-port",
        "UDP port of STUN (3478); 0 for none",
        type=_number(int, 0, 65535),
        default=3478,
        metavar="N",
    )
    add("stun", "-stun=false probes no STUN", type=_boolean, default=True, metavar="BOOL")
    add("cafile", "PEM file of roots to trust besides the system's", metavar="FILE")
    add(
        "cert-name",
        "name expected in the certificate instead of the URL's, or sha256-raw:HASH of it",
        default="",
        metavar="NAME",
    )
    add(
        "timeout",
        "time limit of each step (10)",
        type=_number(float, 0.1, 3600),
        default=10.0,
        metavar="SECONDS",
    )
    add(
        "count",
        "packets of the echo (100)",
        type=_number(int, 1, MAX_COUNT),
        default=100,
        metavar="N",
    )
    add(
        "key",
        "key file of a client that the relay admits; given once, the client sends to itself; "
        "given twice, the packets go between two clients (default: two new keys)",
        action="append",
        default=[],
        metavar="FILE",
    )
    add("json", "print one JSON object", action="store_true")
    families = parser.add_mutually_exclusive_group()
    for flag, family in (("-4", socket.AF_INET), ("-6", socket.AF_INET6)):
        families.add_argument(
            flag,
            help=f"IPv{flag[1]} only",
            dest="family",
            action="store_const",
            const=family,
            default=socket.AF_UNSPEC,
        )
    parser.add_argument("-h", "-help", dest="help", action="store_true", help="show this and exit")
    return parser


def _number(read: Callable[[str], float], least: float, most: float) -> Callable[[str], float]:
    """Return a reader of a flag's number within bounds."""

    def number(text: str) -> float:
        try:
            value = read(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be {least:g} to {most:g}, not {text!r}")
        return value

    return number


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError("must be true or false")
    return text == "true"
