"""`/debug/clients/`: filters, order, pages, malformed queries. PROTOCOL §22."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from fastderp.dataplane.reports import SessionInfo, Totals
from fastderp.server.http.clients import LIMIT_MAX, ClientsPage
from fastderp.util.net import address_bytes
from fastderp.wire.keys import NodePublic
from tests.kit.http_heads import get


class Details:
    """BOB has another version and is the only one with a round-trip time."""

    def version(self, handle: int) -> int:
        return 1 if handle == 2 else 2

    def round_trip_us(self, handle: int) -> int | None:
        return 1500 if handle == 2 else None


def session(handle: int, key: int, ip: str = "192.0.2.1", **changes: Any) -> SessionInfo:
    totals = Totals(
        seconds=100.0 - handle,
        rx_packets=handle,
        rx_bytes=10 * handle,
        tx_packets=0,
        tx_bytes=5,
        dropped=0,
    )
    return SessionInfo(
        handle=handle,
        key=bytes([key]) * 32,
        addr=address_bytes(ip),
        port=40000 + handle,
        mesh=False,
        link=False,
        prober=False,
        not_ideal=False,
        preferred=False,
        active=True,
        tls=True,
        worker=0,
        backlog_bytes=0,
        totals=totals,
        app_name=b"",
        senders=0,
    )._replace(**changes)


ANN = session(1, 0xA, app_name=b"tailscaled", preferred=True, backlog_bytes=4096)
BOB = session(2, 0xB, "2001:db8::7", app_name=b"<probe>", prober=True, senders=3)
BOB = BOB._replace(totals=BOB.totals._replace(dropped=7))
TWINS = [session(3, 0xC, active=False), session(4, 0xC, "198.51.100.9")]
PEER = session(5, 0xD, mesh=True)
OUR_LINK = session(6, 0xE, link=True)
PAGE = ClientsPage(lambda: [OUR_LINK, BOB, *TWINS, PEER, ANN], Details())


def ask(query: str) -> dict[str, Any]:
    response = PAGE.respond(get(f"/debug/clients/?format=json&{query}"))
    assert (response.status, response.content_type) == (200, "application/json")
    found: dict[str, Any] = json.loads(response.body)
    return found


def numbers(query: str) -> list[int]:
    return [client["connNum"] for client in ask(query)["clients"]]


def text(one: SessionInfo) -> str:
    return NodePublic(one.key).text


def test_a_client_is_described_as_derper_does_and_by_its_queue() -> None:
    [bob] = ask("ip=2001:db8::7")["clients"]
    assert bob.pop("connectedAt").endswith("Z")
    assert bob == {
        "connNum": 2,
        "key": text(BOB),
        "remote": "[2001:db8::7]:40002",
        "connected": 98_000_000_000,
        "active": True,
        "dup": False,
        "disabled": False,
        "home": False,
        "meshPeer": False,
        "notIdeal": False,
        "prober": True,
        "version": 1,
        "appName": "<probe>",
        "rxPkts": 2,
        "rxBytes": 20,
        "txPkts": 0,
        "txBytes": 5,
        "dropped": 7,
        "waitingBytes": 0,
        "rttMicros": 1500,
        "senders": 3,
    }
    [ann] = ask(f"key={text(ANN)}")["clients"]
    assert ann["waitingBytes"] == 4096 and ann["rttMicros"] is None


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("all=1", [1, 2, 3, 4, 5]),
        ("all=", [1, 2, 3, 4, 5]),
        ("ip=192.0.2.1", [1, 3, 5]),
        ("ip=::ffff:192.0.2.1", [1, 3, 5]),
        ("ip=192.0.2.1&cidr=&key=&sort=", [1, 3, 5]),
        ("cidr=198.51.100.0/24", [4]),
        ("cidr=2001:db8::/32", [2]),
        ("cidr=192.0.2.77/24", [1, 3, 5]),
        ("key=" + text(TWINS[0]), [3, 4]),
        ("app=tailscaled", [1]),
        ("app=tailscaled&app=%3Cprobe%3E", [1, 2]),
        ("app=", [3, 4, 5]),
        ("ip=192.0.2.1&app=", [3, 5]),
        ("ip=203.0.113.1", []),
        ("all=1&sort=-conn", [5, 4, 3, 2, 1]),
        ("all=1&sort=connected", [1, 2, 3, 4, 5]),
        ("all=1&sort=-rx&limit=2", [5, 4]),
        ("all=1&sort=rxpkts&after=3", [4, 5]),
        ("all=1&sort=-rxpkts&after=3", [2, 1]),
        ("all=1&sort=tx&after=5&afterconn=3", [4, 5]),
        ("all=1&sort=tx&after=5", []),
        ("all=1&sort=ip&after=192.0.2.1", [4, 2]),
        ("all=1&sort=connected&after=97s", [4, 5]),
        ("all=1&limit=1000000", [1, 2, 3, 4, 5]),
    ],
)
def test_filters_and_orders(query: str, found: list[int]) -> None:
    assert numbers(query) == found


def test_duplicates_are_marked_and_disabled_only_when_none_of_them_is_active() -> None:
    twins = ask("key=" + text(TWINS[0]))["clients"]
    assert [(twin["dup"], twin["active"], twin["disabled"]) for twin in twins] == [
        (True, False, False),
        (True, True, False),
    ]
    asleep = ClientsPage(lambda: [TWINS[0], TWINS[1]._replace(active=False)], Details())
    answer = asleep.respond(get("/debug/clients/?all=1&format=json"))
    assert [client["disabled"] for client in json.loads(answer.body)["clients"]] == [True, True]


@pytest.mark.parametrize("sort", ["key", "ip", "conn", "connected", "rx", "tx", "rxpkts", "txpkts"])
@pytest.mark.parametrize("sign", ["", "-"])
def test_pages_follow_each_other_without_gap_or_overlap(
    sort: str, sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1_800_000_000_000_000_000)
    whole = numbers(f"all=1&sort={sign}{sort}")
    found, query = [], f"all=1&limit=2&sort={sign}{sort}"
    for n_remaining in (3, 1, 0):
        page = ask(query)
        assert (page["conns"], page["keys"], page["remaining"]) == (5, 4, n_remaining)
        found += [client["connNum"] for client in page["clients"]]
        query = page.get("next", "?")[1:]
    assert found == whole and not query


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("all=1&ip=192.0.2.1", "only one of all, ip, cidr, key may be given"),
        ("ip=x", 'bad ip "x": want an IP address'),
        ("cidr=192.0.2.1", 'bad cidr "192.0.2.1": want a prefix'),
        ("cidr=x/8", 'bad cidr "x/8": '),
        ("key=abc", 'bad key "abc": '),
        ("all=1&sort=connected&after=" + "9" * 400 + "h", "the duration is too long"),
        ("all=1&sort=connected&after=2562048h", "bad after "),
        ("all=1&sort=connected&after=%D9%A3h", "bad after "),
        (
            "all=1&sort=foo",
            'bad sort "foo"; want one of key, ip, conn, connected, rx, tx, rxpkts, txpkts',
        ),
        ("all=1&limit=0", f'bad limit "0"; want 1 to {LIMIT_MAX}'),
        ("all=1&limit=x", 'bad limit "x"'),
        ("all=1&limit=-1", 'bad limit "-1"'),
        ("all=1&format=xml", 'bad format "xml"; want json or html'),
        ("all=1&after=zz", 'bad after "zz" for sort by key: '),
        ("all=1&sort=rx&after=x", 'bad after "x" for sort by rx: want a whole number'),
        ("all=1&sort=connected&after=soon", "want Unix nanoseconds or a duration such as 30m"),
        ("all=1&sort=rx&after=1&afterconn=x", 'bad afterconn "x": '),
    ],
)
def test_a_wrong_value_is_a_400_that_names_it(query: str, message: str) -> None:
    response = PAGE.respond(get(f"/debug/clients/?{query}"))
    assert response.status == 400
    assert message in response.body.decode()


def test_without_a_query_the_page_has_its_usage_and_counts() -> None:
    response = PAGE.respond(get("/debug/clients/"))
    assert response.content_type == "text/html; charset=utf-8"
    assert b"5 connections of 4 keys" in response.body and b"cidr" in response.body
    assert ask("") == {"conns": 5, "keys": 4}


def test_the_page_without_a_query_keeps_the_debug_key_for_its_links_and_forms() -> None:
    body = PAGE.respond(get("/debug/clients/?debugkey=a%22%26b")).body.decode()
    assert 'href="?all=1&amp;debugkey=a%22%26b"' in body
    hidden = '<input type=hidden name=debugkey value="a&quot;&amp;b">'
    assert body.count(hidden) == body.count("<form>") == 4
    assert "debugkey" not in PAGE.respond(get("/debug/clients/")).body.decode()
    back = PAGE.respond(get("/debug/clients/?all=1&debugkey=k")).body.decode()
    assert 'href="./?debugkey=k">Overview</a>' in back


def test_each_cell_has_its_name_for_a_narrow_screen() -> None:
    body = PAGE.respond(get("/debug/clients/?all=1")).body.decode()
    heads = re.findall(r"<th[^>]*>(?:<a [^>]*>)?([^<]+)", body)
    rows = [re.findall(r'<td[^>]* data-name="([^"]+)"', row) for row in body.split("<tr>")[2:]]
    assert len(rows) == 5 and all(row == heads for row in rows)


def test_numbers_and_times_are_readable() -> None:
    totals = ANN.totals._replace(seconds=90_061.5, rx_bytes=1_234_567)
    page = ClientsPage(lambda: [ANN._replace(totals=totals)], Details())
    body = page.respond(get("/debug/clients/?all=1")).body.decode()
    assert ">25h1m1s</td>" in body and ">1,234,567</td>" in body


def test_the_sorted_column_is_marked() -> None:
    for query, marked in (("all=1", "key</a> ▲"), ("all=1&sort=-rx", "bytes received</a> ▼")):
        assert marked in PAGE.respond(get(f"/debug/clients/?{query}")).body.decode()


def test_the_table_links_its_columns_and_the_next_page_keeps_the_debug_key_and_escapes_names() -> (
    None
):
    body = PAGE.respond(get("/debug/clients/?all=1&limit=2&debugkey=s3cret")).body.decode()
    assert "&lt;probe&gt;" in body and "<probe>" not in body
    assert 'href="?all=1&amp;debugkey=s3cret&amp;sort=-key&amp;limit=2">key</a>' in body
    assert "Next page</a> (3 more)" in body
    assert body.count("<tr>") == 3
