"""Makes the dashboard for Grafana 10 or later from a table of panels.

The description of a panel is the help of its metrics. The labels `job` and `instance`, which
Prometheus adds, choose the relays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple

from fastderp.server.observe.metrics import METRICS, Metric

SCHEMA_VERSION = 38
COLUMNS = 24
# Every fastderp relay has it, and derper has not.
OF_EVERY_RELAY = "fastderp_connections_not_logged_in"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# What a query writes for the labels of the chosen relays, and for the time of a rate.
ABBREVIATIONS = {"$relays": 'job=~"$job",instance=~"$instance"', "$rate": "$__rate_interval"}

_BY_NAME = {metric.name: metric for metric in METRICS}
_DAYS_LEFT = "(fastderp_certificate_expiry_unix_time{$relays} - time()) / 86400"


class Query(NamedTuple):
    """A query in PromQL with ABBREVIATIONS, and the name of its lines."""

    text: str
    legend: str = "{{instance}}"

    @property
    def expression(self) -> str:
        """The query in PromQL."""
        text = self.text
        for short, long in ABBREVIATIONS.items():
            text = text.replace(short, long)
        return text

    @property
    def metrics(self) -> list[Metric]:
        """The metrics of the query. Raises KeyError for one that the relay does not export."""
        return [
            _BY_NAME[name] for name in re.findall(r"(\w+?)(?:_bucket|_sum|_count)?\{", self.text)
        ]


class Panel(NamedTuple):
    """A panel; `unit` is Grafana's word. A `stat` is one number, green within its limits.

    Args:
        orange_from: a stat is orange from this value on, and green below.
        green_from: a stat is red below this value, and green from it on.
    """

    title: str
    unit: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    is_stacked: bool = False
    orange_from: float | None = None
    green_from: float | None = None


class Row(NamedTuple):
    """Panels below a heading; the size of each is in units of Grafana's grid."""

    title: str
    panels: tuple[Panel, ...]
    width: int = 8
    height: int = 8


def _rate(metric: str, name: str = "") -> Query:
    """Query the rate of a counter for each relay."""
    return Query(f"rate({metric}{{$relays}}[$rate])", f"{{{{instance}}}} {name}".rstrip())


def _gauge(metric: str, name: str = "") -> Query:
    """Query a gauge of each relay."""
    return Query(f"{metric}{{$relays}}", f"{{{{instance}}}} {name}".rstrip())


def _rates_by(metric: str, *labels: str) -> Query:
    """Query the rate of a counter by its labels, for all relays together."""
    legend = " ".join(f"{{{{{label}}}}}" for label in labels)
    return Query(f"sum by ({', '.join(labels)}) (rate({metric}{{$relays}}[$rate]))", legend)


def _quantile(metric: str, quantile: float) -> Query:
    """Query a quantile of a histogram for each relay."""
    rates = f"rate({metric}_bucket{{$relays}}[$rate])"
    return Query(
        f"histogram_quantile({quantile}, sum by (instance, le) ({rates}))",
        f"{{{{instance}}}} p{quantile * 100:g}",
    )


def _total(text: str) -> tuple[Query]:
    return (Query(f"sum({text})", ""),)


NOW = (
    Panel("Clients", "short", _total("derp_current_connections{$relays}"), "stat"),
    Panel("Packets", "pps", _total("rate(derp_packets_sent{$relays}[$rate])"), "stat"),
    Panel("Bytes", "Bps", _total("rate(derp_bytes_sent{$relays}[$rate])"), "stat"),
    Panel("Drops", "pps", _total("rate(derp_packets_dropped{$relays}[$rate])"), "stat"),
    Panel(
        "Mesh links down",
        "short",
        (
            Query(
                "count(sum by (instance, host) "
                '(fastderp_mesh_links{state=~"up|itself",$relays}) == 0) or vector(0)',
                "",
            ),
        ),
        "stat",
        orange_from=1,
    ),
    Panel(
        "Days until a certificate ends",
        "d",
        (Query(f"min({_DAYS_LEFT})", ""),),
        "stat",
        green_from=7,
    ),
)
TRAFFIC = (
    Panel(
        "Packets",
        "pps",
        (_rate("derp_packets_received", "received"), _rate("derp_packets_sent", "sent")),
    ),
    Panel(
        "Bytes", "Bps", (_rate("derp_bytes_received", "received"), _rate("derp_bytes_sent", "sent"))
    ),
    Panel(
        "Drops by reason", "pps", (_rates_by("derp_packets_dropped", "reason"),), is_stacked=True
    ),
    Panel(
        "Delay of packets in the relay",
        "s",
        tuple(_quantile("fastderp_queue_delay_seconds", share) for share in (0.5, 0.99, 0.999)),
    ),
    Panel(
        "Memory of waiting frames",
        "bytes",
        (_gauge("fastderp_backlog_bytes", "to write"), _gauge("fastderp_stash_bytes", "read")),
    ),
    Panel(
        "Frames per write",
        "short",
        (
            Query(
                "rate(derp_buffered_write_frames_sum{$relays}[$rate])"
                " / rate(derp_buffered_write_frames_count{$relays}[$rate])"
            ),
        ),
    ),
    Panel(
        "Round-trip times to clients", "cps", (_rates_by("derp_tcp_rtt", "le"),), is_stacked=True
    ),
    Panel(
        "Clients over their rate",
        "short",
        (_gauge("fastderp_clients_held_back"),),
    ),
    Panel(
        "STUN requests",
        "reqps",
        (
            _rates_by("stun_requests", "disposition"),
            _rate("fastderp_stun_dropped_total", "dropped"),
        ),
        is_stacked=True,
    ),
)
CLIENTS = (
    Panel(
        "Connections",
        "short",
        (
            _gauge("derp_current_connections", "logged in"),
            _gauge("derp_current_home_connections", "home"),
            _gauge("fastderp_connections_not_logged_in", "before login"),
        ),
    ),
    Panel(
        "Keys",
        "short",
        (_gauge("derp_clients_local", "here"), _gauge("derp_clients_remote", "mesh")),
    ),
    Panel("Logins", "cps", (_rate("derp_accepts"),)),
    Panel(
        "Ended before the login, by reason",
        "cps",
        (_rates_by("fastderp_closed_total", "reason"),),
        is_stacked=True,
    ),
    Panel(
        "Admission by verdict",
        "cps",
        (
            _rates_by("fastderp_admission_verdicts_total", "by", "verdict"),
            _rates_by("fastderp_admission_revoked_total", "by")._replace(legend="{{by}} revoked"),
        ),
        is_stacked=True,
    ),
    Panel(
        "Ended sessions by reason",
        "cps",
        (_rates_by("fastderp_session_closed_total", "reason"),),
        is_stacked=True,
    ),
    Panel(
        "Waiting TLS handshakes",
        "short",
        (
            _gauge("fastderp_handshakes_waiting", "for memory"),
            _gauge("fastderp_acme_handshakes_waiting", "for a certificate"),
        ),
    ),
    Panel("Memory of logins", "bytes", (_gauge("fastderp_login_memory_bytes"),)),
    Panel("Closed by the limit of accepts", "cps", (_rate("tls_listener_rejected_connections"),)),
)
REGION = (
    Panel(
        "Mesh links that are up",
        "short",
        (
            Query(
                'max by (instance, host) (fastderp_mesh_links{state=~"up|itself",$relays})',
                "{{instance}} to {{host}}",
            ),
        ),
    ),
    Panel(
        "Failures of mesh links",
        "cps",
        (Query("rate(fastderp_mesh_failures_total{$relays}[$rate])", "{{instance}} to {{host}}"),),
    ),
    Panel(
        "Packets between relays",
        "pps",
        (
            _rate("derp_packets_forwarded_in", "in"),
            _rate("derp_packets_forwarded_out", "out"),
            _rate("fastderp_packets_forwarded_lost_total", "lost"),
        ),
    ),
)
FILES = (
    Panel(
        "Days until the certificates end",
        "d",
        (Query(_DAYS_LEFT, "{{instance}} {{host}}"),),
    ),
    Panel(
        "Refused reloads in an hour, by part",
        "short",
        (
            Query(
                "sum by (part) (increase(fastderp_reloads_refused_total{$relays}[1h]))", "{{part}}"
            ),
            Query(
                "sum by (list) (increase(fastderp_admission_list_refused_total{$relays}[1h]))",
                "{{list}} keys",
            ),
        ),
    ),
    Panel(
        "Certificate orders in an hour, by outcome",
        "short",
        (
            Query(
                "sum by (outcome) (increase(fastderp_acme_orders_total{$relays}[1h]))",
                "{{outcome}}",
            ),
        ),
    ),
)
PROCESS = (
    Panel("Memory", "bytes", (_gauge("process_resident_memory_bytes"),)),
    Panel("CPU cores in use", "short", (_rate("process_cpu_seconds_total"),)),
    Panel(
        "Descriptors in use",
        "percentunit",
        (Query("process_open_fds{$relays} / process_max_fds{$relays}"),),
    ),
    Panel(
        "Delay of the event loop",
        "s",
        tuple(_quantile("fastderp_loop_lag_seconds", share) for share in (0.5, 0.99)),
    ),
    Panel(
        "Shortages and errors in an hour",
        "short",
        tuple(
            Query(f"increase({metric}{{$relays}}[1h])", f"{{{{instance}}}} {name}")
            for metric, name in (
                ("fastderp_accept_shortages_total", "accept"),
                ("fastderp_thread_shortages_total", "threads"),
                ("fastderp_log_lines_lost_total", "lost log lines"),
                ("fastderp_events_lost_total", "lost events"),
                ("fastderp_internal_errors_total", "internal: {{task}}"),
            )
        ),
    ),
    Panel("Time since the start", "s", (_gauge("uptime_sec"),)),
)
ROWS = (
    Row("Now", NOW, width=4, height=4),
    Row("Traffic", TRAFFIC),
    Row("Clients", CLIENTS),
    Row("Region", REGION),
    Row("Certificates and files", FILES),
    Row("Process", PROCESS),
)


def dashboard() -> str:
    """Return the dashboard as JSON."""
    model = {
        "title": "DERP relays (fastderp)",
        "uid": "fastderp",
        "tags": ["derp", "tailscale"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,  # one cursor on all panels
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": list(_variables())},
        "panels": list(_placed()),
    }
    return json.dumps(model, indent=2, ensure_ascii=False) + "\n"


def _variables() -> Iterator[dict[str, Any]]:
    """Yield the data source, and the choice of relays."""
    yield {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
    }
    for name, labels in (("job", ""), ("instance", '{job=~"$job"}')):
        query = f"label_values({OF_EVERY_RELAY}{labels}, {name})"
        yield {
            "name": name,
            "type": "query",
            "datasource": DATASOURCE,
            "query": {"query": query, "refId": name},
            "definition": query,
            "refresh": 2,  # with the time range
            "multi": True,
            "includeAll": True,
            "current": {"text": ["All"], "value": ["$__all"]},
        }


def _placed() -> Iterator[dict[str, Any]]:
    """Yield the headings and panels, from left to right in lines."""
    ids = count(1)
    top = 0
    for row in ROWS:
        place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        yield {"id": next(ids), "type": "row", "title": row.title, "gridPos": place, "panels": []}
        top += 1
        a_line = COLUMNS // row.width
        for number, panel in enumerate(row.panels):
            place = {
                "x": number % a_line * row.width,
                "y": top + number // a_line * row.height,
                "w": row.width,
                "h": row.height,
            }
            yield {"id": next(ids), **_panel(panel), "gridPos": place}
        top += -(-len(row.panels) // a_line) * row.height


def _panel(panel: Panel) -> dict[str, Any]:
    metrics = {metric.name: metric.help for query in panel.queries for metric in query.metrics}
    defaults: dict[str, Any] = {"unit": panel.unit, **_colours(panel)}
    options: dict[str, Any] = {}
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "axisSoftMin": 0,
            "fillOpacity": 20 if panel.is_stacked else 0,
            "stacking": {"mode": "normal" if panel.is_stacked else "none"},
        }
        options = {"legend": {"displayMode": "list", "placement": "bottom"}}
        options["tooltip"] = {"mode": "multi", "sort": "desc"}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": "\n\n".join(f"`{name}`: {text}" for name, text in metrics.items()),
        "datasource": DATASOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATASOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
            }
            for number, query in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
    }


def _colours(panel: Panel) -> dict[str, Any]:
    """Return the colours of a stat."""
    if panel.kind != "stat":
        return {}
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.orange_from is not None:
        steps.append({"color": "orange", "value": panel.orange_from})
    if panel.green_from is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.green_from}]
    return {"thresholds": {"mode": "absolute", "steps": steps}}
