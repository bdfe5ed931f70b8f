"""Queries to tailscaled and an admission URL, and all answers. PROTOCOL §8, RELIABILITY F28."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fastderp.server.admission.verdict import Verdict
from fastderp.server.admission.verifiers import AdmissionUrl, Tailscaled
from fastderp.server.net import http_query as service_module
from fastderp.server.net.http_query import NoAnswer
from fastderp.wire.keys import NodePrivate
from tests.kit.certificates import Certificate, self_signed, server_context
from tests.kit.service import Answer, ok, response, serving
from tests.kit.shortage import no_descriptors

KEY, OWN_KEY = (NodePrivate.generate().public_key for _ in range(2))
CLOSED_PORT = "http://127.0.0.1:1/"


@asynccontextmanager
async def admission_url(url: str, *, fail_open: bool = True) -> AsyncIterator[AdmissionUrl]:
    asked = AdmissionUrl(url, fail_open=fail_open)
    try:
        yield asked
    finally:
        await asked.close()


async def ask_url(answer: Answer, *, fail_open: bool = True) -> Verdict:
    with serving(answer) as service:
        async with admission_url(service.url, fail_open=fail_open) as asked:
            return await asked.ask(KEY, "192.0.2.7")


RUNNING = ok({"BackendState": "Running", "Self": {"PublicKey": OWN_KEY.text}})


def tailscaled_that_says(whois: bytes, status: bytes = RUNNING) -> Answer:
    """Make a tailscaled with one answer to every whois and one about itself."""
    return lambda request: status if b"/status?" in request else whois


async def ask_tailscaled(answer: Answer, tmp_path: Path) -> Verdict:
    with serving(answer, tmp_path / "socket"):
        tailscaled = Tailscaled(str(tmp_path / "socket"))
        try:
            return await tailscaled.ask(KEY, "192.0.2.7")
        finally:
            await tailscaled.close()


# The admission URL


async def test_the_url_gets_key_and_address() -> None:
    with serving(ok({"Allow": True})) as service:
        async with admission_url(service.url) as asked:
            assert await asked.ask(KEY, "192.0.2.7") == Verdict(True, "allowed")
    [question] = service.questions()
    assert question == {"NodePublic": KEY.text, "Source": "192.0.2.7"}
    head = service.requests[0].partition(b"\r\n\r\n")[0]
    assert head.startswith(b"POST /admit HTTP/1.1\r\n")
    assert b"content-type" not in head.lower()


async def test_the_connection_to_the_url_is_reused() -> None:
    with serving(ok({"Allow": True})) as service:
        async with admission_url(service.url) as asked:
            for _ in range(3):
                await asked.ask(KEY, "192.0.2.7")
        assert (len(service.requests), len(service.held)) == (3, 1)


@pytest.mark.parametrize(
    "body",
    [
        b'{"allow":true}',
        b' \n{"ALLOW" : true, "x":[1]}',
        b'{"Allow":false,"allow":true}',
        b'{"Allow":true} {"Allow":false}',
        b'{"Allow":true}' + b"x" * 10_000,
    ],
)
async def test_an_admission_may_be_spelled_in_many_ways(body: bytes) -> None:
    assert (await ask_url(ok(body))).outcome == "allowed"


@pytest.mark.parametrize(
    "answer", [ok(b"{}"), ok({"Allow": False}), ok({"Allow": None}), response(403, b"no")]
)
async def test_a_denial_is_certain(answer: bytes) -> None:
    verdict = await ask_url(answer)
    assert (verdict.allowed, verdict.certain) == (False, True)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (ok(b""), "malformed"),
        (ok(b"yes"), "malformed"),
        (ok(b"[true]"), "malformed"),
        (ok(b"null"), "malformed"),
        (ok({"Allow": 1}), "malformed"),
        (ok({"Allow": "true"}), "malformed"),
        (ok(b"[" * 4000), "malformed"),
        (ok(b'{"x":"' + b"x" * 5000 + b'","Allow":true}'), "malformed"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "malformed"),
        (b"\x00" * 100, "malformed"),
        (response(201, b'{"Allow":true}'), "status"),
        (response(302, b"", "Location: http://127.0.0.1:1/"), "status"),
        (response(500, b'{"Allow":true}'), "status"),
        (
            response(200, b'{"Allow":true}', "Content-Encoding: gzip", "X: " + "x" * 200_000),
            "malformed",
        ),
    ],
    ids=lambda value: value[:40].decode("latin-1") if isinstance(value, bytes) else value,
)
async def test_any_other_answer_denies_even_when_failing_open_but_is_not_certain(
    answer: bytes, outcome: str
) -> None:
    verdict = await ask_url(answer)
    assert (verdict.allowed, verdict.outcome, verdict.certain) == (False, outcome, False)


async def test_redirects_are_not_followed() -> None:
    with serving(ok({"Allow": True})) as elsewhere:
        verdict = await ask_url(response(307, b"", f"Location: {elsewhere.url}"))
        assert not verdict.allowed and "redirects" in verdict.detail
        assert elsewhere.requests == []


async def test_an_endless_answer_is_read_up_to_a_limit() -> None:
    def endless(request: bytes) -> bytes:
        return b"HTTP/1.1 200 -\r\n\r\n" + b" " * 20_000_000 + b'{"Allow":true}'

    assert (await ask_url(endless)).outcome == "malformed"


@pytest.mark.parametrize("fail_open", [True, False])
async def test_admission_without_a_reachable_url_is_configurable(fail_open: bool) -> None:
    async with admission_url(CLOSED_PORT, fail_open=fail_open) as asked:
        verdict = await asked.ask(KEY, "192.0.2.7")
    assert (verdict.allowed, verdict.outcome) == (
        (True, "fail_open") if fail_open else (False, "unreachable")
    )
    assert verdict.detail == "127.0.0.1: Connection refused"
    assert not verdict.certain


async def test_a_url_with_a_trusted_certificate_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(
        ok({"Allow": True}), tls=server_context(self_signed("localhost"), tmp_path)
    ) as service:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "served.crt"))
        async with admission_url(service.url) as asked:
            assert await asked.ask(KEY, "192.0.2.7") == Verdict(True, "allowed")
        assert len(service.questions()) == 1


@pytest.mark.parametrize("fail_open", [True, False])
@pytest.mark.parametrize(
    ("certificate", "trusted", "complaint"),
    [
        (self_signed("localhost"), False, "self-signed"),
        (self_signed("localhost", days=(-2, -1)), True, "expired"),
        (self_signed("admission.example"), True, "not valid for 'localhost'"),
    ],
    ids=["self-signed", "expired", "another name"],
)
async def test_a_url_with_a_wrong_certificate_gets_no_query_and_counts_as_unreachable(
    certificate: Certificate,
    trusted: bool,
    complaint: str,
    fail_open: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(ok({"Allow": True}), tls=server_context(certificate, tmp_path)) as service:
        if trusted:
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "served.crt"))
        async with admission_url(service.url, fail_open=fail_open) as asked:
            verdict = await asked.ask(KEY, "192.0.2.7")
        assert service.requests == []
    assert (verdict.allowed, verdict.outcome) == (
        (True, "fail_open") if fail_open else (False, "unreachable")
    )
    assert verdict.detail.startswith("localhost: TLS: ") and complaint in verdict.detail
    assert not verdict.certain


@pytest.mark.parametrize("fail_open", [True, False])
async def test_a_query_to_a_silent_url_times_out(
    fail_open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "BUDGET_S", 0.2)
    verdict = await ask_url(b"", fail_open=fail_open)
    assert (verdict.allowed, verdict.outcome) == (
        (True, "fail_open") if fail_open else (False, "timeout")
    )


async def test_an_answer_that_trickles_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "BUDGET_S", 0.2)
    assert (
        await ask_url(b"HTTP/1.1 200 -\r\nContent-Length: 14\r\n\r\n{", fail_open=False)
    ).outcome == "timeout"


async def test_queries_beyond_the_limit_are_refused_even_when_failing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service_module, "BUDGET_S", 0.8)
    monkeypatch.setattr(service_module, "TURN_S", 0.1)
    monkeypatch.setattr(service_module, "QUESTIONS_AT_ONCE", 2)
    with serving(b"") as service:
        async with admission_url(service.url) as asked:
            verdicts = await asyncio.gather(*(asked.ask(KEY, "192.0.2.7") for _ in range(5)))
        assert len(service.requests) == 2
    assert sorted(verdict.outcome for verdict in verdicts) == ["busy"] * 3 + ["fail_open"] * 2


async def test_a_proxy_of_the_environment_is_used_as_by_other_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(ok({"Allow": True})) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removeprefix("http://"))
        async with admission_url("http://admission.example.com/derp") as asked:
            assert (await asked.ask(KEY, "192.0.2.7")).allowed
        assert proxy.requests[0].startswith(b"POST http://admission.example.com/derp HTTP/1.1\r\n")


@pytest.mark.parametrize("no_proxy", ["", "192.0.2.0/24"])
async def test_loopback_never_uses_a_proxy(monkeypatch: pytest.MonkeyPatch, no_proxy: str) -> None:
    monkeypatch.setenv("http_proxy", CLOSED_PORT)
    monkeypatch.setenv("no_proxy", no_proxy)
    assert (await ask_url(ok({"Allow": True}), fail_open=False)).allowed


def test_an_unusable_proxy_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy in ("socks5://me:s3cret@proxy.example:1080", "http://me:s3cret@[::1"):
        monkeypatch.setenv("https_proxy", proxy)
        with pytest.raises(ValueError, match="HTTPS_PROXY") as refused:
            AdmissionUrl("https://admission.example.com/derp")
        assert "s3cret" not in str(refused.value)


async def test_cookies_are_not_kept() -> None:
    with serving(response(200, b'{"Allow":true}', "Set-Cookie: tracked=yes; Path=/")) as service:
        async with admission_url(service.url) as asked:
            await asked.ask(KEY, "192.0.2.7")
            await asked.ask(KEY, "192.0.2.7")
        assert b"tracked" not in service.requests[1]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "admission.example.com",
        "ftp://example.com/",
        "http://",
        "http://[::1",
        "https://user:s3cret@:x/",
    ],
)
def test_a_malformed_admission_url_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ValueError, match="URL") as refused:
        AdmissionUrl(url)
    assert "s3cret" not in str(refused.value)


# tailscaled


async def test_tailscaled_is_queried_for_the_key(tmp_path: Path) -> None:
    with serving(ok({"Node": {"Name": "x"}}), tmp_path / "socket") as service:
        tailscaled = Tailscaled(str(tmp_path / "socket"))
        assert await tailscaled.ask(KEY, "192.0.2.7") == Verdict(True, "allowed")
        await tailscaled.close()
    lines = service.requests[0].split(b"\r\n")
    assert lines[0] == b"GET /localapi/v0/whois?addr=nodekey%3A" + KEY.hex.encode() + b" HTTP/1.1"
    headers = {line.lower() for line in lines[1:]}
    assert {b"host: local-tailscaled.sock", b"tailscale-cap: 145"} <= headers


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (tailscaled_that_says(response(404, b"no match for IP:port")), "denied"),
        (response(403, b"access denied"), "status"),
        (response(412), "status"),
        (response(500), "status"),
        (ok(b""), "malformed"),
        (ok(b"null"), "malformed"),
        (ok(b"{} "), "allowed"),
        (ok(b'"yes"'), "malformed"),
        (ok(b"[]"), "malformed"),
        (b"+OK this is not tailscaled\r\n", "malformed"),
        (ok(b'{"Node":"' + b"x" * 300_000), "malformed"),
    ],
)
async def test_only_a_known_key_passes_tailscaled(
    answer: Answer, outcome: str, tmp_path: Path
) -> None:
    verdict = await ask_tailscaled(answer, tmp_path)
    assert (verdict.outcome, verdict.allowed) == (outcome, outcome == "allowed")


@pytest.mark.parametrize(
    "body",
    [
        b'{"Node":7}',
        b'{"Node":"x"}',
        b'{"Node":[]}',
        b'{"Node":true}',
        b'{"node":{},"NODE":1}',
        b'{"Node":{},"UserProfile":5}',
        b'{"Node":{},"CapMap":[]}',
        b'{"Node":{"Key":7}}',
        b'{"Node":{"Key":"' + OWN_KEY.text.encode() + b'"}}',
        b'{"Node":{}} text',
        b'{"Node":{}}{"Node":{}}',
        b'{"Node":{"x":NaN}}',
        b'{"Node":{}',
        b"{}\x00",
    ],
    ids=lambda body: body.decode()[:40],
)
async def test_a_malformed_whois_answer_admits_no_client(body: bytes, tmp_path: Path) -> None:
    verdict = await ask_tailscaled(ok(body), tmp_path)
    assert (verdict.allowed, verdict.outcome, verdict.certain) == (False, "malformed", False)


async def test_a_whois_answer_of_tailscaled_admits_the_client(tmp_path: Path) -> None:
    answer = {
        "Node": {"ID": 1, "Key": KEY.text, "Tags": None},
        "UserProfile": {"ID": 2, "LoginName": "ann@example.com"},
        "CapMap": None,
    }
    assert (await ask_tailscaled(ok(answer), tmp_path)).allowed


@pytest.mark.parametrize(
    "status",
    [
        *(
            ok({"BackendState": state, "Self": {"PublicKey": OWN_KEY.text}})
            for state in ("NoState", "NeedsLogin", "NeedsMachineAuth", "Stopped", "Starting", "")
        ),
        ok({"BackendState": 7}),
        ok({"BackendState": "Running"}),
        ok({"BackendState": "Running", "Self": None}),
        ok({"BackendState": "Running", "Self": []}),
        ok({"BackendState": "Running", "Self": {"PublicKey": "nodekey:" + "0" * 64}}),
        ok({"BackendState": "Running", "Self": {"PublicKey": "nodekey:"}}),
        ok(b""),
        ok(b'{"BackendState":"Runn'),
        response(404),
        response(500),
        b"HTTP/1.1 200 -\r\nContent-Length: 100\r\n\r\n{",
    ],
)
async def test_a_denial_of_a_tailscaled_without_a_network_map_is_not_certain(
    status: bytes, tmp_path: Path
) -> None:
    verdict = await ask_tailscaled(tailscaled_that_says(response(404), status), tmp_path)
    assert (verdict.allowed, verdict.certain) == (False, False)
    assert verdict.detail.startswith(f"tailscaled at {tmp_path / 'socket'}: ")


async def test_a_tailscaled_that_gets_its_network_map_between_two_queries_admits_the_client(
    tmp_path: Path,
) -> None:
    answers = iter([response(404), RUNNING, ok({"Node": {"Key": KEY.text}})])
    assert (await ask_tailscaled(lambda request: next(answers), tmp_path)).allowed


async def test_without_tailscaled_no_client_is_admitted(tmp_path: Path) -> None:
    tailscaled = Tailscaled(str(tmp_path / "absent"))
    verdict = await tailscaled.ask(KEY, "192.0.2.7")
    await tailscaled.close()
    assert (verdict.allowed, verdict.outcome) == (False, "unreachable")
    assert verdict.detail == f"tailscaled at {tmp_path / 'absent'}: No such file or directory"


async def test_an_old_tailscaled_is_reported_as_old(tmp_path: Path) -> None:
    verdict = await ask_tailscaled(response(400, b"invalid 'addr' parameter\n"), tmp_path)
    assert not verdict.allowed and "update it" in verdict.detail


async def test_tailscaled_returns_its_own_key(tmp_path: Path) -> None:
    with serving(RUNNING, tmp_path / "socket") as service:
        tailscaled = Tailscaled(str(tmp_path / "socket"))
        assert await tailscaled.own_key() == OWN_KEY
        for answer, complaint in (
            (ok(b"{}"), "its state is unknown, not Running"),
            (ok({"BackendState": "Running", "Self": None}), "no node of its own"),
            (ok({"BackendState": "Running", "Self": {"PublicKey": 7}}), "is not a string"),
        ):
            service.answer = answer
            with pytest.raises(NoAnswer, match=complaint):
                await tailscaled.own_key()
        await tailscaled.close()
    assert service.requests[0].startswith(b"GET /localapi/v0/status?peers=false HTTP/1.1\r\n")


# Shortages of this machine


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "admission.invalid"])
@pytest.mark.parametrize("n_left", [0, 1, 2])
async def test_a_shortage_of_descriptors_admits_no_client_although_the_url_fails_open(
    host: str, n_left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "BUDGET_S", 20.0)
    async with admission_url(f"http://{host}:1/") as asked:
        with no_descriptors(n_left):
            verdict = await asked.ask(KEY, "192.0.2.7")
        assert (verdict.allowed, verdict.outcome, verdict.certain) == (False, "shortage", False)
        assert "Too many open files" in verdict.detail
    async with admission_url("http://127.0.0.1:1/") as asked:
        assert (await asked.ask(KEY, "192.0.2.7")).outcome == "fail_open"


async def test_used_up_descriptors_are_not_mistaken_for_an_absent_tailscaled(
    tmp_path: Path,
) -> None:
    tailscaled = Tailscaled(str(tmp_path / "socket"))
    with no_descriptors():
        assert (await tailscaled.ask(KEY, "192.0.2.7")).outcome == "shortage"
    with serving(ok({"Node": {}}), tmp_path / "socket"):
        assert (await tailscaled.ask(KEY, "192.0.2.7")).allowed
        await tailscaled.close()


async def test_without_a_thread_for_the_name_lookup_no_client_is_admitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    async with admission_url("http://localhost:1/") as asked:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            verdict = await asked.ask(KEY, "192.0.2.7")
    assert (verdict.allowed, verdict.outcome) == (False, "shortage")


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL]
)
@pytest.mark.parametrize("call", ["socket", "connect"])
async def test_each_shortage_of_each_call_counts_as_local(
    number: int, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Short(socket.socket):
        def __init__(self, *args: Any, **kw: Any) -> None:
            if call == "socket":
                raise OSError(number, os.strerror(number))
            super().__init__(*args, **kw)

        def connect(self, address: object) -> None:
            raise OSError(number, os.strerror(number))

    async with admission_url(CLOSED_PORT) as asked:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", Short)
            verdict = await asked.ask(KEY, "192.0.2.7")
    assert (verdict.allowed, verdict.outcome) == (False, "shortage")
    assert os.strerror(number) in verdict.detail
