"""derper and fastderp admit the same clients for each answer of a verifier (PROTOCOL 8)."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastderp.wire.keys import NodePrivate
from tests.kit.certificates import Certificate, self_signed, server_context
from tests.kit.service import Service, ok, response, serving

from .conftest import StartRelay
from .deviations import ADMISSION_DEVIATIONS, TAILSCALED_DEVIATIONS
from .logins import lets_in
from .relays import Relay

pytestmark = pytest.mark.timeout(600)


ANSWERS = {
    "yes": ok({"Allow": True}),
    "yes in small letters": ok(b'{"allow":true}'),
    "yes and more": ok(b' {"Allow":true,"Other":[1]} and more'),
    "the last one counts": ok(b'{"Allow":true,"Allow":false}'),
    "no": ok({"Allow": False}),
    "nothing said": ok(b"{}"),
    "null": ok(b"null"),
    "null for an answer": ok(b'{"Allow":null}'),
    "number": ok(b'{"Allow":1}'),
    "text": ok(b'{"Allow":"true"}'),
    "array": ok(b"[true]"),
    "true": ok(b"true"),
    "empty": ok(b""),
    "not JSON": ok(b"yes"),
    "cut off": ok(b'{"Allow":true'),
    "yes behind 4 KiB": ok(b" " * 4096 + b'{"Allow":true}'),
    "yes at the end of 4 KiB": ok(b" " * (4096 - 14) + b'{"Allow":true}'),
    "created": response(201, b'{"Allow":true}'),
    "forbidden": response(403, b'{"Allow":true}'),
    "not found": response(404, b'{"Allow":true}'),
    "broken": response(500, b'{"Allow":true}'),
    "redirect": response(302, b"", "Location: /admit"),
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "head of garbage": b"HTTP/1.1 yes\r\n\r\n",
}

TAILSCALED_ANSWERS = {
    "known": ok({"Node": {"ID": 1}}),
    "empty object": ok(b"{}"),
    "unknown": response(404, b"no match for IP:port\n"),
    "forbidden": response(403, b"whois access denied\n"),
    "precondition failed": response(412),
    "broken": response(500, b"{}"),
    "empty": ok(b""),
    "not JSON": ok(b"hello"),
    "array": ok(b"[]"),
    "too old": response(400, b"invalid 'addr' parameter\n"),
    "not HTTP": b"220 mail.example.com ESMTP\r\n",
    "null": ok(b"null"),
}


async def verdicts(relay: Relay, service: Service, answers: dict[str, bytes]) -> dict[str, bool]:
    """Return by the answer's name whether it admits a client with a new, uncached key."""
    found = {}
    for name, answer in answers.items():
        service.answer = answer
        found[name] = await lets_in(relay, NodePrivate.generate())
    return found


@pytest.mark.parametrize("fail_open", ["true", "false"])
async def test_answers_of_the_admission_url_mean_the_same(
    start_derper: StartRelay, start_fastderp: StartRelay, fail_open: str
) -> None:
    with serving(b"") as service:
        flags = (f"-verify-client-url={service.url}", f"-verify-client-url-fail-open={fail_open}")
        async with start_derper(*flags) as derper, start_fastderp(*flags) as relay:
            theirs, ours = (
                await verdicts(derper, service, ANSWERS),
                await verdicts(relay, service, ANSWERS),
            )
            stricter = ADMISSION_DEVIATIONS if fail_open == "true" else ()
            assert {
                name: let_in for name, let_in in ours.items() if let_in != theirs[name]
            } == dict.fromkeys(stricter, False)
            assert set(ours.values()) == {True, False}
    with serving(ok({"Allow": True})) as service:
        flag = f"-verify-client-url={service.url}"
        async with start_derper(flag) as derper, start_fastderp(flag) as relay:
            key = NodePrivate.generate()
            assert await lets_in(derper, key) and await lets_in(relay, key)
        asked_by_derper, asked_by_us = (
            json.loads(request.partition(b"\r\n\r\n")[2]) for request in service.requests
        )
        assert asked_by_derper == asked_by_us


async def test_an_absent_admission_url_has_the_same_effect(
    start_derper: StartRelay, start_fastderp: StartRelay
) -> None:
    with serving(b"") as service:
        url = service.url
    for fail_open in (True, False):
        flags = (
            f"-verify-client-url={url}",
            f"-verify-client-url-fail-open={str(fail_open).lower()}",
        )
        async with start_derper(*flags) as derper, start_fastderp(*flags) as relay:
            key = NodePrivate.generate()
            assert (await lets_in(derper, key), await lets_in(relay, key)) == (fail_open, fail_open)


@pytest.mark.parametrize(
    ("certificate", "trusted", "usable"),
    [
        (self_signed("localhost"), True, True),
        (self_signed("localhost"), False, False),
        (self_signed("localhost", days=(-2, -1)), True, False),
        (self_signed("admission.example"), True, False),
    ],
    ids=["trusted", "self-signed", "expired", "another name"],
)
async def test_the_certificate_of_an_admission_url_is_verified_in_the_same_way(
    start_derper: StartRelay,
    start_fastderp: StartRelay,
    tmp_path: Path,
    certificate: Certificate,
    trusted: bool,
    usable: bool,
) -> None:
    with serving(ok({"Allow": True}), tls=server_context(certificate, tmp_path)) as service:
        trust: dict[str, Any] = {"SSL_CERT_FILE": str(tmp_path / "served.crt")} if trusted else {}
        for fail_open in (True, False):
            flags = (
                f"-verify-client-url={service.url}",
                f"-verify-client-url-fail-open={str(fail_open).lower()}",
            )
            async with (
                start_derper(*flags, **trust) as derper,
                start_fastderp(*flags, **trust) as relay,
            ):
                let_in = [await lets_in(each, NodePrivate.generate()) for each in (derper, relay)]
                assert let_in == [usable or fail_open] * 2
        assert len(service.requests) == (4 if usable else 0)


async def test_answers_of_tailscaled_mean_the_same(
    start_derper: StartRelay, start_fastderp: StartRelay, tmp_path: Path
) -> None:
    path = tmp_path / "tailscaled.sock"
    with serving(b"", path) as service:
        service.answer = ok(b"{}")
        flags = ("-verify-clients", f"-socket={path}")
        async with start_derper(*flags) as derper, start_fastderp(*flags) as relay:
            theirs = await verdicts(derper, service, TAILSCALED_ANSWERS)
            ours = await verdicts(relay, service, TAILSCALED_ANSWERS)
            differing = {name: let_in for name, let_in in ours.items() if let_in != theirs[name]}
            assert differing == dict.fromkeys(TAILSCALED_DEVIATIONS, False)
            assert set(ours.values()) == {True, False}
