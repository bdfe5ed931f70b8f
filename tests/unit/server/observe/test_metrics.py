"""Metrics and debug pages: the two formats, and access to them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

import fastderp
from fastderp.errors import ConfigError
from fastderp.server.http.debug import DebugAccess, DebugPages
from fastderp.server.http.message import Request
from fastderp.server.observe import metrics
from fastderp.server.observe.process_metrics import Process
from fastderp.server.observe.values import Histogram, Value
from tests.kit.http_heads import at_once

SAMPLE = re.compile(r'[a-z_0-9]+(\{[a-z_]+="[^"\n]*"(,[a-z_]+="[^"\n]*")*\})? \S+')


def lines_of(values: Mapping[str, Value]) -> list[str]:
    return metrics.varz(values).splitlines()


def samples(values: Mapping[str, Value]) -> dict[str, str]:
    return dict(line.rsplit(" ", 1) for line in lines_of(values) if not line.startswith("#"))


def test_a_counter_is_shown_with_its_type_and_without_a_suffix() -> None:
    lines = lines_of({"derp_accepts": 3})
    assert "# TYPE derp_accepts counter" in lines
    assert "derp_accepts 3" in lines


def test_every_drop_reason_is_shown_before_the_first_drop() -> None:
    dropped = {name: value for name, value in samples({}).items() if "_dropped" in name}
    assert len(dropped) == 2 * 7 * 2
    assert set(dropped.values()) == {"0"}
    assert 'derp_packets_dropped{reason="queue_head",kind="disco"}' in dropped


def test_drops_are_shown_by_reason_and_kind() -> None:
    shown = samples({"derp_packets_dropped": {("queue_tail", "other"): 2}})
    assert shown['derp_packets_dropped{reason="queue_tail",kind="other"}'] == "2"
    assert shown['derp_packets_dropped{reason="queue_tail",kind="disco"}'] == "0"


def test_untyped_metrics_have_no_type_line() -> None:
    lines = lines_of({"derp_average_queue_duration_ms": 0.25})
    assert "derp_average_queue_duration_ms 0.25" in lines
    assert not any(line.startswith("# TYPE derp_average_queue_duration_ms") for line in lines)


def test_metrics_that_do_not_exist_yet_are_absent() -> None:
    assert "derp_multiforwarder_created" not in samples({})


def test_every_line_is_prometheus_text() -> None:
    values: dict[str, Value] = {metric.name: 1 for metric in metrics.METRICS if not metric.labels}
    values |= Process().metrics() | {"derp_tcp_rtt": {"10ms": 4, "inf": 1}}
    text = metrics.varz(values)
    assert text.endswith("\n")
    for line in text.splitlines():
        assert SAMPLE.fullmatch(line) or re.fullmatch(
            r"# (TYPE \w+ (counter|gauge|histogram)|HELP \w+ .+)", line
        ), line


def test_a_histogram_counts_up_to_each_bound_and_beyond() -> None:
    histogram = Histogram((0, 1, 5))
    for value in (0, 1, 1, 3, 100):
        histogram.observe(value)
    lines = lines_of({"derp_mesh_update_batch_size": histogram})
    assert "# TYPE derp_mesh_update_batch_size histogram" in lines
    shown = [
        line.removeprefix("derp_mesh_update_batch_size_")
        for line in lines
        if line.startswith("derp_mesh")
    ]
    assert shown == [
        'bucket{le="0"} 1', 'bucket{le="1"} 3', 'bucket{le="5"} 4', 'bucket{le="+Inf"} 5',
        "sum 105", "count 5",
    ]  # fmt: skip


def test_a_metric_outside_the_table_is_shown_untyped() -> None:
    assert samples({"derp_new_thing": 5, "other": {'a"b\n': 1}})["derp_new_thing"] == "5"
    assert 'other{label0="a\\"b\\n"} 1' in lines_of({"other": {'a"b\n': 1}})


@pytest.mark.parametrize(
    ("value", "text"),
    [(float("inf"), "+Inf"), (float("-inf"), "-Inf"), (float("nan"), "NaN"), (2**63, str(2**63))],
)
def test_numbers_are_written_as_prometheus_reads_them(value: float, text: str) -> None:
    assert samples({"derp_accepts": value})["derp_accepts"] == text


def test_names_are_unique_and_every_metric_has_a_help_text() -> None:
    names = [metric.name for metric in metrics.METRICS]
    assert len(set(names)) == len(names)
    assert all(metric.help for metric in metrics.METRICS)


def test_every_metric_of_the_operators_guide_exists() -> None:
    guide = (Path(__file__).parents[4] / "docs" / "operations.md").read_text()
    named = re.findall(r"\b((?:fastderp|process)_[a-z_]*[a-z])(?:\{(\w+)[=!])?", guide)
    labels = {metric.name: metric.labels for metric in metrics.METRICS}
    assert len(named) > 15
    assert [name for name, _ in named if name not in labels] == []
    assert [name for name, label in named if label not in ("", *labels[name])] == []


# the metrics of derper's dashboards: PROTOCOL §14, name by name
PROMISED = {
    "counter": """
        derp_accepts derp_total_dup_client_conns derp_bytes_received derp_packets_received
        derp_packets_received_kind derp_bytes_sent
        derp_packets_sent derp_packets_dropped derp_bytes_dropped derp_packets_forwarded_in
        derp_packets_forwarded_out
        derp_multiforwarder_created derp_multiforwarder_deleted
        derp_packet_forwarder_delete_other_value
        derp_peer_gone_disconnected_frames derp_peer_gone_not_here_frames derp_got_ping
        derp_sent_pong derp_home_moves_in
        derp_home_moves_out derp_unknown_frames derp_sclient_write_timeouts derp_tcp_rtt
        derp_rate_limit_per_client_waited
        derp_websocket_accepts tls_listener_accepted_connections tls_listener_rejected_connections
        stun_requests stun_addrfamily
        stun_no_local_addr
        bootstrap_dns_requests bootstrap_dns_published_hits bootstrap_dns_published_misses
        bootstrap_dns_unpublished_hits
        bootstrap_dns_unpublished_misses bootstrap_dns_unpublished_percent_misses
        bootstrap_dns_queried_domains uptime_sec
        process_cpu_seconds_total""",
    "gauge": """
        derp_current_connections derp_current_home_connections derp_current_notideal_connections
        derp_clients_local derp_clients_remote
        derp_clients_total derp_current_dup_client_keys derp_current_dup_client_conns
        derp_watchers derp_current_file_descriptors
        derp_memstats_sys0 derper_tls_active_version process_max_fds process_open_fds
        process_resident_memory_bytes
        process_start_time_seconds process_virtual_memory_bytes""",
    "histogram": """
        derp_mesh_update_batch_size derp_mesh_update_loop_count derp_buffered_write_frames""",
    "untyped": """
        derp_average_queue_duration_ms derp_rate_limit_per_client_bytes_per_second
        derp_rate_limit_per_client_burst_bytes
        derper_tls_request_version process_start_unix_time node_boot_time_seconds version""",
}
# without those of the Go runtime: goroutines, go_*, go_sync_mutex_wait_seconds, go_version,
# memstats_*
LABELS = {
    "derp_packets_received_kind": ("kind",), "derp_packets_dropped": ("reason", "kind"),
    "derp_bytes_dropped": ("reason", "kind"),
    "derp_tcp_rtt": ("le",), "derper_tls_request_version": ("version",),
    "derper_tls_active_version": ("version",),
    "stun_requests": ("disposition",), "stun_addrfamily": ("family",),
    "version": ("version", "binary"),
}  # fmt: skip


def test_protocol_metrics_have_type_and_labels_and_the_rest_our_prefix() -> None:
    promised = {
        name: (kind, LABELS.get(name, ()))
        for kind, names in PROMISED.items()
        for name in names.split()
    }
    table = {metric.name: (metric.kind, metric.labels) for metric in metrics.METRICS}
    assert {name: row for name, row in table.items() if not name.startswith("fastderp_")} == {
        **promised,
        "process_threads": ("gauge", ()),
    }


def test_vars_nest_the_relays_counters_under_their_internal_names() -> None:
    batches = Histogram((0, 1, 5))
    for value in (1, 3, 100):
        batches.observe(value)
    tree = json.loads(metrics.vars_json({
        "derp_mesh_update_batch_size": batches,
        "derp_accepts": 1, "derp_current_connections": 2,
        "derp_packets_received_kind": {"disco": 3}, "uptime_sec": 4,
        "stun_requests": {"success": 5}, "version": {("0.1.0", "fastderp-relay"): 1},
    }))  # fmt: skip
    assert tree["derp"] == {
        "version": fastderp.__version__, "accepts": 1, "gauge_current_connections": 2,
        "counter_mesh_update_batch_size": {
            "0": 0, "1": 1, "5": 2, "+Inf": 3, "sum": 104, "count": 3,
        },
        "counter_packets_received_kind": {"disco": 3, "other": 0},
    }  # fmt: skip
    assert tree["counter_uptime_sec"] == 4
    assert tree["stun"]["counter_requests"] == {
        "not_stun": 0,
        "read_error": 0,
        "success": 5,
        "write_error": 0,
    }
    assert tree["derp_packets_dropped"] == "MultiLabelMap"
    assert tree["version"] == fastderp.__version__


def test_the_process_metrics_have_size_and_age() -> None:
    values = Process().metrics()
    resident = values["process_resident_memory_bytes"]
    assert isinstance(resident, int) and resident > 1 << 20
    assert values["derp_memstats_sys0"]
    assert values["uptime_sec"] == 0
    assert values["node_boot_time_seconds"] == int(psutil.boot_time())
    assert values["version"] == {(fastderp.__version__, "fastderp-relay"): 1}


def request(
    path: str = "/debug/",
    *,
    remote: str = "127.0.0.1",
    query: str = "",
    headers: dict[str, str] | None = None,
    method: str = "GET",
) -> Request:
    return Request(
        method, path, path, query, "1.1", list((headers or {}).items()), remote=(remote, 5000)
    )


@pytest.mark.parametrize(
    "remote",
    [
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "::ffff:127.0.0.1",
        "100.64.0.1",
        "100.127.255.254",
        "fd7a:115c:a1e0::5",
    ],
)
def test_loopback_and_tailscale_addresses_have_access(remote: str) -> None:
    assert DebugAccess().allows(request(remote=remote))


@pytest.mark.parametrize(
    "remote",
    [
        "192.0.2.1",
        "10.0.0.1",
        "100.115.92.7",
        "100.115.93.200",
        "100.128.0.1",
        "fd7a:115c:a1e1::5",
        "::ffff:8.8.8.8",
        "",
    ],
)
def test_other_addresses_have_no_access(remote: str) -> None:
    assert not DebugAccess().allows(request(remote=remote))


@pytest.mark.parametrize("header", ["x-forwarded-for", "x-real-ip", "forwarded", "via"])
def test_forwarded_requests_have_no_access_from_any_address(header: str) -> None:
    assert not DebugAccess().allows(request(headers={header: "127.0.0.1"}))


def test_every_header_of_a_proxy_counts() -> None:
    twice = request(headers={"x-forwarded-for": ""})
    assert DebugAccess().allows(twice)
    twice.headers.append(("x-forwarded-for", "192.0.2.1"))
    assert not DebugAccess().allows(twice)


def test_the_environment_adds_an_address_and_networks() -> None:
    access = DebugAccess.from_environment(
        {"TS_ALLOW_DEBUG_IP": "192.0.2.1", "TS_DEBUG_TRUSTED_CIDRS": " 10.0.0.0/8 , 2001:db8::/32,"}
    )
    assert all(
        access.allows(request(remote=remote))
        for remote in ("192.0.2.1", "10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1")
    )
    assert not access.allows(request(remote="192.0.2.2"))


@pytest.mark.parametrize("variable", ["TS_ALLOW_DEBUG_IP", "TS_DEBUG_TRUSTED_CIDRS"])
def test_a_malformed_variable_is_refused(variable: str) -> None:
    with pytest.raises(ConfigError, match=rf"^\${variable}: 'junk'"):
        DebugAccess.from_environment({variable: "junk"})


def test_the_debug_key_gives_access_from_any_address(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("  s3cret \n")
    access = DebugAccess.from_environment({"TS_DEBUG_KEY_PATH": str(key)})
    forwarded = {"x-forwarded-for": "192.0.2.9"}
    assert access.allows(request(remote="192.0.2.1", query="debugkey=s3cret", headers=forwarded))
    assert not access.allows(request(remote="192.0.2.1", query="debugkey=other"))
    assert not access.allows(request(remote="192.0.2.1", query="debugkey=s3cret", method="POST"))
    assert not access.allows(request(remote="192.0.2.1", query="debugkey=%FF%00"))


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_missing_or_empty_key_file_gives_no_access(tmp_path: Path, content: str | None) -> None:
    key = tmp_path / "key"
    if content is not None:
        key.write_text(content)
    access = DebugAccess(key_path=key)
    assert not access.allows(request(remote="192.0.2.1", query="debugkey="))
    assert not access.allows(request(remote="192.0.2.1"))


@pytest.fixture
def pages() -> DebugPages:
    return DebugPages(values=lambda: {"derp_accepts": 7}, hostname="<derp>", check=all_is_well)


async def all_is_well() -> list[str]:
    return []


async def something_is_wrong() -> list[str]:
    return ["one key has no session", "no answer"]


def test_varz_and_vars_show_the_same_counter(pages: DebugPages) -> None:
    text = at_once(pages.respond(request("/debug/varz")))
    assert (text.status, text.content_type) == (200, "text/plain; charset=utf-8")
    assert b"\nderp_accepts 7\n" in text.body
    tree = at_once(pages.respond(request("/debug/vars")))
    assert json.loads(tree.body)["derp"]["accepts"] == 7


def test_the_index_links_the_pages_and_escapes_what_it_shows(pages: DebugPages) -> None:
    index = at_once(pages.respond(request())).body
    assert b"&lt;derp&gt;" in index
    for page in (b"vars", b"varz", b"check"):
        assert b'href="/debug/' + page + b'"' in index


def test_the_links_of_the_index_keep_the_debug_key(pages: DebugPages) -> None:
    index = at_once(pages.respond(request(query="debugkey=a%26%22"))).body
    assert b'href="/debug/varz?debugkey=a%26%22"' in index


async def test_check_answers_as_derper_does(pages: DebugPages) -> None:
    response = await pages.consistency()
    assert (response.status, response.body) == (200, b"derp.Server ConsistencyCheck okay")
    pages.check = something_is_wrong
    response = await pages.consistency()
    assert (response.status, response.body) == (500, b"one key has no session, no answer\n")


def test_an_unknown_page_is_404(pages: DebugPages) -> None:
    assert at_once(pages.respond(request("/debug/pprof/"))).status == 404


def test_a_refusal_has_the_address_in_dev_mode_only(pages: DebugPages) -> None:
    stranger = request("/debug/varz", remote="192.0.2.1")
    assert (at_once(pages.respond(stranger)).status, at_once(pages.respond(stranger)).body) == (
        403,
        b"debug access denied\n",
    )
    pages.dev = True
    assert b"192.0.2.1" in at_once(pages.respond(stranger)).body
