"""Recorded pages of a relay as figures, and the rates between two of them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fastderp.top.figures import Client, Clients, Metrics, Rates, Reading, client_rates

VARZ = """\
# TYPE derp_packets_received counter
# HELP derp_packets_received packets received from clients
derp_packets_received 1000
# TYPE derp_current_connections gauge
derp_current_connections 3
derp_packets_dropped{reason="queue_head",kind="disco"} 1
derp_packets_dropped{reason="queue_head",kind="other"} 4
derp_packets_dropped{reason="unknown_dest",kind="other"} 7
fastderp_loop_lag_seconds_bucket{le="0.001"} 90
fastderp_loop_lag_seconds_bucket{le="0.0025"} 99
fastderp_loop_lag_seconds_bucket{le="+Inf"} 100
fastderp_session_closed_total{reason="eof"} 5
fastderp_mesh_links{host="a\\"b,c=\\"}",state="up"} 1
process_start_time_seconds 1796035838.066
version{version="0.1.0",binary="fastderp-relay"} 1
"""
LATER = """\
derp_packets_received 1500
derp_current_connections 4
derp_packets_dropped{reason="queue_head",kind="disco"} 1
derp_packets_dropped{reason="queue_head",kind="other"} 24
derp_packets_dropped{reason="unknown_dest",kind="other"} 7
derp_packets_dropped{reason="write_error",kind="other"} 30
fastderp_loop_lag_seconds_bucket{le="0.001"} 90
fastderp_loop_lag_seconds_bucket{le="0.0025"} 109
fastderp_loop_lag_seconds_bucket{le="+Inf"} 110
fastderp_session_closed_total{reason="eof"} 7
fastderp_session_closed_total{reason="reset"} 1
process_start_time_seconds 1796035838.066
"""
KEY = "nodekey:" + "ab" * 32


def item(number: int = 1, **members: Any) -> dict[str, Any]:
    """Return a client as the page has it."""
    return {
        "connNum": number,
        "key": KEY,
        "remote": "192.0.2.7:41234",
        "connectedAt": "2026-11-30T10:50:00.000Z",
        "connected": 90_000_000_000,
        "active": True,
        "dup": False,
        "disabled": False,
        "home": True,
        "meshPeer": False,
        "notIdeal": False,
        "prober": False,
        "version": 2,
        "appName": "ci-runner",
        "rxPkts": 10,
        "rxBytes": 1000,
        "txPkts": 20,
        "txBytes": 2000,
        "dropped": 3,
        "waitingBytes": 4096,
        "rttMicros": 23_456,
        "senders": 0,
    } | members


def page(*items: dict[str, Any], conns: int | None = None) -> dict[str, Any]:
    return {"query": "all clients", "conns": conns or len(items), "keys": 1, "clients": [*items]}


def rates() -> Rates:
    """Return the rates between the recorded pages, two seconds apart."""
    return Rates.between(Reading(10.0, Metrics.parse(VARZ)), Reading(12.0, Metrics.parse(LATER)))


def test_metrics_are_read_with_their_labels() -> None:
    metrics = Metrics.parse(VARZ)
    assert metrics.total("derp_packets_received") == 1000
    assert metrics.total("derp_packets_dropped") == 12
    assert metrics.total("no_such_metric") is None
    assert metrics.by("derp_packets_dropped", "reason") == {"queue_head": 5, "unknown_dest": 7}
    assert metrics.label("version", "version") == "0.1.0"
    assert metrics.label("fastderp_mesh_links", "state") == "up"


@pytest.mark.parametrize("text", ["<!doctype html>\n<p>hello", "derp_accepts many"])
def test_another_text_is_no_metrics(text: str) -> None:
    with pytest.raises(ValueError):
        Metrics.parse(text)


def test_counters_become_rates_by_reason() -> None:
    assert rates().rate("derp_packets_received") == 250
    assert rates().rate("no_such_metric") is None
    assert rates().rates("derp_packets_dropped", "reason") == {"write_error": 15, "queue_head": 10}


def test_logins_are_the_sessions_that_began_even_if_they_ended() -> None:
    assert rates().logins() == 2.0  # one more is connected, and three have ended


def test_the_loop_lag_is_that_of_the_interval() -> None:
    assert rates().upper_bound("fastderp_loop_lag_seconds", 0.99) == 0.0025
    assert rates().upper_bound("no_such_histogram", 0.99) is None
    slow = LATER.replace('{le="+Inf"} 110', '{le="+Inf"} 130')
    lagging = Rates.between(Reading(10.0, Metrics.parse(VARZ)), Reading(12.0, Metrics.parse(slow)))
    assert lagging.upper_bound("fastderp_loop_lag_seconds", 0.99) == math.inf


def test_a_restarted_relay_has_no_rates_until_its_second_answer() -> None:
    after = Reading(12.0, Metrics.parse(LATER.replace("1796035838.066", "1796035999.5")))
    restarted = Rates.between(Reading(10.0, Metrics.parse(VARZ)), after)
    assert restarted.rate("derp_packets_received") is None
    assert restarted.logins() is None
    assert restarted.rates("derp_packets_dropped", "reason") == {}
    assert restarted.total("derp_packets_received") == 1500


def test_a_client_is_read_with_its_flags() -> None:
    client = Client.parse(item(prober=True))
    assert (client.key, client.address, client.app) == ("[q6urq]", "192.0.2.7:41234", "ci-runner")
    assert (client.flags, client.connected_s) == ("home prober", 90)
    assert client.bytes_both == 3000


def test_control_characters_of_strangers_are_escaped() -> None:
    client = Client.parse(item(appName="\x1b]0;owned\x07\u202e\x9b", remote="\x1b[2J"))
    for text in (client.app, client.address):
        assert text.isascii() and text.isprintable()


@pytest.mark.parametrize(
    "members",
    [{"key": 7}, {"key": "nodekey:zz"}, {"rxBytes": None}, {"connected": math.inf}],
    ids=str,
)
def test_another_object_is_no_client(members: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Client.parse(item(**members))


@pytest.mark.parametrize("answer", [{}, {"conns": 1}, {"conns": 1, "clients": 5}], ids=str)
def test_another_answer_is_no_list_of_clients(answer: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Clients.parse([answer], 0.0)


def test_clients_have_rates_between_two_lists() -> None:
    before = Clients.parse([page(item())], 10.0)
    now = Clients.parse([page(item(rxPkts=14, rxBytes=1400, txPkts=20, txBytes=2600))], 12.0)
    [row] = client_rates(before, now)
    assert (row.packets_in, row.bytes_in, row.packets_out, row.bytes_out) == (2, 200, 0, 300)
    assert (row.bytes_both, row.packets_both) == (500, 2)


def test_a_client_that_came_between_two_lists_counts_from_zero() -> None:
    before = Clients.parse([page()], 10.0)
    [row] = client_rates(before, Clients.parse([page(item())], 12.0))
    assert (row.bytes_in, row.bytes_out) == (500, 1000)


def test_a_client_that_an_incomplete_list_left_out_has_no_rates_yet() -> None:
    before = Clients.parse([page(item(2), conns=5000)], 10.0)
    old, new = client_rates(
        before,
        Clients.parse([page(item(3), item(4, connected=1_000_000_000), conns=5000)], 12.0),
    )
    assert (old.bytes_in, old.bytes_both, old.packets_both) == (None, None, None)
    assert new.bytes_in == 500


def test_pages_in_different_orders_list_each_client_once() -> None:
    clients = Clients.parse([page(item(1), item(2)), page(item(2), item(3), conns=9)], 0.0)
    assert [client.number for client in clients.listed] == [1, 2, 3]
    assert (clients.n_connections, clients.is_complete) == (9, False)
