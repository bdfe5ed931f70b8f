"""Request heads, responses and routes, without sockets."""

from __future__ import annotations

import pytest

from fastderp.server.http import message as http
from fastderp.server.http.message import BadRequest, HeadParser, Request, Routes, Site

HOST = b"Host: derp.example.com\r\n"


def parse(raw: bytes) -> tuple[Request, bytes]:
    """Parse one head given whole; return it and what follows."""
    parser = HeadParser()
    request = parser.feed(raw)
    assert request is not None
    return request, parser.rest


def refused(raw: bytes) -> BadRequest:
    """Feed a head that must be refused; return how."""
    with pytest.raises(BadRequest) as caught:
        assert HeadParser().feed(raw) is None
    return caught.value


def get(
    path: str, *headers: str, method: str = "GET", version: str = "1.1", secure: bool = False
) -> Request:
    """Parse a small request."""
    lines = [f"{method} {path} HTTP/{version}", "Host: derp.example.com", *headers, "", ""]
    request, rest = parse("\r\n".join(lines).encode("latin-1"))
    assert rest == b""
    request.secure = secure
    return request


def fields(encoded: bytes) -> tuple[str, dict[str, str], bytes]:
    """Split an encoded response into status line, headers and body."""
    head, _, body = encoded.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


# Heads


def test_bytes_behind_the_head_are_kept_exactly() -> None:
    login = bytes(range(256)) + b"\r\n\r\nGET / HTTP/1.1\r\n"
    request, rest = parse(
        b"GET /derp HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: DERP\r\n\r\n" + login
    )
    assert request.path == "/derp"
    assert rest == login


def test_space_around_a_header_value_is_not_part_of_it() -> None:
    assert get("/derp", "Upgrade: \t DERP \t ").header("upgrade") == "DERP"


@pytest.mark.parametrize(
    "body_header", [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"]
)
def test_a_body_announced_with_an_upgrade_is_part_of_the_stream(body_header: bytes) -> None:
    request, rest = parse(
        b"POST /derp HTTP/1.1\r\n" + HOST + b"Upgrade: DERP\r\n" + body_header + b"\r\nabcde"
    )
    assert http.derp_upgrade(request) is not None
    assert rest == b"abcde"


def test_a_head_may_arrive_byte_by_byte() -> None:
    raw = b"GET /derp?a=b HTTP/1.1\r\n" + HOST + b"Upgrade: DERP\r\n\r\n"
    parser = HeadParser()
    for i in range(len(raw) - 1):
        assert parser.feed(raw[i : i + 1]) is None
    request = parser.feed(raw[-1:] + b"\x02rest")
    assert request is not None
    assert (request.path, request.query, request.header("upgrade")) == ("/derp", "a=b", "DERP")
    assert parser.rest == b"\x02rest"


@pytest.mark.parametrize("cut", range(1, 8))
def test_the_end_of_the_head_may_be_split_anywhere(cut: int) -> None:
    raw = b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n\r\n"
    parser = HeadParser()
    assert parser.feed(raw[: len(raw) - cut]) is None
    assert parser.feed(raw[len(raw) - cut :] + b"next") is not None
    assert parser.rest == b"next"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"GET / HTTP/1.1\n" + HOST + b"\r\n", id="bare LF in the request line"),
        pytest.param(b"GET / HTTP/1.1\r\nA: b\nHost: x\r\n\r\n", id="bare LF between headers"),
        pytest.param(b"GET / HTTP/1.1\r\nA: b\rHost: x\r\n\r\n", id="bare CR between headers"),
        pytest.param(b"GET / HTTP/1.1\r\nA: b\0c\r\n" + HOST + b"\r\n", id="NUL in a value"),
        pytest.param(b"GET / HTTP/1.1\r\nA\0: b\r\n" + HOST + b"\r\n", id="NUL in a name"),
        pytest.param(b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n" + HOST + b"\r\n", id="folded header"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b" folded\r\n\r\n", id="folded Host"),
        pytest.param(b"GET / HTTP/1.1\r\nA : b\r\n" + HOST + b"\r\n", id="space before the colon"),
        pytest.param(
            b"GET / HTTP/1.1\r\nnonsense\r\n" + HOST + b"\r\n", id="header without a colon"
        ),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", id="two Hosts"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", id="malformed Host"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="no Host in 1.1"),
        pytest.param(
            b"GET / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n"
            + HOST
            + b"\r\n",
            id="CL and TE",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n" + HOST + b"\r\n",
            id="two lengths",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nContent-Length: +3\r\n" + HOST + b"\r\n", id="signed length"
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n" + HOST + b"\r\n",
            id="endless length",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n" + HOST + b"\r\n",
            id="unknown coding",
        ),
        pytest.param(b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", id="HTTP/2.0"),
        pytest.param(b"GET /\r\n\r\n", id="HTTP/0.9"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2 preface"),
        pytest.param(b"DESCRIBE / RTSP/1.0\r\n" + HOST + b"\r\n", id="RTSP"),
        pytest.param(b"\r\n\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n", id="empty lines first"),
        pytest.param(b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", id="space in the target"),
        pytest.param(b"garbage\r\n\r\n", id="garbage"),
        pytest.param(bytes(range(128, 256)), id="binary"),
    ],
)
def test_malformed_and_ambiguous_heads_are_refused_with_400(raw: bytes) -> None:
    error = refused(raw)
    assert error.status == 400
    status, headers, body = fields(error.response())
    assert status == "HTTP/1.1 400 Bad Request"
    assert headers["Connection"] == "close"
    assert body.startswith(b"400 Bad Request: ")


def test_a_head_beyond_24_kib_is_refused_with_431_without_being_kept() -> None:
    parser = HeadParser()
    parser.feed(b"GET / HTTP/1.1\r\n" + HOST + b"A: ")
    with pytest.raises(BadRequest) as caught:
        for _ in range(100):
            parser.feed(b"x" * 1024)
    assert caught.value.status == 431
    assert fields(caught.value.response())[0] == "HTTP/1.1 431 Request Header Fields Too Large"


def test_a_head_of_exactly_24_kib_is_served() -> None:
    start = b"GET / HTTP/1.1\r\n" + HOST + b"A: "
    request, _ = parse(start + b"x" * (24 * 1024 - len(start) - 4) + b"\r\n\r\n")
    assert request.path == "/"


def test_too_many_headers_are_refused_with_431() -> None:
    assert refused(b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 200 + b"\r\n").status == 431


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/derp", "/derp", ""),
        (b"/%64erp?x=%20y", "/derp", "x=%20y"),
        (b"http://derp.example.com:80/derp/probe", "/derp/probe", ""),
        (b"http://derp.example.com", "/", ""),
        (b"/derp%2fprobe", "/derp%2Fprobe", ""),
        (b"/a%20b%2Fc%2fd?q=%2f", "/a b%2Fc%2Fd", "q=%2f"),
    ],
)
def test_targets_are_read_in_every_form(target: bytes, path: str, query: str) -> None:
    request, _ = parse(b"GET " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    assert (request.path, request.query) == (path, query)


@pytest.mark.parametrize(
    ("version", "connection", "alive"),
    [("1.1", "", True), ("1.1", "close", False), ("1.0", "", False), ("1.0", "keep-alive", True)],
)
def test_the_connection_lives_as_the_client_asks(
    version: str, connection: str, alive: bool
) -> None:
    headers = [f"Connection: {connection}"] if connection else []
    assert get("/", *headers, version=version).keep_alive is alive


# The derp upgrade


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("value", ["DERP", "derp", "WebSocket"])
def test_the_upgrade_needs_no_connection_header_no_get_and_no_http_1_1(
    method: str, version: str, value: str
) -> None:
    upgrade = http.derp_upgrade(get("/derp", f"Upgrade: {value}", method=method, version=version))
    assert upgrade == http.Upgrade(fast_start=False, not_ideal=False)


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
def test_other_requests_for_derp_are_told_to_upgrade(headers: list[str]) -> None:
    request = get("/derp", *headers)
    assert http.derp_upgrade(request) is None
    status, fields_, body = fields(relay().respond(request).encode(request, close=False))
    assert status == "HTTP/1.1 426 Upgrade Required"
    assert fields_["X-Content-Type-Options"] == "nosniff"
    assert body == b"DERP requires connection upgrade\n"


@pytest.mark.parametrize(
    ("value", "fast"), [("1", True), ("0", False), ("true", False), ("", False)]
)
def test_only_the_value_1_asks_for_a_fast_start(value: str, fast: bool) -> None:
    upgrade = http.derp_upgrade(get("/derp", "Upgrade: DERP", f"Derp-Fast-Start: {value}"))
    assert upgrade is not None and upgrade.fast_start is fast


def test_a_client_away_from_its_first_node_is_flagged() -> None:
    upgrade = http.derp_upgrade(get("/derp", "Upgrade: DERP", "Ideal-Node: 1a"))
    assert upgrade is not None and upgrade.not_ideal


def test_the_101_response_is_literal() -> None:
    assert http.switching_protocols("ab" * 32) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: 2\r\n"
        b"Derp-Public-Key: " + b"ab" * 32 + b"\r\n\r\n"
    )


# Routes


def relay(**site: object) -> Routes:
    """Build the main table."""
    return http.relay_routes(Site(**site))  # type: ignore[arg-type]


def answer(request: Request, routes: Routes | None = None) -> tuple[str, dict[str, str], bytes]:
    """Answer a request as the wire would carry it, without the date."""
    status, headers, body = fields(
        (routes or relay()).respond(request).encode(request, close=False)
    )
    assert headers.pop("Date").endswith(" GMT")
    return status, headers, body


@pytest.mark.parametrize("path", ["/derp/probe", "/derp/latency-check"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_probes_answer_200_to_any_origin(path: str, method: str) -> None:
    assert answer(get(path, method=method)) == (
        "HTTP/1.1 200 OK",
        {"Access-Control-Allow-Origin": "*", "Content-Length": "0"},
        b"",
    )


@pytest.mark.parametrize("method", ["POST", "OPTIONS"])
def test_probes_refuse_other_methods(method: str) -> None:
    status, headers, body = answer(get("/derp/probe", method=method))
    assert status == "HTTP/1.1 405 Method Not Allowed"
    assert "Access-Control-Allow-Origin" not in headers
    assert body == b"bogus probe method\n"


@pytest.mark.parametrize("challenge", ["input", "ts_derp99b.tailscale.com", "x" * 64, "a:1-B_"])
def test_a_captive_portal_challenge_is_answered(challenge: str) -> None:
    status, headers, body = answer(get("/generate_204", f"X-Tailscale-Challenge: {challenge}"))
    assert status == "HTTP/1.1 204 No Content"
    assert headers == {
        "Cache-Control": "no-cache, no-store, must-revalidate, no-transform, max-age=0",
        "X-Tailscale-Response": f"response {challenge}",
    }
    assert body == b""


@pytest.mark.parametrize("challenge", ["", "with space", "x" * 65, "caf\xe9", "semi;colon"])
def test_an_odd_challenge_is_left_out_and_still_204(challenge: str) -> None:
    status, headers, _ = answer(
        get("/generate_204", f"X-Tailscale-Challenge: {challenge}", method="POST")
    )
    assert status == "HTTP/1.1 204 No Content"
    assert "X-Tailscale-Response" not in headers


def test_crawlers_are_turned_away() -> None:
    status, headers, body = answer(get("/robots.txt"))
    assert (status, body) == ("HTTP/1.1 200 OK", b"User-agent: *\nDisallow: /\n")
    assert headers["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_health_checks_and_scrapers_do_not_take_the_home_page_for_an_answer(path: str) -> None:
    for routes in (relay(), relay(home="blank"), relay(derp=False)):
        assert answer(get(path), routes)[0] == "HTTP/1.1 404 Not Found"


@pytest.mark.parametrize(
    "path", ["/", "/derp/", "/derp/x", "/derp%2fprobe", "/nope", "/index.html"]
)
def test_every_other_path_shows_the_home_page_with_security_headers(path: str) -> None:
    status, headers, body = answer(get(path))
    assert status == "HTTP/1.1 200 OK"
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Strict-Transport-Security"] == "max-age=63072000; includeSubDomains"
    assert headers["Content-Security-Policy"] == (
        "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'; "
        "block-all-mixed-content; object-src 'none'"
    )
    assert int(headers["Content-Length"]) == len(body)
    assert b"<h1>DERP</h1>" in body
    assert b"style=" not in body and b"<style" not in body


def test_head_has_the_length_of_the_page_and_no_body() -> None:
    _, headers, body = answer(get("/", method="HEAD"))
    assert int(headers["Content-Length"]) > 500
    assert body == b""


def test_the_home_page_says_what_the_operator_configured() -> None:
    _, _, plain = answer(get("/"))
    assert b"Status: disabled" not in plain and b"/debug/" not in plain and b"abuse" not in plain
    _, _, full = answer(
        get("/"),
        relay(hostname="derp1.tailscale.com", derp=False, debug_allowed=lambda request: True),
    )
    assert b"Status: disabled" in full and b'href="/debug/"' in full
    assert b"abuse" in full and b"https://tailscale.com/security-policies" in full
    _, _, escaped = answer(get("/"), relay(hostname="<b>"))
    assert b"<b>" not in escaped


def test_home_may_be_blank_or_elsewhere_and_nothing_else() -> None:
    assert answer(get("/"), relay(home="blank"))[2] == b""
    status, headers, _ = answer(get("/x"), relay(home="https://example.com/"))
    assert (status, headers["Location"]) == ("HTTP/1.1 302 Found", "https://example.com/")
    with pytest.raises(ValueError, match='unknown --home value "ftp://x"'):
        Site(home="ftp://x")


def test_a_decommissioned_relay_says_so_at_derp_only() -> None:
    status, _, body = answer(get("/derp", "Upgrade: DERP"), relay(derp=False))
    assert (status, body) == ("HTTP/1.1 404 Not Found", b"derp server disabled\n")
    assert answer(get("/derp/probe"), relay(derp=False))[0] == "HTTP/1.1 200 OK"


def test_debug_pages_can_be_plugged_in_below_debug() -> None:
    routes = relay()
    assert answer(get("/debug/varz"), routes)[0] == "HTTP/1.1 404 Not Found"
    routes.prefixes["/debug/"] = lambda request: http.Response(
        200, request.path.encode(), "text/plain"
    )
    assert answer(get("/debug/varz"), routes)[2] == b"/debug/varz"


@pytest.mark.parametrize("query", ["", "?debugkey=s3cret", "?debugkey=a%26b&c"])
def test_the_way_to_the_debug_pages_keeps_the_key(query: str) -> None:
    for routes in (relay(), plain_port()):
        status, headers, _ = answer(get(f"/debug{query}"), routes)
        assert (status, headers["Location"]) == (
            "HTTP/1.1 307 Temporary Redirect",
            f"/debug/{query}",
        )


def test_connect_is_refused() -> None:
    assert answer(get("example.com:443", method="CONNECT", secure=True))[::2] == (
        "HTTP/1.1 403 Forbidden",
        b"CONNECT not enabled\n",
    )
    assert answer(get("example.com:443", method="CONNECT"))[0] == "HTTP/1.1 404 Not Found"


def test_http_1_0_is_answered_in_its_version() -> None:
    request = get("/robots.txt", "Connection: keep-alive", version="1.0")
    encoded = relay().respond(request).encode(request, close=False)
    assert (
        encoded.startswith(b"HTTP/1.0 200 OK\r\n") and b"\r\nConnection: keep-alive\r\n" in encoded
    )
    assert b"\r\nConnection:" not in relay().respond(request).encode(request, close=True)


def test_a_redirect_has_a_page_for_browsers_only() -> None:
    _, headers, body = answer(get("/debug"))
    assert headers["Content-Type"] == "text/html; charset=utf-8" and b'href="/debug/"' in body
    _, headers, body = answer(get("/debug", method="POST"))
    assert "Content-Type" not in headers and body == b""


# The plain port beside TLS


def plain_port(**site: object) -> Routes:
    """Build the table of port 80."""
    settings = Site(**site)  # type: ignore[arg-type]
    return http.http_port_routes(settings, http.relay_routes(settings))


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/", "https://derp.example.com/"),
        ("/a%20b?c=d", "https://derp.example.com/a%20b?c=d"),
        ("http://other/x?y", "https://derp.example.com/x?y"),
        ("/derp", "https://derp.example.com/derp"),
        ("/derp/probe", "https://derp.example.com/derp/probe"),
    ],
)
def test_the_plain_port_redirects_to_the_same_page_over_tls(target: str, location: str) -> None:
    status, headers, _ = answer(get(target), plain_port())
    assert (status, headers["Location"]) == ("HTTP/1.1 302 Found", location)


def test_the_plain_port_serves_no_relay_and_no_other_method() -> None:
    assert answer(get("/derp", "Upgrade: DERP"), plain_port())[0] == "HTTP/1.1 302 Found"
    assert answer(get("/", method="POST"), plain_port())[::2] == (
        "HTTP/1.1 400 Bad Request",
        b"Use HTTPS\n",
    )


def test_the_plain_port_answers_captive_portal_checks_and_debug() -> None:
    assert answer(get("/generate_204"), plain_port())[0] == "HTTP/1.1 204 No Content"
    assert b"<h1>DERP</h1>" in answer(get("/debugfoo"), plain_port())[2]
    _, headers, _ = answer(get("/"), plain_port(debug_allowed=lambda request: True))
    assert headers["Location"] == "https://derp.example.com/debug/"


def test_a_redirect_without_a_host_uses_the_configured_name() -> None:
    request, _ = parse(b"GET /x HTTP/1.0\r\n\r\n")
    assert (
        answer(request, plain_port(hostname="derp9.example.com"))[1]["Location"]
        == "https://derp9.example.com/x"
    )
    assert answer(request, plain_port())[0] == "HTTP/1.0 400 Bad Request"


UPGRADE = http.Upgrade(fast_start=True, not_ideal=False)


def test_an_upgrade_seen_before_is_known_with_what_follows_it() -> None:
    head = b"GET /derp HTTP/1.1\r\nHost: a\r\nUpgrade: DERP\r\n\r\n"
    known = http.KnownUpgrades()
    assert known.find(head) is None
    known.remember(head, UPGRADE)
    assert known.find(head + b"login") == (UPGRADE, b"login")
    for other in (head[:-1], head.replace(b"a", b"b"), b"x" + head, b"", b"\r\n\r\n" + head):
        assert known.find(other) is None


def test_heads_that_vary_push_each_other_out_and_long_ones_are_not_kept() -> None:
    known = http.KnownUpgrades()
    heads = [b"GET /derp HTTP/1.1\r\nA: %d\r\n\r\n" % i for i in range(http.KNOWN_HEADS + 1)]
    for head in heads:
        known.remember(head, UPGRADE)
    assert [known.find(head) is not None for head in heads] == [False] + [True] * http.KNOWN_HEADS
    long = b"GET /derp HTTP/1.1\r\nA: " + bytes(http.KNOWN_HEAD_BYTES) + b"\r\n\r\n"
    known.remember(long, UPGRADE)
    assert known.find(long) is None
