"""The relay's metrics, as Prometheus text and as JSON (PROTOCOL §14).

Values are collected on request; none of this runs per packet. This module writes the text itself,
because prometheus-client adds `_total` to the names of counters, unlike derper.
"""

from __future__ import annotations

import json
import math
import os
import resource
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import fastderp
from fastderp.dataplane.counters import COUNTERS, Counter
from fastderp.tls import library

Number = int | float
Labelled = Mapping[Any, Number]  # by label values: a tuple of str, or one str for a single label
Kind = Literal["counter", "gauge", "histogram", "untyped"]


class Histogram:
    """The number of observations up to each bound, and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Start empty; `bounds` ascend, and values above the last are counted, too."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum: Number = 0

    @classmethod
    def of(cls, bounds: Sequence[float], counts: Sequence[int], total: Number) -> Histogram:
        """Wrap counts made elsewhere: one per bucket, one above the last bound, and the sum."""
        histogram = cls(bounds)
        histogram._counts = list(counts)
        histogram._sum = total
        return histogram

    def observe(self, value: Number) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self) -> list[tuple[str, Number]]:
        """Return the numbers of the exposition, by the suffix of the metric's name."""
        n = 0
        rows: list[tuple[str, Number]] = []
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            n += count
            rows.append((f'_bucket{{le="{_number(bound)}"}}', n))
        return [*rows, ("_sum", self._sum), ("_count", n)]


Value = Number | Labelled | Histogram


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
    prefix = row.prefix or (f"{row.kind}_" if row.kind in ("gauge", "histogram") else "")
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
    _derp("current_file_descriptors", "gauge", "open file descriptors of this process", "gauge_"),
    _derp("memstats_sys0", "gauge", "resident memory at the end of the start, bytes", "gauge_"),
    _derp("watchers", "gauge", "mesh peers that watch presence", "gauge_"),
    _derp("mesh_update_batch_size", "histogram", "presence changes sent to a watcher in one write", "histogram_"),
    _derp("mesh_update_loop_count", "histogram", "writes per update of a watcher", "histogram_"),
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
    Metric("fastderp_closed_total", "counter", "connections that ended before their login, by stage and reason", ("reason",)),
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
    Metric("tls_listener_accepted_connections", "counter", "connections accepted on the TLS port"),
    Metric("tls_listener_rejected_connections", "counter", "connections refused on the TLS port by the limiter"),
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
            f"{name}{labels} {_number(value)}"
            for labels, value in _samples(metric, values.get(name, {}))
        )
    return "\n".join(lines) + "\n"


def expvar(values: Mapping[str, Value]) -> dict[str, Any]:
    """Arrange values by the names of the table as in `/debug/vars`: our own under "derp"."""
    tree: dict[str, Any] = {}
    for name in sorted({metric.name for metric in METRICS if metric.preset} | values.keys()):
        metric = _BY_NAME.get(name) or Metric(name, "untyped", "")
        place = tree.setdefault(metric.group, {}) if metric.group else tree
        place[metric.raw_name] = _plain(metric, values.get(name, {}))
    return tree


def vars_json(values: Mapping[str, Value]) -> str:
    """Write values as the JSON of `/debug/vars`."""
    return json.dumps(expvar(values), indent="\t", allow_nan=False) + "\n"


class Process:
    """Memory, time, descriptors and version of this process; create it at the relay's start."""

    def __init__(self, binary: str = "fastderp-relay") -> None:
        self.binary = binary
        self.started_unix: float = time.time()
        self._started = time.monotonic()
        self._resident_at_start = _statm()[1]
        self._boot_unix = _boot_unix()

    @property
    def uptime_s(self) -> int:
        """Whole seconds since the start."""
        return int(time.monotonic() - self._started)

    def metrics(self) -> dict[str, Value]:
        """Return the process's metrics under the names of the table."""
        virtual_bytes, resident_bytes = _statm()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        n_descriptors = _entries("/proc/self/fd")
        return {
            "derp_current_file_descriptors": n_descriptors,
            "derp_memstats_sys0": self._resident_at_start,
            "fastderp_crypto_info": {library.labels(): 1},
            **({"node_boot_time_seconds": self._boot_unix} if self._boot_unix else {}),
            "process_cpu_seconds_total": round(usage.ru_utime + usage.ru_stime, 3),
            "process_max_fds": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "process_open_fds": n_descriptors,
            "process_resident_memory_bytes": resident_bytes,
            "process_start_time_seconds": round(self.started_unix, 3),
            "process_start_unix_time": int(self.started_unix),
            "process_threads": _entries("/proc/self/task"),
            "process_virtual_memory_bytes": virtual_bytes,
            "uptime_sec": self.uptime_s,
            "version": {(fastderp.__version__, self.binary): 1},
        }


def _statm() -> tuple[int, int]:
    """Return virtual and resident memory in bytes; zeros where there is no /proc."""
    try:
        with open("/proc/self/statm", "rb") as file:
            virtual, resident = file.read().split()[:2]
    except OSError:
        return 0, 0
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return int(virtual) * page_bytes, int(resident) * page_bytes


def _boot_unix() -> int:
    """Return the start time of the machine; 0 if the system does not report it."""
    try:
        with open("/proc/stat", "rb") as file:
            times = [int(line.split()[1]) for line in file if line.startswith(b"btime ")]
    except OSError:
        return 0
    return times[0] if times else 0


def _entries(directory: str) -> int:
    try:
        return len(os.listdir(directory))
    except OSError:
        return 0


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
        return dict(value.samples())
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


def _number(value: Number) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else str(value)
