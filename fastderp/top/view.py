"""Writes the figures of a relay as lines of a screen or a pipe: the head, and the table of clients.

All texts are ASCII, so every character takes one column and every terminal can show it.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fastderp.top.figures import ClientRates, Rates
from fastderp.util.text import printable

Style = Literal["", "title", "label", "warning", "error", "heading", "sorted", "help"]
UNKNOWN = "-"
# columns of the head: of its left half, and of a label
_HALF = 42
_LABEL = 9
# the fewest columns of an address and of an app name
_MIN_ADDRESS = 9
_MIN_APP = 6
_SCALE = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a line, in one style."""

    text: str
    style: Style = ""


Line = list[Part]


def line_text(line: Line) -> str:
    """Return a line without its styles."""
    return "".join(part.text for part in line).rstrip()


def cut(line: Line, width: int) -> Line:
    """Return the first columns of a line."""
    shown: Line = []
    for part in line:
        if width > 0:
            shown.append(Part(part.text[:width], part.style))
            width -= len(part.text)
    return shown


@dataclass(frozen=True, slots=True)
class Sort:
    """An order of the clients: its name on the command line, its key, and the value of a row.

    Rows whose value is unknown come last. `columns` are the headings that are marked.
    """

    name: str
    key: str
    columns: tuple[str, ...]
    value: Callable[[ClientRates], float | str | None]
    ascending: bool = False


SORTS = (
    Sort("traffic", "t", ("IN B/s", "OUT B/s"), lambda row: row.bytes_both),
    Sort("in", "i", ("IN B/s",), lambda row: row.bytes_in),
    Sort("out", "o", ("OUT B/s",), lambda row: row.bytes_out),
    Sort("packets", "p", ("IN p/s", "OUT p/s"), lambda row: row.packets_both),
    Sort("bytes", "b", ("BYTES IN", "BYTES OUT"), lambda row: row.client.bytes_both),
    Sort("drops", "s", ("DROPPED",), lambda row: row.client.dropped),
    Sort("rtt", "r", ("RTT",), lambda row: row.client.rtt_us),
    Sort("newest", "n", ("SINCE",), lambda row: row.client.connected_s, ascending=True),
    Sort("address", "d", ("ADDRESS",), lambda row: row.client.address, ascending=True),
    Sort("app", "a", ("APP",), lambda row: row.client.app or None, ascending=True),
)
SORT_OF = {sort.name: sort for sort in SORTS}


@dataclass(frozen=True, slots=True)
class State:
    """What is shown.

    Args:
        address: where the relay is.
        clock: the local time, as text.
        rates: its metrics, if it has answered.
        rows: its connected clients.
        n_connections: their number, which is above that of `rows` for a large relay.
        trouble: why there is no newer answer; "" if there is one.
    """

    address: str
    clock: str = ""
    rates: Rates | None = None
    rows: Sequence[ClientRates] = field(default=())
    n_connections: int = 0
    trouble: str = ""


def ordered(rows: Sequence[ClientRates], sort: Sort) -> list[ClientRates]:
    """Sort rows; equal ones by their bytes so far, then in the order in which they came."""
    rows = sorted(
        rows, key=lambda row: (-row.client.bytes_in - row.client.bytes_out, row.client.number)
    )
    known = [row for row in rows if sort.value(row) is not None]
    known.sort(key=lambda row: sort.value(row), reverse=not sort.ascending)  # type: ignore[arg-type, return-value]
    return known + [row for row in rows if sort.value(row) is None]


def screen(state: State, sort: Sort, width: int, height: int, n_rows: int | None) -> list[Line]:
    """Return the lines of a screen: head, clients, and the keys on its last line."""
    lines = head(state, width)
    lines += [[Part(text, "error")] for text in textwrap.wrap(state.trouble, max(width, 20))] or [
        []
    ]
    room = max(0, height - len(lines) - 2)
    n_rows = room if n_rows is None else min(n_rows, room)
    if not state.trouble:
        lines[-1] = [Part(remainder(state, n_rows), "label")]
    lines += table(state, sort, width, n_rows)
    lines = lines[: max(0, height - 1)]
    lines += [[] for _ in range(height - 1 - len(lines))]
    return [cut(line, width) for line in [*lines, _keys(sort)]]


def snapshot(state: State, sort: Sort, width: int, n_rows: int) -> list[Line]:
    """Return head and clients for a pipe."""
    lines = [*head(state, width), [Part(remainder(state, n_rows))]]
    return [cut(line, width) for line in [*lines, *table(state, sort, width, n_rows)]]


def head(state: State, width: int) -> list[Line]:
    """Return the lines about the relay as a whole."""
    rates = state.rates
    if rates is None:
        return [_title(f"relay at {state.address}", state.clock, width)]
    version = printable(rates.now.metrics.label("version", "version"))
    binary = printable(rates.now.metrics.label("version", "binary")) or "relay"
    up_s = rates.total("uptime_sec")
    up = f", up {duration(up_s)}" if up_s is not None else ""
    title = f"{binary} {version}".rstrip() + f"{up}, at {state.address}"
    pairs = (
        (("clients", _clients(rates)), ("waiting", _waiting(rates))),
        (("in", _traffic(rates, "received")), ("memory", _memory(rates))),
        (("out", _traffic(rates, "sent")), ("CPU", _cpu(rates))),
        (("logins", per_second(rates.logins())), ("loop lag", _p99(rates, "fastderp_loop_lag"))),
        (("queued", _queued(rates)), ("delay", _p99(rates, "fastderp_queue_delay"))),
    )
    return [
        _title(title, state.clock, width),
        [],
        *(_pair(*left, *right) for left, right in pairs),
        _reasons("refused", rates, "fastderp_closed_total"),
        _reasons("dropped", rates, "derp_packets_dropped"),
    ]


def _title(text: str, clock: str, width: int) -> Line:
    room = max(1, width - len(clock) - 1)
    if len(text) > room:
        text = text[: room - 1] + "~"
    return [Part(text, "title"), Part(" " * (room - len(text) + 1) + clock)]


def _pair(left: str, value: str, right: str, other: str) -> Line:
    return [
        Part(f"{left:<{_LABEL}}", "label"),
        Part(f"{value:<{_HALF - _LABEL - 1}} "),
        Part(f"{right:<{_LABEL}}", "label"),
        Part(other),
    ]


def _reasons(label: str, rates: Rates, name: str) -> Line:
    """Return a line with the growth of a counter, the most frequent reasons first."""
    reasons = rates.rates(name, "reason")
    text = per_second(sum(reasons.values()) if rates.before else None)
    if reasons:
        shown = (f"{printable(reason)} {per_second(rate)}" for reason, rate in reasons.items())
        text += ": " + ", ".join(shown)
    return [Part(f"{label:<{_LABEL}}", "label"), Part(text, "warning" if reasons else "")]


def _clients(rates: Rates) -> str:
    text = _count(rates.total("derp_current_connections"))
    for name, words in (
        ("derp_current_home_connections", "at home"),
        ("derp_clients_remote", "via mesh"),
    ):
        if number := rates.total(name):
            text += f", {_count(number)} {words}"
    return text


def _waiting(rates: Rates) -> str:
    number = rates.total("fastderp_connections_not_logged_in")
    # One of them is the connection that asks.
    return UNKNOWN if number is None else f"{_count(max(0.0, number - 1))} before their login"


def _traffic(rates: Rates, direction: str) -> str:
    packets = scaled(rates.rate(f"derp_packets_{direction}"))
    n_bytes = size(rates.rate(f"derp_bytes_{direction}"))
    return f"{packets + ' packets/s':<16} {n_bytes}/s"


def _memory(rates: Rates) -> str:
    is_open, limit = rates.total("process_open_fds"), rates.total("process_max_fds")
    files = f", {scaled(is_open)} of {scaled(limit)} files" if limit else ""
    return size(rates.total("process_resident_memory_bytes")) + files


def _cpu(rates: Rates) -> str:
    share = rates.rate("process_cpu_seconds_total")
    return UNKNOWN if share is None else f"{share:.0%} of a core"


def _queued(rates: Rates) -> str:
    return f"{size(rates.total('fastderp_backlog_bytes'))} for slow clients"


def _p99(rates: Rates, name: str) -> str:
    bound = rates.upper_bound(f"{name}_seconds", 0.99)
    if bound is None:
        return UNKNOWN
    return "above 1 s (p99)" if math.isinf(bound) else f"up to {bound * 1000:g} ms (p99)"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table; texts are aligned left, numbers right."""

    heading: str
    width: int
    text: Callable[[ClientRates], str]
    is_text: bool = False

    def cell(self, text: str) -> str:
        """Return a text in this column, cut with a tilde when it is too long."""
        if len(text) > self.width:
            text = text[: self.width - 1] + "~"
        return f"{text:<{self.width}}" if self.is_text else f"{text:>{self.width}}"


def _columns(rows: Sequence[ClientRates], width: int) -> list[Column]:
    """Return the columns that fit; the address and the app name are as wide as needed."""
    columns = [
        Column("KEY", 7, lambda row: row.client.key, is_text=True),
        Column("SINCE", 6, lambda row: duration(row.client.connected_s)),
        Column("IN p/s", 6, lambda row: scaled(row.packets_in)),
        Column("IN B/s", 6, lambda row: scaled(row.bytes_in)),
        Column("OUT p/s", 7, lambda row: scaled(row.packets_out)),
        Column("OUT B/s", 7, lambda row: scaled(row.bytes_out)),
    ]
    room = width - sum(column.width + 1 for column in columns)

    def add(place: int, column: Column) -> None:
        nonlocal room
        columns.insert(place, column)
        room -= column.width + 1

    def longest(heading: str, texts: Iterable[str]) -> int:
        return max(len(heading), max(map(len, texts), default=0))

    address = longest("ADDRESS", (row.client.address for row in rows))
    if room > _MIN_ADDRESS:
        add(
            1,
            Column("ADDRESS", min(address, room - 1), lambda row: row.client.address, is_text=True),
        )
    apps = [row.client.app for row in rows]
    app = longest("APP", apps)
    if any(apps) and room > min(app, _MIN_APP):
        add(2, Column("APP", min(app, room - 1), lambda row: row.client.app, is_text=True))
    flags = [row.client.flags for row in rows]
    for column in (
        Column("BYTES IN", 8, lambda row: scaled(row.client.bytes_in)),
        Column("BYTES OUT", 9, lambda row: scaled(row.client.bytes_out)),
        Column("DROPPED", 7, lambda row: counted(row.client.dropped)),
        Column("QUEUED", 6, lambda row: counted(row.client.waiting_bytes)),
        Column("RTT", 6, lambda row: milliseconds(row.client.rtt_us)),
        *(
            [Column("FLAGS", longest("FLAGS", flags), lambda row: row.client.flags, is_text=True)]
            if any(flags)
            else []
        ),
    ):
        if room > column.width:
            add(len(columns), column)
    return columns


def table(state: State, sort: Sort, width: int, n_rows: int) -> list[Line]:
    """Return the heading of the table and up to `n_rows` clients."""
    rows = ordered(state.rows, sort)[:n_rows]
    columns = _columns(rows, width)
    heading: Line = []
    for column in columns:
        marked: Style = "sorted" if column.heading in sort.columns else "heading"
        heading += [Part(column.cell(column.heading), marked), Part(" ", "heading")]
    heading.append(Part(" " * (width - sum(len(part.text) for part in heading)), "heading"))
    lines = [heading]
    for row in rows:
        style: Style = "" if row.bytes_both else "label"
        lines.append([Part(" ".join(column.cell(column.text(row)) for column in columns), style)])
    return lines


def remainder(state: State, n_rows: int) -> str:
    """Return a sentence about clients that the table does not show; "" if it shows all."""
    n_shown = min(n_rows, len(state.rows))
    if n_shown >= state.n_connections:
        return ""
    if len(state.rows) < state.n_connections:
        return (
            f"{n_shown} of {state.n_connections:,} clients, chosen among the {len(state.rows):,} "
            "with the most bytes so far"
        )
    return f"{n_shown} of {state.n_connections:,} clients"


def _keys(sort: Sort) -> Line:
    line: Line = [Part("q", "title"), Part(" quit  sort by:", "help")]
    for one in SORTS:
        before, found, after = one.name.partition(one.key)
        style: Style = "sorted" if one is sort else "help"
        line += [Part(" ", "help"), Part(before, style), Part(found, "title"), Part(after, style)]
    return line


def scaled(value: float | None, space: str = "") -> str:
    """Return a number with three digits, and its unit after `space`: 0, 12, 1.23k, 45.6M."""
    if value is None:
        return UNKNOWN
    for unit, suffix in _SCALE:
        if value >= 0.9995 * unit:
            number = value / unit
            n_decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
            return f"{number:.{n_decimals}f}{space}{suffix}"
    return (f"{value:.1f}" if 0 < value < 9.95 else f"{value:.0f}") + space


def counted(value: int | None) -> str:
    """Return a number without a fraction below 1000."""
    return f"{value}" if value is not None and value < 1000 else scaled(value)


def size(value: float | None) -> str:
    """Return a number of bytes: 12 B, 1.23 kB."""
    return UNKNOWN if value is None else scaled(value, " ") + "B"


def per_second(value: float | None) -> str:
    """Return a rate."""
    return UNKNOWN if value is None else f"{scaled(value)}/s"


def milliseconds(microseconds: int | None) -> str:
    """Return a round-trip time: 0.1ms, 23ms, 1.2s."""
    if microseconds is None:
        return UNKNOWN
    if microseconds >= 999_500:
        return f"{microseconds / 1e6:.1f}s"
    return f"{microseconds / 1000:.{1 if microseconds < 9950 else 0}f}ms"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: 42s, 3m07s, 5h12m, 3d4h."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days >= 100:
        return f"{days}d"
    if days:
        return f"{days}d{hour}h"
    if hours:
        return f"{hours}h{minute:02}m"
    return f"{minutes}m{second:02}s" if minutes else f"{second}s"


def _count(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"
