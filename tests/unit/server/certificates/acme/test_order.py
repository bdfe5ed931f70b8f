"""Orders: each malformed answer of a CA becomes one log line."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from acme import messages
from cryptography.hazmat.primitives.asymmetric import ec

from fastderp.errors import IssuanceError
from fastderp.server.certificates.acme.challenges import (
    DNS_01,
    HTTP_01,
    TLS_ALPN_01,
    Challenges,
)
from fastderp.server.certificates.acme.order import DETAIL_LIMIT, Order, obtain
from fastderp.server.certificates.acme.settings import AcmeSettings

KEY = ec.generate_private_key(ec.SECP256R1())
PROBLEM = "urn:ietf:params:acme:error:"


class Answering(http.server.ThreadingHTTPServer):
    """A server with the same answer to every request."""

    daemon_threads = True
    status = 200
    content_type = "application/json"
    body = b""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Answering)
        self.send_response(self.server.status)
        self.send_header("Content-Type", self.server.content_type)
        self.send_header("Replay-Nonce", "AAAA")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.server.body)

    do_POST = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Answering]:
    with Answering(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def failure(server: Answering, directory: Path) -> IssuanceError:
    settings = AcmeSettings(
        f"http://127.0.0.1:{server.server_address[1]}/dir", directory, "derp.example.com"
    )
    with pytest.raises(IssuanceError) as error:
        obtain(Order(settings, KEY, "derp.example.com", KEY, (HTTP_01,), "", 5.0), Challenges())
    assert str(error.value).isprintable()
    return error.value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b"null",
        b"\xff",
        json.dumps({"newAccount": 7, "newNonce": 7}).encode(),
        b"[" * 9999,
    ],
)
def test_a_malformed_acme_directory_is_refused(
    server: Answering, tmp_path: Path, body: bytes
) -> None:
    server.body = body
    failure(server, tmp_path)


@pytest.mark.parametrize(
    ("ca", "reason"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("no-such-host.invalid", "(Name or service|No address|Temporary failure).*"),
    ],
)
def test_an_unreachable_ca_is_one_line_with_the_cause(tmp_path: Path, ca: str, reason: str) -> None:
    settings = AcmeSettings(f"https://{ca}/dir", tmp_path, "derp.example.com")
    with pytest.raises(IssuanceError, match=f"^cannot reach https://{ca}/dir: {reason}$"):
        obtain(Order(settings, KEY, "derp.example.com", KEY, (HTTP_01,), "", 5.0), Challenges())


def test_a_missing_file_of_roots_does_not_count_as_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "absent"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "absent.pem"))
    settings = AcmeSettings("https://127.0.0.1:1/dir", tmp_path, "derp.example.com")
    with pytest.raises(
        IssuanceError, match=r"^Could not find a suitable TLS CA certificate bundle"
    ):
        obtain(Order(settings, KEY, "derp.example.com", KEY, (HTTP_01,), "", 5.0), Challenges())


@pytest.mark.parametrize("status", [404, 500, 503])
def test_an_error_page_is_an_error(server: Answering, tmp_path: Path, status: int) -> None:
    server.status, server.content_type = status, "text/html"
    failure(server, tmp_path)


def test_an_answer_of_the_ca_is_one_short_line(server: Answering, tmp_path: Path) -> None:
    server.status, server.content_type = 403, "application/problem+json"
    server.body = json.dumps(
        {"type": PROBLEM + "unauthorized", "detail": "no\r\n\x1b[31m " + "x" * 9999}
    ).encode()
    said = str(failure(server, tmp_path))
    assert said.startswith("no \\x1b[31m xxx")
    assert len(said) <= DETAIL_LIMIT + 1


@pytest.mark.parametrize(("kind", "limited"), [("rateLimited", True), ("malformed", False)])
def test_a_rate_limit_of_the_ca_is_recognised(
    server: Answering, tmp_path: Path, kind: str, limited: bool
) -> None:
    server.status, server.content_type = 429, "application/problem+json"
    server.body = json.dumps({"type": PROBLEM + kind, "detail": "slow down"}).encode()
    error = failure(server, tmp_path)
    assert (str(error), error.rate_limited) == ("slow down", limited)


class FewMethods:
    """A CA that validates with the given methods only."""

    offered: tuple[str, ...] = ()
    asked: list[str] = []

    def __init__(self, directory: object, network: object) -> None:
        pass

    @staticmethod
    def get_directory(url: str, network: object) -> object:
        return SimpleNamespace()

    directory = SimpleNamespace()

    def external_account_required(self) -> bool:
        return False

    def new_account(self, registration: object) -> None:
        pass

    def new_order(self, request: bytes, profile: str | None) -> SimpleNamespace:
        assert profile is None, "it has not said that it knows any"
        challenges = [
            {"type": kind, "url": "https://ca.test/c", "token": "A" * 22, "status": "pending"}
            for kind in self.offered
        ]
        body = messages.Authorization.from_json({"status": "pending", "challenges": challenges})
        return SimpleNamespace(
            authorizations=[messages.AuthorizationResource(body=body, uri="https://ca.test/a")]
        )

    def answer_challenge(self, body: messages.ChallengeBody, response: object) -> None:
        self.asked.append(body.chall.typ)

    def poll_authorizations(self, order: object, deadline: object) -> object:
        return order

    def finalize_order(self, order: object, deadline: object) -> SimpleNamespace:
        return SimpleNamespace(fullchain_pem="the chain")


@pytest.mark.parametrize(
    ("offered", "asked"),
    [
        (("dns-01", HTTP_01), HTTP_01),
        ((HTTP_01, TLS_ALPN_01), TLS_ALPN_01),
        ((TLS_ALPN_01,), TLS_ALPN_01),
        (("dns-01",), None),
    ],
)
def test_each_validation_method_of_a_ca_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offered: tuple[str, ...], asked: str | None
) -> None:
    monkeypatch.setattr(FewMethods, "offered", offered)
    monkeypatch.setattr(FewMethods, "asked", [])
    monkeypatch.setattr("fastderp.server.certificates.acme.order.client.ClientV2", FewMethods)
    settings = AcmeSettings("https://ca.test/dir", tmp_path, "derp.example.com")
    order = Order(settings, KEY, "derp.example.com", KEY, (TLS_ALPN_01, HTTP_01), "shortlived", 5.0)
    if asked is None:
        with pytest.raises(
            IssuanceError,
            match="^the CA does not offer tls-alpn-01; the CA does not offer http-01$",
        ):
            obtain(order, Challenges())
    else:
        assert obtain(order, Challenges()) == b"the chain"
        assert FewMethods.asked == [asked]


@pytest.mark.parametrize("fails", ["present", "answer", "poll"])
def test_a_record_is_removed_when_its_order_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def refuse(*_: object) -> None:
        raise messages.Error.with_code("malformed", detail="no")

    if fails != "present":
        name = {"answer": "answer_challenge", "poll": "poll_authorizations"}[fails]
        monkeypatch.setattr(FewMethods, name, refuse)
    monkeypatch.setattr(FewMethods, "offered", (DNS_01,))
    monkeypatch.setattr("fastderp.server.certificates.acme.order.client.ClientV2", FewMethods)
    hook = tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/calls\n[ "$1" != {fails} ]\n')
    hook.chmod(0o755)
    settings = AcmeSettings("https://ca.test/dir", tmp_path, "derp.example.com")
    order = Order(settings, KEY, "derp.example.com", KEY, (DNS_01,), "", 5.0)
    with pytest.raises(IssuanceError):
        obtain(order, Challenges((str(hook),)))
    assert (tmp_path / "calls").read_text() == "present\ncleanup\n"
