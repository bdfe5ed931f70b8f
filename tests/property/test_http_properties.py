"""Request heads of any shape, in any pieces."""

from __future__ import annotations

import random

from hypothesis import example, given
from hypothesis import strategies as st

from fastderp.server.http.message import HEAD_LIMIT_BYTES, BadRequest, HeadParser, Request

LINE_ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\n "])
HEADERS = st.sampled_from(
    [
        b"Host: x",
        b"Upgrade: DERP",
        b"Connection: Upgrade",
        b"Content-Length: 3",
        b"Transfer-Encoding: chunked",
        b"A: \x80",
        b"A",
        b"",
    ]
)
REQUEST_LINES = st.sampled_from(
    [b"GET /derp HTTP/1.1", b"POST / HTTP/1.0", b"CONNECT x:443 HTTP/1.1", b"GET / HTTP/1.1 ", b""]
)
HEADS = st.tuples(
    REQUEST_LINES, st.lists(st.tuples(HEADERS, LINE_ENDS)), st.binary(max_size=40)
).map(
    lambda parts: (
        parts[0] + b"\r\n" + b"".join(header + end for header, end in parts[1]) + b"\r\n" + parts[2]
    )
)


def outcome(pieces: list[bytes]) -> tuple[str, object, bytes]:
    """Feed the pieces until there is a result; return it and the bytes after it."""
    parser = HeadParser()
    for i, piece in enumerate(pieces):
        try:
            request = parser.feed(piece)
        except BadRequest as error:
            return "refused", error.status, b""
        if request is not None:
            return "request", _facts(request), parser.rest + b"".join(pieces[i + 1 :])
    return "more", None, b""


def _facts(request: Request) -> tuple[object, ...]:
    return (
        request.method,
        request.path,
        request.query,
        request.version,
        request.headers,
        request.keep_alive,
        request.has_body,
    )


@given(HEADS, st.data())
@example(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n\r\n\r\n", None)
def test_the_pieces_of_a_head_change_nothing(head: bytes, data: st.DataObject | None) -> None:
    cuts = (
        sorted(data.draw(st.sets(st.integers(0, len(head)))))
        if data is not None
        else range(len(head))
    )
    pieces = [head[a:b] for a, b in zip([0, *cuts], [*cuts, len(head)], strict=True)]
    assert outcome([piece for piece in pieces if piece]) == outcome([head])


@given(HEADS, st.binary(max_size=60))
def test_bytes_behind_a_head_are_never_touched(head: bytes, follows: bytes) -> None:
    kind, facts, rest = outcome([head])
    if kind == "request":
        assert outcome([head + follows]) == (kind, facts, rest + follows)


@given(st.binary(max_size=300))
def test_random_bytes_are_a_request_or_refused(data: bytes) -> None:
    assert outcome([data])[0] in ("request", "refused", "more")


def test_twenty_thousand_damaged_requests_are_a_request_or_refused() -> None:
    dice = random.Random(7)
    good = (
        b"GET /derp?x=1 HTTP/1.1\r\nHost: derp.example.com\r\n"
        b"Connection: Upgrade\r\nUpgrade: DERP\r\n\r\n"
    )
    for _ in range(20_000):
        damaged = bytearray(good)
        for _ in range(dice.randrange(1, 5)):
            at = dice.randrange(len(damaged))
            damaged[at : at + dice.randrange(3)] = dice.randbytes(dice.randrange(3))
        assert outcome([bytes(damaged)])[0] in ("request", "refused", "more")


@given(st.integers(1, 5000))
def test_an_endless_head_is_refused_within_the_limit(piece_bytes: int) -> None:
    parser = HeadParser()
    parser.feed(b"GET / HTTP/1.1\r\nA: ")
    n_fed = 0
    try:
        while n_fed <= HEAD_LIMIT_BYTES:
            assert parser.feed(b"a" * piece_bytes) is None
            n_fed += piece_bytes
    except BadRequest as error:
        assert error.status == 431
        return
    raise AssertionError("never refused")
