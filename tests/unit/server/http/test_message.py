"""Request heads: parsing, refusals, and the bytes after them."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from fastderp.server.http.message import PHRASES, BadRequest, HeadParser
from fastderp.server.http.upgrade import derp_upgrade
from tests.kit.http_heads import HOST, fields, get, parse


def refused(raw: bytes) -> BadRequest:
    """Feed a head that must be refused; return the refusal."""
    with pytest.raises(BadRequest) as caught:
        assert HeadParser().feed(raw) is None
    return caught.value


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
    assert derp_upgrade(request) is not None
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
def test_keep_alive_follows_the_clients_request(version: str, connection: str, alive: bool) -> None:
    headers = [f"Connection: {connection}"] if connection else []
    assert get("/", *headers, version=version).keep_alive is alive


def test_every_status_has_the_phrase_of_the_standard() -> None:
    assert {status: HTTPStatus(status).phrase for status in PHRASES} == PHRASES
