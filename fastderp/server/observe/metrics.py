"""The relay's metrics, as Prometheus text and as JSON (PROTOCOL §14).

The first page with metrics loads this module. It writes the text itself, because prometheus-client
adds `_total` to the names of counters, unlike derper.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import fastderp
from fastderp.dataplane.counters import COUNTERS, Counter
from fastderp.server.observe.values import Histogram, Number, Value, written

Kind = Literal["counter", "gauge", "histogram", "untyped"]


class Metric(NamedTuple):
    """One row of the table: the name on `/debug/varz`, the kind, and the help text.

    labels names the labels of a labelled metric, preset the label values shown even at zero.
    group and prefix give its place in `/debug/vars`: `{group: {prefix + name without group}}`.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    preset: tuple[tuple[str, ...], ...] = ()
    group: str = ""
    prefix: str = ""

    @property
    def raw_name(self) -> str:
        """The name inside its group on `/debug/vars`."""
        return self.prefix + (self.name.removeprefix(self.group + "_") if self.group else self.name)


def _derp(name: str, kind: Kind, text: str, prefix: str = "", **labels: Any) -> Metric:
    return Metric(f"derp_{name}", kind, text, group="derp", prefix=prefix, **labels)


def counted(row: Counter) -> Metric:
    """Return the metric of a row of the data plane's table of counters."""
    nested = row.owner == "derper" and row.nested
    prefix = row.prefix or {"gauge": "gauge_", "histogram": "counter_"}.get(row.kind, "")
    return Metric(
        row.metric,
        row.kind,
        row.help,
        tuple(label.name for label in row.labels),
        tuple(row.keys) if row.labels else (),
        "derp" if nested else "",
        prefix if nested else "",
    )


METRICS: tuple[Metric, ...] = (
    *(counted(row) for row in COUNTERS if row.owner != "part"),
    Metric("bootstrap_dns_published_hits", "counter", "requests for a published name", prefix="counter_"),
    Metric("bootstrap_dns_published_misses", "counter", "requests for a published name without addresses", prefix="counter_"),
    Metric("bootstrap_dns_queried_domains", "counter", "distinct names in requests since the table of names was last cleared",
           prefix="counter_"),
    Metric("bootstrap_dns_requests", "counter", "requests for /bootstrap-dns", prefix="counter_"),
    Metric("bootstrap_dns_unpublished_hits", "counter", "requests for an unpublished name", prefix="counter_"),
    Metric("bootstrap_dns_unpublished_misses", "counter", "requests for a name that is in neither list", prefix="counter_"),
    Metric("bootstrap_dns_unpublished_percent_misses", "counter",
           "requests for an unpublished name from clients outside its rollout", prefix="counter_"),
    _derp("accepts", "counter", "connections handed to the relay, before the login"),
    _derp("current_file_descriptors", "gauge", "open file descriptors of this process", "gauge_"),
    _derp("memstats_sys0", "gauge", "resident memory at the end of the start, bytes", "gauge_"),
    _derp("watchers", "gauge", "mesh peers that watch presence", "gauge_"),
    _derp("mesh_update_batch_size", "histogram", "presence changes sent to a watcher in one write", "counter_"),
    _derp("mesh_update_loop_count", "histogram", "writes per update of a watcher", "counter_"),
    _derp("rate_limit_per_client_burst_bytes", "untyped", "burst limit of each client, bytes"),
    _derp("rate_limit_per_client_bytes_per_second", "untyped", "rate limit of each client, bytes per second"),
    _derp("tcp_rtt", "counter", "sampled TCP round-trip times of connections", "counter_",
          labels=("le",)),
    Metric("derp_websocket_accepts", "counter", "connections over WebSocket"),
    Metric("derper_tls_active_version", "gauge", "requests in progress, by TLS version", ("version",), prefix="gauge_"),
    Metric("derper_tls_request_version", "untyped", "requests, by TLS version", ("version",)),
    Metric("fastderp_ace_connects_total", "counter", "CONNECT requests, by outcome", ("outcome",)),
    Metric("fastderp_ace_tunnels", "gauge", "open CONNECT tunnels"),
    Metric("fastderp_admission_list_keys", "gauge", "keys in the admission lists", ("list",)),
    Metric("fastderp_admission_list_refused_total", "counter", "unusable changes of a key list", ("list",)),
    Metric("fastderp_admission_revoked_total", "counter", "connections closed because their key was revoked, by list or service",
           ("by",)),
    Metric("fastderp_admission_verdicts_total", "counter", "verdicts, by list or service and by outcome",
           ("by", "verdict")),
    Metric("fastderp_accept_shortages_total", "counter", "pauses in accepting caused by a shortage of descriptors or memory"),
    Metric("fastderp_closed_total", "counter", "connections that ended before their login, by stage and reason, without visitors of pages", ("reason",)),
    Metric("fastderp_connections_not_logged_in", "gauge", "connections between accept and login"),
    Metric("fastderp_crypto_info", "gauge", "always 1; the labels name the crypto library in use", ("library", "version", "source")),
    Metric("fastderp_internal_errors_total", "counter", "unexpected exceptions, by the background task or handler that raised them",
           ("task",)),
    Metric("fastderp_log_lines_lost_total", "counter", "log lines lost because standard error was blocked or failed"),
    Metric("fastderp_handshakes_waiting", "gauge", "connections that wait for memory for their TLS handshake"),
    Metric("fastderp_login_memory_bytes", "gauge", "memory of connections before their login, bytes"),
    Metric("fastderp_loop_lag_seconds", "histogram", "delay of callbacks on the control plane's event loop, seconds"),
    Metric("fastderp_stun_dropped_total", "counter", "datagrams on the STUN port that the kernel dropped because its receive buffer was full"),
    Metric("fastderp_stun_unanswered_total", "counter", "datagrams on the STUN port while it was silent"),
    Metric("fastderp_thread_shortages_total", "counter", "threads for TLS handshakes that the system did not start"),
    Metric("fastderp_mesh_connects_total", "counter", "logins of mesh links", ("host",)),
    Metric("fastderp_mesh_failures_total", "counter", "mesh links that failed, before or after their login", ("host",)),
    Metric("fastderp_mesh_ignored_total", "counter", "frames of mesh peers ignored because they exceed a limit", ("reason",),
           (("keys",), ("watch",))),
    Metric("fastderp_mesh_keys", "gauge", "keys announced on a mesh link", ("host",)),
    Metric("fastderp_mesh_links", "gauge", "1 for the current state of each mesh link, else 0", ("host", "state")),
    Metric("fastderp_reloads_refused_total", "counter", "reloads that left the previous input in force, by part", ("part",)),
    Metric("fastderp_session_closed_total", "counter", "logged-in connections that ended, by reason", ("reason",)),
    Metric("fastderp_websocket_failures_total", "counter", "WebSockets closed for breaking the rules, by close code", ("code",)),
    Metric("fastderp_acme_handshakes_waiting", "gauge", "TLS handshakes that wait for a certificate from the CA"),
    Metric("fastderp_acme_orders_total", "counter", "certificate orders, by outcome", ("outcome",)),
    Metric("fastderp_certificate_expiry_unix_time", "gauge", "expiry of the certificate for a name or an address, seconds since 1970",
           ("host",)),
    Metric("node_boot_time_seconds", "untyped", "boot time of the machine, seconds since 1970"),
    Metric("process_cpu_seconds_total", "counter", "CPU time used, seconds"),
    Metric("process_max_fds", "gauge", "limit of open file descriptors of this process"),
    Metric("process_open_fds", "gauge", "open file descriptors of this process"),
    Metric("process_resident_memory_bytes", "gauge", "resident memory, bytes"),
    Metric("process_start_time_seconds", "gauge", "start time of this process, seconds since 1970"),
    Metric("process_start_unix_time", "untyped", "start time of this process, whole seconds since 1970"),
    Metric("process_threads", "gauge", "threads of this process"),
    Metric("process_virtual_memory_bytes", "gauge", "virtual memory, bytes"),
    Metric("stun_addrfamily", "counter", "valid STUN requests, by address family", ("family",),
           (("ipv4",), ("ipv6",)), "stun", "counter_"),
    Metric("stun_no_local_addr", "counter", "STUN requests whose destination address the kernel did not report", group="stun",
           prefix="counter_"),
    Metric("stun_requests", "counter", "datagrams on the STUN port, by outcome", ("disposition",),
           (("not_stun",), ("read_error",), ("success",), ("write_error",)), "stun", "counter_"),
    Metric("tls_listener_accepted_connections", "counter", "connections accepted on the TLS port", group="tls_listener",
           prefix="counter_"),
    Metric("tls_listener_rejected_connections", "counter", "connections refused on the TLS port by the limiter",
           group="tls_listener", prefix="counter_"),
    Metric("uptime_sec", "counter", "whole seconds since the start", prefix="counter_"),
    Metric("version", "untyped", "always 1; the labels name the version and the program", ("version", "binary")),
)  # fmt: skip

_BY_NAME = {metric.name: metric for metric in METRICS}


def varz(values: Mapping[str, Value]) -> str:
    """Write values, keyed by the names of the table, as Prometheus text 0.0.4.

    Metrics without a value are left out, unless they have preset labels. A name that is not in the
    table gets the type untyped.
    """
    lines: list[str] = []
    for name in sorted({metric.name for metric in METRICS if metric.preset} | values.keys()):
        metric = _BY_NAME.get(name) or Metric(name, "untyped", "")
        if metric.kind != "untyped":
            lines.append(f"# TYPE {name} {metric.kind}")
        if metric.help:
            lines.append(f"# HELP {name} {metric.help}")
        lines += (
            f"{name}{labels} {written(value)}"
            for labels, value in _samples(metric, values.get(name, {}))
        )
    return "\n".join(lines) + "\n"


def expvar(values: Mapping[str, Value]) -> dict[str, Any]:
    """Arrange values by the names of the table as in `/debug/vars`: our own under "derp"."""
    tree: dict[str, Any] = {"derp": {"version": fastderp.__version__}}
    for name in sorted({metric.name for metric in METRICS if metric.preset} | values.keys()):
        metric = _BY_NAME.get(name) or Metric(name, "untyped", "")
        place = tree.setdefault(metric.group, {}) if metric.group else tree
        place[metric.raw_name] = _plain(metric, values.get(name, {}))
    return tree


def vars_json(values: Mapping[str, Value]) -> str:
    """Write values as the JSON of `/debug/vars`."""
    return json.dumps(expvar(values), indent="\t", allow_nan=False) + "\n"


def _samples(metric: Metric, value: Value) -> Iterable[tuple[str, Number]]:
    """Yield (suffix of the name, number) of one metric, sorted by labels."""
    if isinstance(value, Histogram):
        yield from value.samples()
        return
    if not isinstance(value, Mapping):
        yield "", value
        return
    rows: dict[tuple[str, ...], Number] = dict.fromkeys(metric.preset, 0)
    rows.update(
        (key if isinstance(key, tuple) else (key,), number) for key, number in value.items()
    )
    for key, number in sorted(rows.items()):
        names = (
            metric.labels
            if len(metric.labels) == len(key)
            else tuple(f"label{i}" for i in range(len(key)))
        )
        pairs = ",".join(
            f'{name}="{_escaped(text)}"' for name, text in zip(names, key, strict=True)
        )
        yield f"{{{pairs}}}", number


def _plain(metric: Metric, value: Value) -> Any:
    if isinstance(value, Histogram):
        return value.members()
    if not isinstance(value, Mapping):
        return value if math.isfinite(value) else str(value)
    if metric.name == "version":
        return fastderp.__version__
    if len(metric.labels) > 1:
        return "MultiLabelMap"
    counts: dict[str, Number] = dict.fromkeys((key for (key,) in metric.preset), 0)
    counts.update(
        (key if isinstance(key, str) else key[0], number) for key, number in value.items()
    )
    return dict(sorted(counts.items()))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
