"""The command `fastderp-relay top`: a live view of a running relay, or one snapshot of it."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fastderp.cli.output import refuse, show
from fastderp.cli.parser import Parser, with_one_dash
from fastderp.errors import EX_UNAVAILABLE, ConfigError, DerpError, UsageError
from fastderp.top.pages import Access, Address, NoRelayError, RelayPages
from fastderp.top.view import SORT_OF, SORTS, line_text, snapshot
from fastderp.top.watch import Watch
from fastderp.util import files
from fastderp.util.reasons import own_text

NAME = "fastderp-relay top"
# $FASTDERP_DEBUG_ADDR first: the usual places of -debug-addr, then the plain ports of a relay with a
# certificate and of a trial with -dev
DEFAULT_ADDRESSES = (
    "unix:/run/fastderp/debug.sock",
    "http://127.0.0.1:9090",
    "http://127.0.0.1:80",
    "http://127.0.0.1:3340",
)
DEFAULT_ROWS = 20
# columns in a pipe
WIDTH = 100
_MIN_INTERVAL_S = 0.1
_MAX_INTERVAL_S = 3600.0

DESCRIPTION = """\
Show a running relay: its traffic, logins, drops and memory, and its clients.
In a terminal the view is live: q ends it, and the keys on the last line sort
the clients. In a pipe, or with -once, it is one snapshot after one interval."""
EPILOG = f"""\
URL is that of the relay's -debug-addr, if it has one, else any of its own,
which answers its own machine and tailscale addresses, and others with the
debug key.
Without URL: $FASTDERP_DEBUG_ADDR, {DEFAULT_ADDRESSES[0]},
and the ports 9090, 80 and 3340 of this machine.

examples:
  fastderp-relay top
  fastderp-relay top :9090
  fastderp-relay top -debug-key-file debug.key unix:/run/fastderp/relay.sock
  fastderp-relay top -cert-name derp.example.com https://127.0.0.1
  fastderp-relay top -once -sort bytes -n 5

exit codes:
  0    ended by q or Ctrl-C, or the snapshot was printed
  2    unknown flag, or a value out of bounds
  69   no relay there, it refuses its debug pages, or a library is missing
  74   the output could not be written
  78   a file cannot be used
  129  the terminal is gone (SIGHUP); 143: SIGTERM
"""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code, which `-help` explains."""
    try:
        options = _parser().parse_args(with_one_dash(arguments))
        if options.help:
            return show(NAME, lambda: print(help_text(), end=""))
        return _top(options)
    except DerpError as error:
        return refuse(NAME, str(error), error.exit_code)
    except ImportError as error:  # rich, or OpenSSL
        return refuse(NAME, str(error), EX_UNAVAILABLE)


def _top(options: argparse.Namespace) -> int:
    interval_s = _interval(options.interval)
    if options.n is not None and options.n < 1:
        raise UsageError(f"-n {options.n}: must be at least 1")
    access = Access(_debug_key(options.debug_key_file), options.cafile, options.cert_name)
    sort = SORT_OF[options.sort]
    if not options.once and _is_screen():
        from fastderp.top import live

        return live.run(_watch(options.url, access), interval_s, sort, options.n)
    watch = _watch(options.url, access)
    time.sleep(interval_s)
    watch.ask()
    width = shutil.get_terminal_size((WIDTH, 24)).columns
    lines = snapshot(watch.state, sort, width, options.n or DEFAULT_ROWS)
    return show(NAME, lambda: print(*map(line_text, lines), sep="\n"))


def _is_screen() -> bool:
    return bool(sys.stdout) and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _watch(url: str | None, access: Access) -> Watch:
    """Return the relay at the URL, or one of this machine, after its first answer."""
    if url is not None:
        watch = Watch(RelayPages(Address.parse(url), access))
        watch.ask()
        return watch
    own = os.environ.get("FASTDERP_DEBUG_ADDR")
    addresses = (own, *DEFAULT_ADDRESSES) if own else DEFAULT_ADDRESSES
    for address in addresses:
        watch = Watch(RelayPages(Address.parse(address), access))
        try:
            watch.ask()
        except NoRelayError:
            continue
        return watch
    raise NoRelayError(f"no relay at {', '.join(addresses)}; give its address")


def _interval(text: str) -> float:
    try:
        interval_s = float(text.removesuffix("s"))
    except ValueError:
        interval_s = math.nan
    if not _MIN_INTERVAL_S <= interval_s <= _MAX_INTERVAL_S:
        raise UsageError(
            f"-interval {text}: want {_MIN_INTERVAL_S:g} to {_MAX_INTERVAL_S:g} seconds"
        )
    return interval_s


def _debug_key(path: Path | None) -> str:
    """Return the content of the relay's $TS_DEBUG_KEY_PATH; "" without such a file."""
    if path is None:
        return ""
    try:
        return files.read(path).strip().decode("ascii")
    except OSError as error:
        raise ConfigError(f"-debug-key-file {path}: {own_text(error)}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"-debug-key-file {path}: not ASCII text") from None


def help_text() -> str:
    """Return what `-help` prints."""
    return _parser().format_help()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        see=f"{NAME} -help",
        prog=NAME,
        description=DESCRIPTION,
        epilog=EPILOG,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "url",
        nargs="?",
        metavar="URL",
        help="[HOST]:PORT, http://..., https://... or unix:PATH",
    )
    add("-h", "-help", action="store_true", dest="help", help="show this and exit")
    add("-interval", default="2", metavar="SECONDS", help="between updates (2)")
    add("-once", action="store_true", help="print one snapshot and end")
    add(
        "-sort",
        choices=list(SORT_OF),
        default=SORTS[0].name,
        metavar="ORDER",
        help=f"of the clients: {', '.join(SORT_OF)} ({SORTS[0].name})",
    )
    add(
        "-n",
        type=int,
        metavar="ROWS",
        help=f"number of clients (those that fit; in a snapshot {DEFAULT_ROWS})",
    )
    add(
        "-debug-key-file",
        type=Path,
        metavar="FILE",
        default=os.environ.get("TS_DEBUG_KEY_PATH") or None,
        help="the relay's debug key ($TS_DEBUG_KEY_PATH)",
    )
    add("-cafile", type=Path, metavar="FILE", help="roots for https (the system's)")
    add(
        "-cert-name",
        default="",
        metavar="NAME",
        help="the name in the relay's certificate (the URL's host)",
    )
    return parser
