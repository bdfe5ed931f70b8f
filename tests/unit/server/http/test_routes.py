"""The answers of each path, on the main listener and on the plain port beside TLS."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from fastderp.server.http.clients import ClientsPage
from fastderp.server.http.debug import DebugPages
from fastderp.server.http.message import Request
from fastderp.server.http.pages import Site
from fastderp.server.http.routes import Routes, debug_routes, http_port_routes, relay_routes
from tests.kit.http_heads import at_once, fields, get, parse
from tests.unit.server.http.test_clients import Details


def relay(**site: Any) -> Routes:
    """Build the main table, with debug pages for local requests."""
    return relay_routes(Site(**site), DebugPages(dict))


def answer(request: Request, routes: Routes | None = None) -> tuple[str, dict[str, str], bytes]:
    """Return the encoded answer to a request, without the date."""
    status, headers, body = fields(
        at_once((routes or relay()).respond(request)).encode(request, close=False)
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
def test_an_odd_challenge_gets_a_204_without_an_answer(challenge: str) -> None:
    status, headers, _ = answer(
        get("/generate_204", f"X-Tailscale-Challenge: {challenge}", method="POST")
    )
    assert status == "HTTP/1.1 204 No Content"
    assert "X-Tailscale-Response" not in headers


def test_crawlers_are_excluded() -> None:
    status, headers, body = answer(get("/robots.txt"))
    assert (status, body) == ("HTTP/1.1 200 OK", b"User-agent: *\nDisallow: /\n")
    assert headers["X-Frame-Options"] == "DENY"


def test_scrapers_do_not_get_the_home_page() -> None:
    for routes in (relay(), relay(home="blank"), relay(derp=False)):
        assert answer(get("/metrics"), routes)[0] == "HTTP/1.1 404 Not Found"


def test_a_relay_is_ready_unless_it_has_a_reason() -> None:
    reasons: list[str] = []
    main = relay(unready=lambda: reasons)
    for routes in (main, http_port_routes(Site(unready=lambda: reasons), main)):
        status, headers, body = answer(get("/readyz"), routes)
        assert (status, body) == ("HTTP/1.1 200 OK", b"ready\n")
        assert "no-store" in headers["Cache-Control"]
        reasons += ["the certificate expired", "a second reason"]
        status, _, body = answer(get("/readyz"), routes)
        assert status == "HTTP/1.1 503 Service Unavailable"
        assert body == b"the certificate expired\na second reason\n"
        assert answer(get("/healthz"), routes)[0::2] == ("HTTP/1.1 200 OK", b"ok\n")
        reasons.clear()


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


def test_the_home_page_is_the_configured_one() -> None:
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


def test_home_may_be_blank_or_a_redirect_and_nothing_else() -> None:
    assert answer(get("/"), relay(home="blank"))[2] == b""
    status, headers, _ = answer(get("/x"), relay(home="https://example.com/"))
    assert (status, headers["Location"]) == ("HTTP/1.1 302 Found", "https://example.com/")
    with pytest.raises(ValueError, match='unknown --home value "ftp://x"'):
        Site(home="ftp://x")


def test_a_relay_with_derp_off_answers_differently_at_derp_only() -> None:
    status, _, body = answer(get("/derp", "Upgrade: DERP"), relay(derp=False))
    assert (status, body) == ("HTTP/1.1 404 Not Found", b"derp server disabled\n")
    assert answer(get("/derp/probe"), relay(derp=False))[0] == "HTTP/1.1 200 OK"


@pytest.mark.parametrize("path", ["/debug", "/debug/", "/debug/varz", "/metrics"])
def test_a_relay_without_debug_pages_has_none_of_their_paths(path: str) -> None:
    local = get(path)
    local.remote = ("127.0.0.1", 1)
    routes = relay_routes(Site())
    for table in (routes, http_port_routes(Site(), routes)):
        assert answer(local, table)[0] == "HTTP/1.1 404 Not Found"


@pytest.mark.parametrize("query", ["", "?debugkey=s3cret", "?debugkey=a%26b&c"])
def test_the_redirect_to_the_debug_pages_keeps_the_key(query: str) -> None:
    for routes in (relay(), plain_port(), debug_port()):
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
    encoded = at_once(relay().respond(request)).encode(request, close=False)
    assert (
        encoded.startswith(b"HTTP/1.0 200 OK\r\n") and b"\r\nConnection: keep-alive\r\n" in encoded
    )
    closing = at_once(relay().respond(request)).encode(request, close=True)
    assert b"\r\nConnection:" not in closing


def test_a_redirect_has_a_page_for_browsers_only() -> None:
    _, headers, body = answer(get("/debug"))
    assert headers["Content-Type"] == "text/html; charset=utf-8" and b'href="/debug/"' in body
    _, headers, body = answer(get("/debug", method="POST"))
    assert "Content-Type" not in headers and body == b""


# The plain port beside TLS


def plain_port(**site: Any) -> Routes:
    """Build the table of port 80."""
    settings = Site(**site)
    return http_port_routes(settings, relay(**site))


def debug_port() -> Routes:
    """Build the table of -debug-addr."""
    return debug_routes(Site(), DebugPages(dict, access=None))


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


@pytest.mark.parametrize(
    "make", [relay, plain_port, debug_port], ids=["relay", "plain port", "debug port"]
)
def test_every_document_fits_a_narrow_screen_and_finds_its_style(
    make: Callable[[], Routes],
) -> None:
    clients = ClientsPage(list, Details())
    debug = DebugPages(dict, clients=lambda: clients)
    routes = relay_routes(Site(), debug)
    for path in ("/", "/debug/", "/debug/clients/", "/debug/clients/?all=1"):
        request = get(path)
        request.remote = ("127.0.0.1", 1)
        body = answer(request, routes)[2]
        assert b"<meta name=viewport" in body and b"<style" not in body
        [sheet] = re.findall(rb"<link rel=stylesheet href=(\S+)>", body)
        status, headers, _ = answer(get(sheet.decode()), make())
        assert (status, headers["Content-Type"]) == ("HTTP/1.1 200 OK", "text/css; charset=utf-8")


def test_a_redirect_without_a_host_uses_the_configured_name() -> None:
    request, _ = parse(b"GET /x HTTP/1.0\r\n\r\n")
    assert (
        answer(request, plain_port(hostname="derp9.example.com"))[1]["Location"]
        == "https://derp9.example.com/x"
    )
    assert answer(request, plain_port())[0] == "HTTP/1.0 400 Bad Request"
