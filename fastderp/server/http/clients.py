"""`/debug/clients/`: the connected clients, filtered, sorted and in pages, as HTML and JSON.

PROTOCOL §22. Content only; `debug.DebugPages` decides about access.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode

from fastderp.dataplane.reports import SessionInfo
from fastderp.server.http.document import document
from fastderp.server.http.message import Request, Response, text_error
from fastderp.util.net import IpAddress, IpNetwork, address_text, client_ip, format_address
from fastderp.util.text import html_text
from fastderp.wire.keys import NodePublic

LIMIT_DEFAULT = 100
LIMIT_MAX = 1000
FILTERS = ("all", "ip", "cidr", "key")

_DURATION = re.compile(r"(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+(?:\.[0-9]*)?)s)?")
# The longest duration in Go: 2^63 - 1 nanoseconds.
_DURATION_MAX_NS = 2**63 - 1
_NS = 1_000_000_000
_START_NS = 100_000_000


class QueryError(ValueError):
    """A query is invalid; the text names the error."""


@dataclass(frozen=True, slots=True)
class Row:
    """A connection on the page; `started_ns` is Unix time, to a tenth of a second."""

    session: SessionInfo
    started_ns: int

    @property
    def key(self) -> str:
        """The client's key in text."""
        return NodePublic(self.session.key).text


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError("want a whole number")
    return int(text)


def _key(text: str) -> bytes:
    return NodePublic.from_text(text).raw


def _ip(text: str) -> bytes:
    found = client_ip(text)
    if found is None:
        raise ValueError("want an IP address")
    return _mapped(found)


def _mapped(ip: IpAddress) -> bytes:
    return ip.packed if ip.version == 6 else bytes(10) + b"\xff\xff" + ip.packed


def _start(text: str) -> int:
    """Read a moment: Unix nanoseconds, or a time before now such as 30m."""
    if text.isascii() and text.isdigit():
        return int(text)
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise ValueError("want Unix nanoseconds or a duration such as 30m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    duration_ns = (hours * 3600 + minutes * 60 + seconds) * _NS
    if duration_ns > _DURATION_MAX_NS:
        raise ValueError("the duration is too long")
    return time.time_ns() - int(duration_ns)


@dataclass(frozen=True, slots=True)
class Column:
    """A sort key of rows: its value, the parser of `after`, and the text of a value in `after`."""

    value: Callable[[Row], Any]
    read: Callable[[str], Any]
    text: Callable[[Row], str]


COLUMNS = {
    "key": Column(lambda row: row.session.key, _key, lambda row: row.key),
    "ip": Column(lambda row: row.session.addr, _ip, lambda row: address_text(row.session.addr)),
    "conn": Column(lambda row: row.session.handle, _natural, lambda row: str(row.session.handle)),
    "connected": Column(lambda row: row.started_ns, _start, lambda row: str(row.started_ns)),
    **{
        name: Column(
            lambda row, field=field: getattr(row.session.totals, field),  # type: ignore[misc]
            _natural,
            lambda row, field=field: str(getattr(row.session.totals, field)),  # type: ignore[misc]
        )
        for name, field in (
            ("rx", "rx_bytes"),
            ("tx", "tx_bytes"),
            ("rxpkts", "rx_packets"),
            ("txpkts", "tx_packets"),
            ("dropped", "dropped"),
        )
    },
    "waiting": Column(
        lambda row: row.session.backlog_bytes, _natural, lambda row: str(row.session.backlog_bytes)
    ),
}


@dataclass(frozen=True, slots=True)
class Query:
    """A parsed query.

    Args:
        title: the filter in words; "" without a filter.
        parameters: the filter and the debug key, for links.
        accepts: whether a session passes the filter.
        sort, descending: the column of COLUMNS, and its direction.
        after: the value and, when given, the connection number that the page starts behind.
        limit: number of rows of a page.
        as_json: the format.
    """

    title: str
    parameters: tuple[tuple[str, str], ...]
    accepts: Callable[[SessionInfo], bool]
    sort: str
    descending: bool
    after: tuple[Any, int | None] | None
    limit: int
    as_json: bool

    @classmethod
    def parse(cls, text: str) -> Query:
        """Read a query. Raises QueryError."""
        pairs = parse_qsl(text, keep_blank_values=True)
        values = dict(reversed(pairs))  # the first value of each name counts
        apps = tuple(value for name, value in pairs if name == "app")
        # A form also sends empty fields.
        given = [name for name in FILTERS if values.get(name) or (name == "all" and name in values)]
        if len(given) > 1:
            raise QueryError(f"only one of {', '.join(FILTERS)} may be given")
        title, accepts = _filter(given[0] if given else "", values)
        if apps:
            title = (
                (title or "all clients") + " with app " + " or ".join(a or "(none)" for a in apps)
            )
        names = {app.encode() for app in apps}
        parameters = [(given[0], values[given[0]])] if given else [("all", "1")]
        parameters += [(name, value) for name, value in pairs if name in ("app", "debugkey")]
        sort = values.get("sort") or "key"
        column = COLUMNS.get(sort.removeprefix("-"))
        if column is None:
            wanted = ", ".join(COLUMNS)
            raise QueryError(f'bad sort "{sort}"; want one of {wanted}, - in front to reverse it')
        form = values.get("format", "html")
        if form not in ("html", "json"):
            raise QueryError(f'bad format "{form}"; want json or html')
        return cls(
            title=title,
            parameters=tuple(parameters),
            accepts=lambda session: accepts(session) and (not names or session.app_name in names),
            sort=sort.removeprefix("-"),
            descending=sort.startswith("-"),
            after=_after(values, sort.removeprefix("-"), column),
            limit=_limit(values.get("limit", str(LIMIT_DEFAULT))),
            as_json=form == "json",
        )

    def link(self, **changes: str) -> str:
        """Return the query string of this page with other options."""
        options = {"sort": ("-" if self.descending else "") + self.sort}
        if self.limit != LIMIT_DEFAULT:
            options["limit"] = str(self.limit)
        if self.as_json:
            options["format"] = "json"
        return "?" + urlencode([*self.parameters, *(options | changes).items()])


def _filter(name: str, values: dict[str, str]) -> tuple[str, Callable[[SessionInfo], bool]]:
    """Return the filter in words and as a function.

    Without a name it accepts all sessions and its title is empty.
    """
    text = values.get(name, "")
    try:
        if name == "ip":
            ip = _ip(text)
            return f"clients from {address_text(ip)}", lambda session: session.addr == ip
        if name == "cidr":
            if "/" not in text:
                raise ValueError("want a prefix such as 192.0.2.0/24")
            network = ipaddress.ip_network(text, strict=False)
            return f"clients from {network}", lambda session: _is_in(network, session.addr)
        if name == "key":
            key = _key(text)
            return f"connections for {text}", lambda session: session.key == key
    except ValueError as error:
        raise QueryError(f'bad {name} "{text}": {error}') from None
    return "all clients" if name else "", lambda session: True


def _is_in(network: IpNetwork, addr: bytes) -> bool:
    ip = ipaddress.IPv6Address(addr)
    return (ip.ipv4_mapped or ip) in network


def _after(values: dict[str, str], sort: str, column: Column) -> tuple[Any, int | None] | None:
    text = values.get("after", "")
    if not text:
        return None
    try:
        value = column.read(text)
    except ValueError as error:
        raise QueryError(f'bad after "{text}" for sort by {sort}: {error}') from None
    number = values.get("afterconn", "")
    try:
        return value, _natural(number) if number else None
    except ValueError as error:
        raise QueryError(f'bad afterconn "{number}": {error}') from None


def _limit(text: str) -> int:
    try:
        limit = _natural(text)
    except ValueError:
        limit = 0
    if not limit:
        raise QueryError(f'bad limit "{text}"; want 1 to {LIMIT_MAX}')
    return min(limit, LIMIT_MAX)


class Details(Protocol):
    """Knows more about a session, by its handle; the registrar does."""

    def version(self, handle: int, /) -> int:
        """Return the protocol version that the client has announced."""

    def round_trip_us(self, handle: int, /) -> int | None:
        """Return the client's round-trip time in microseconds; None if unknown."""


@dataclass(slots=True)
class ClientsPage:
    """The page and its JSON; `sessions` takes a snapshot of the sessions."""

    sessions: Callable[[], Iterable[SessionInfo]]
    details: Details

    def respond(self, request: Request) -> Response:
        """Answer with the help page, a table, or the error in the query."""
        try:
            query = Query.parse(request.query)
        except QueryError as error:
            return text_error(400, str(error))
        now_ns = time.time_ns()
        connected = [session for session in self.sessions() if not session.link]
        if not query.title:
            return self._overview(connected, query, request.prefix)
        n_of_key = Counter(session.key for session in connected)
        active = {session.key for session in connected if session.active}
        rows = [
            Row(session, _started_ns(session, now_ns))
            for session in connected
            if query.accepts(session)
        ]
        shown, n_remaining = page_of(rows, query)
        following = ""
        if n_remaining:
            last = shown[-1]
            cursor = {
                "after": COLUMNS[query.sort].text(last),
                "afterconn": str(last.session.handle),
            }
            following = query.link(**cursor)
        items = [
            self._described(row, n_of_key[row.session.key] > 1, row.session.key not in active)
            for row in shown
        ]
        summary: dict[str, Any] = {
            "query": query.title,
            "conns": len(rows),
            "keys": len({row.session.key for row in rows}),
            "remaining": n_remaining,
        }
        if following:
            summary["next"] = following
        if query.as_json:
            return self._json(summary | {"clients": items})
        return self._html(_table(query, summary, items), request.prefix)

    def _overview(self, connected: Sequence[SessionInfo], query: Query, prefix: str) -> Response:
        n_keys = len({session.key for session in connected})
        if query.as_json:
            return self._json({"conns": len(connected), "keys": n_keys})
        return self._html(_overview_body(len(connected), n_keys, query.parameters), prefix)

    def _described(self, row: Row, dup: bool, disabled: bool) -> dict[str, Any]:
        """Return the JSON members of a connection."""
        session, totals = row.session, row.session.totals
        started = datetime.fromtimestamp(row.started_ns / _NS, UTC)
        return {
            "connNum": session.handle,
            "key": row.key,
            "remote": format_address((address_text(session.addr), session.port)),
            "connectedAt": started.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "connected": int(totals.seconds * _NS),
            "active": session.active,
            "dup": dup,
            "disabled": disabled,
            "home": session.preferred,
            "meshPeer": session.mesh,
            "notIdeal": session.not_ideal,
            "prober": session.prober,
            "version": self.details.version(session.handle),
            "appName": session.app_name.decode(),
            "rxPkts": totals.rx_packets,
            "rxBytes": totals.rx_bytes,
            "txPkts": totals.tx_packets,
            "txBytes": totals.tx_bytes,
            "dropped": totals.dropped,
            "waitingBytes": session.backlog_bytes,
            "rttMicros": self.details.round_trip_us(session.handle),
            "senders": session.senders,
        }

    def _json(self, document: dict[str, Any]) -> Response:
        body = json.dumps(document, indent="\t") + "\n"
        return Response(200, body.encode(), "application/json")

    def _html(self, body: str, prefix: str) -> Response:
        page = document("DERP clients", body, prefix, kind="debug")
        return Response(200, page, "text/html; charset=utf-8")


def page_of(rows: list[Row], query: Query) -> tuple[list[Row], int]:
    """Return the rows of the page that a query asks for, and how many follow it."""
    value = COLUMNS[query.sort].value
    rows = sorted(rows, key=lambda row: (value(row), row.session.handle), reverse=query.descending)
    if query.after is not None:
        limit_value, number = query.after

        def is_behind(row: Row) -> bool:
            here = value(row)
            if here == limit_value:
                if number is None:
                    return False
                handle = row.session.handle
                return handle < number if query.descending else handle > number
            return bool(here < limit_value if query.descending else here > limit_value)

        rows = [row for row in rows if is_behind(row)]
    return rows[: query.limit], max(0, len(rows) - query.limit)


def _started_ns(session: SessionInfo, now_ns: int) -> int:
    # The session's age is read before the clock. Rounding makes the start the same on every page of
    # a list.
    return (now_ns - int(session.totals.seconds * _NS)) // _START_NS * _START_NS


_EXPLANATION = """<h1>DERP clients</h1>
<p>{conns} connections of {keys} keys. <a href="?{all}">Show all clients</a></p>
<form>{key}<label for=ip>Address</label>
<input id=ip name=ip size=40 placeholder="192.0.2.1"> <button>Show</button></form>
<form>{key}<label for=cidr>Network</label>
<input id=cidr name=cidr size=40 placeholder="192.0.2.0/24"> <button>Show</button></form>
<form>{key}<label for=key>Key</label>
<input id=key name=key size=40 placeholder="nodekey:…"> <button>Show</button></form>
<form>{key}<label for=app>App name</label>
<input id=app name=app size=40> <button>Show</button></form>
<p>Parameters of the query:</p>
<dl>
<dt>all, ip, cidr, key<dd>one of them chooses the clients
<dt>app<dd>an app name; several times for several, alone or beside one of those
<dt>sort<dd>key, ip, conn, connected, rx, tx, rxpkts, txpkts, dropped or waiting; - in front to
reverse it
<dt>limit<dd>the number of rows, up to 1000
<dt>after, afterconn<dd>where the page begins: a value of the sorted column (connected: Unix
nanoseconds, or a duration such as 30m) and the number of a connection
<dt>format<dd>json
</dl>"""
_HEADS = {
    "connNum": ("connection", "conn"),
    "key": ("key", "key"),
    "remote": ("remote", "ip"),
    "connected": ("connected", "connected"),
    "flags": ("flags", ""),
    "version": ("version", ""),
    "appName": ("app", ""),
    "rxPkts": ("packets received", "rxpkts"),
    "rxBytes": ("bytes received", "rx"),
    "txPkts": ("packets sent", "txpkts"),
    "txBytes": ("bytes sent", "tx"),
    "dropped": ("packets dropped", "dropped"),
    "waitingBytes": ("bytes waiting", "waiting"),
    "rtt": ("round trip", ""),
    "senders": ("senders", ""),
}
_NUMBERS = ("rxPkts", "rxBytes", "txPkts", "txBytes", "dropped", "waitingBytes", "senders")
_CLASSES = {
    "key": " class=key",
    "remote": " class=remote",
    **dict.fromkeys((*_NUMBERS, "rtt"), " class=number"),
}
_FLAGS = ("dup", "disabled", "home", "meshPeer", "notIdeal", "prober")


def _overview_body(n_connections: int, n_keys: int, parameters: Iterable[tuple[str, str]]) -> str:
    """Return the page without a query; `parameters` may have the debug key, for its links."""
    key = [(name, value) for name, value in parameters if name == "debugkey"]
    return _EXPLANATION.format(
        conns=n_connections,
        keys=n_keys,
        all=html_text(urlencode([("all", "1"), *key])),
        key="".join(
            f'<input type=hidden name={name} value="{html_text(value)}">' for name, value in key
        ),
    )


def _table(query: Query, summary: dict[str, Any], items: list[dict[str, Any]]) -> str:
    heads = "".join(
        f"<th{_CLASSES.get(name, '')}>{_head(query, text, sort)}"
        for name, (text, sort) in _HEADS.items()
    )
    overview = urlencode([pair for pair in query.parameters if pair[0] == "debugkey"])
    lines = [
        f"<h1>DERP clients: {html_text(query.title)}</h1>",
        f'<p><a href="./{"?" if overview else ""}{html_text(overview)}">Overview</a></p>',
        f"<p>{len(items)} of {summary['conns']} connections of {summary['keys']} keys.",
    ]
    if "next" in summary:
        lines.append(
            f'<a href="{html_text(summary["next"])}">Next page</a> ({summary["remaining"]} more)'
        )
    lines += ["<table>", f"<thead><tr>{heads}</thead>"]
    for item in items:
        shown = item | {
            "connected": _age(item["connected"] // _NS),
            "flags": " ".join(flag for flag in _FLAGS if item[flag]),
            "rtt": "" if item["rttMicros"] is None else f"{item['rttMicros'] / 1000:.1f} ms",
            **{name: f"{item[name]:,}" for name in _NUMBERS},
        }
        cells = (
            f'<td{_CLASSES.get(name, "")} data-name="{text}">{html_text(str(shown[name]))}</td>'
            for name, (text, _) in _HEADS.items()
        )
        lines.append(f"<tr>{''.join(cells)}")
    return "\n".join([*lines, "</table>"])


def _age(seconds: int) -> str:
    """Return a duration as `after` takes it: 5s, 3m20s, 49h0m7s."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s" if minutes else f"{rest}s"
    )


def _head(query: Query, text: str, sort: str) -> str:
    """Return the head of a column, with a link that sorts by it or reverses the order."""
    if not sort:
        return text
    is_sorted = sort == query.sort
    turned = is_sorted and not query.descending
    arrow = (" ▼" if query.descending else " ▲") if is_sorted else ""
    link = html_text(query.link(sort=("-" if turned else "") + sort))
    return f'<a href="{link}">{text}</a>{arrow}'
