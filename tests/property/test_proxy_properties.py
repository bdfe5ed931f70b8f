"""PROXY and forwarding headers with any content cause no exception and gain no trust."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from fastderp.server.http.client_address import Origin, TrustedProxies
from fastderp.util.net import parse_ip
from fastderp.wire.proxy_protocol import (
    V1_LIMIT_BYTES,
    V2_BODY_LIMIT_BYTES,
    V2_HEAD_BYTES,
    V2_SIGNATURE,
    Fault,
    Header,
    Status,
    parse,
)

V2 = st.builds(
    lambda head, n_body, body: V2_SIGNATURE + head + struct.pack(">H", n_body) + body,
    st.binary(min_size=2, max_size=2) | st.sampled_from([b"\x21\x11", b"\x21\x21", b"\x20\x00"]),
    st.integers(0, 65535) | st.integers(0, 60),
    st.binary(max_size=80),
)
V1_WORDS = st.sampled_from(
    ["TCP4", "TCP6", "UNKNOWN", "203.0.113.7", "2001:db8::7", "1", "65536", "", "\r\n", "\n", "%"]
)
V1 = st.lists(V1_WORDS | st.text(max_size=20), max_size=9).map(
    lambda words: b"PROXY " + " ".join(words).encode() + b"\r\n"
)
INPUT = st.binary(max_size=200) | V2 | V1

TRUSTED = TrustedProxies.parse("10.0.0.0/8, 2001:db8::/64")
PROXY = Origin.of_peer(("10.0.0.1", 9), TRUSTED)
HEADER_TEXT = st.text(st.characters(max_codepoint=255), max_size=60) | st.lists(
    st.sampled_from(
        ["for=", '"', "\\", ",", ";", "6.6.6.6", "[2001:db9::6]", "[", "]", ":80", "10.0.0.3", "="]
    ),
    max_size=16,
).map("".join)


@given(INPUT)
def test_any_bytes_are_accepted_or_refused_within_the_limits(data: bytes) -> None:
    found = parse(data)
    if found is Status.INCOMPLETE:
        assert len(data) < V2_HEAD_BYTES + V2_BODY_LIMIT_BYTES
        assert data.startswith(V2_SIGNATURE) or len(data) < V1_LIMIT_BYTES
    elif isinstance(found, Header):
        assert found.n_bytes <= min(len(data), V2_HEAD_BYTES + V2_BODY_LIMIT_BYTES)
        assert found.source is None or parse_ip(found.source[0]) is not None


@given(INPUT, st.data())
def test_any_split_gives_the_same(data: bytes, draw: st.DataObject) -> None:
    whole = parse(data)
    cut = draw.draw(st.integers(0, len(data)))
    first = parse(data[:cut])
    assert (
        first is Status.INCOMPLETE
        or first == whole
        or (isinstance(first, Fault) and isinstance(whole, Fault))
    )


@given(HEADER_TEXT, st.sampled_from(["203.0.113.7", "2001:db9::7"]))
def test_a_forwarding_header_of_a_client_is_never_its_address(forged: str, client: str) -> None:
    host = f'"[{client}]:4711"' if ":" in client else f"{client}:4711"
    real = host.strip('"')
    for name, appended in (
        ("x-forwarded-for", [f"{forged}, {real}"]),
        ("x-forwarded-for", [forged, real]),
        ("forwarded", [forged, f"for={host}"]),
    ):
        origin = PROXY.of_request([(name, line) for line in appended], TRUSTED)
        assert origin == Origin((client, 4711), through_proxy=True)


@given(HEADER_TEXT, st.sampled_from(["203.0.113.7", "2001:db9::7"]))
def test_a_half_open_quote_of_a_client_hides_it_at_most(forged: str, client: str) -> None:
    host = f'"[{client}]:4711"' if ":" in client else f"{client}:4711"
    origin = PROXY.of_request([("forwarded", f"{forged}, for={host};proto=https")], TRUSTED)
    assert origin in (PROXY, Origin((client, 4711), through_proxy=True))


@given(
    st.lists(st.tuples(st.sampled_from(["x-forwarded-for", "forwarded", "x-real-ip"]), HEADER_TEXT))
)
def test_headers_of_an_untrusted_peer_change_nothing(headers: list[tuple[str, str]]) -> None:
    stranger = Origin.of_peer(("203.0.113.9", 9), TRUSTED)
    assert stranger.of_request(headers, TRUSTED) is stranger
    PROXY.of_request(headers, TRUSTED)
