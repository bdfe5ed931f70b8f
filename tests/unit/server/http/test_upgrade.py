"""The upgrade to DERP: its requests, the answer, and the cache of known heads."""

from __future__ import annotations

import pytest

from fastderp.server.http import pages
from fastderp.server.http import upgrade as derp
from tests.kit.http_heads import fields, get


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("value", ["DERP", "derp", "WebSocket"])
def test_the_upgrade_needs_no_connection_header_no_get_and_no_http_1_1(
    method: str, version: str, value: str
) -> None:
    upgrade = derp.derp_upgrade(get("/derp", f"Upgrade: {value}", method=method, version=version))
    assert upgrade == derp.Upgrade(fast_start=False, not_ideal=False)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Upgrade: derp, foo"],
        ["Upgrade: h2c"],
        ["Upgrade: h2c", "Upgrade: DERP"],
        ["Upgrade: "],
    ],
)
def test_other_requests_for_derp_are_answered_426(headers: list[str]) -> None:
    request = get("/derp", *headers)
    assert derp.derp_upgrade(request) is None
    status, fields_, body = fields(pages.upgrade_required(request).encode(request, close=False))
    assert status == "HTTP/1.1 426 Upgrade Required"
    assert fields_["X-Content-Type-Options"] == "nosniff"
    assert body == b"DERP requires connection upgrade\n"


@pytest.mark.parametrize(
    ("value", "fast"), [("1", True), ("0", False), ("true", False), ("", False)]
)
def test_only_the_value_1_asks_for_a_fast_start(value: str, fast: bool) -> None:
    upgrade = derp.derp_upgrade(get("/derp", "Upgrade: DERP", f"Derp-Fast-Start: {value}"))
    assert upgrade is not None and upgrade.fast_start is fast


def test_a_client_that_is_not_at_its_ideal_node_is_flagged() -> None:
    upgrade = derp.derp_upgrade(get("/derp", "Upgrade: DERP", "Ideal-Node: 1a"))
    assert upgrade is not None and upgrade.not_ideal


def test_the_101_response_is_literal() -> None:
    assert derp.switching_protocols("ab" * 32) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\n"
        b"Connection: Upgrade\r\nDerp-Version: 2\r\n"
        b"Derp-Public-Key: " + b"ab" * 32 + b"\r\n\r\n"
    )


UPGRADE = derp.Upgrade(fast_start=True, not_ideal=False)


def test_a_cached_upgrade_is_recognised_with_the_bytes_behind_it() -> None:
    head = b"GET /derp HTTP/1.1\r\nHost: a\r\nUpgrade: DERP\r\n\r\n"
    known = derp.KnownUpgrades()
    assert known.find(head) is None
    known.remember(head, UPGRADE)
    assert known.find(head + b"login") == (UPGRADE, b"login")
    for other in (head[:-1], head.replace(b"a", b"b"), b"x" + head, b"", b"\r\n\r\n" + head):
        assert known.find(other) is None


def test_varying_heads_evict_each_other_and_long_ones_are_not_cached() -> None:
    known = derp.KnownUpgrades()
    heads = [b"GET /derp HTTP/1.1\r\nA: %d\r\n\r\n" % i for i in range(derp.KNOWN_HEADS + 1)]
    for head in heads:
        known.remember(head, UPGRADE)
    assert [known.find(head) is not None for head in heads] == [False] + [True] * derp.KNOWN_HEADS
    long = b"GET /derp HTTP/1.1\r\nA: " + bytes(derp.KNOWN_HEAD_BYTES) + b"\r\n\r\n"
    known.remember(long, UPGRADE)
    assert known.find(long) is None
