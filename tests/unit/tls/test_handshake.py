"""Handshakes through memory buffers: agreements, refusals and their causes."""

import hashlib
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from fastderp.server.certificates.metacert import meta_cert
from fastderp.tls import roots
from fastderp.tls.context import ClientContext, DeferredContext, ServerContext
from fastderp.tls.errors import TlsError
from fastderp.tls.handshake import CAUSES, INPUT_MAX_BYTES, Handshake
from fastderp.tls.record import RecordLayer
from tests.kit.certificates import Certificate, self_signed
from tests.kit.openssl_peer import OpenSSLPeer, PeerError, openssl_errors

RELAY = self_signed("relay.test", "127.0.0.1", "::1")
OTHER = self_signed("other.test")


def server(certificate: Certificate = RELAY, **options: Any) -> Handshake:
    return Handshake(ServerContext([certificate.der], certificate.key_der, **options))


def client(name: str | None = "relay.test", **options: Any) -> Handshake:
    trust: dict[str, Any] = {"roots": [RELAY.der], "system_roots": False} | options
    return Handshake(ClientContext(**trust), name)


def pin_of(certificate: Certificate) -> bytes:
    return hashlib.sha256(certificate.der).digest()


class PythonClient:
    """A client that uses Python's ssl module."""

    def __init__(self, protocols: list[str]) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(protocols)
        self.source, self.sink = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.source, self.sink, server_hostname="relay.test")

    def run(self, ours: Handshake) -> None:
        """Do the handshake to its end."""
        finished = False
        while not (finished and ours.done):
            try:
                self.tls.do_handshake()
                finished = True
            except ssl.SSLWantReadError:
                pass
            ours.feed(self.sink.read())
            ours.step()
            self.source.write(ours.take_output())


def run(one: Handshake, other: Handshake) -> None:
    """Do the handshake to its end."""
    for _ in range(10):
        if one.step() & other.step():
            return
        other.feed(one.take_output())
        one.feed(other.take_output())
    raise AssertionError("no end after ten rounds")


def failure(one: Handshake, other: Handshake) -> TlsError:
    with pytest.raises(TlsError) as error:
        run(one, other)
    assert error.value.cause in CAUSES
    return error.value


def talk(one: RecordLayer, other: RecordLayer) -> None:
    assert other.open(one.seal(b"question")) == b"question"
    assert one.open(other.seal(b"answer")) == b"answer"


@pytest.mark.parametrize(
    "suite", ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]
)
def test_a_finished_handshake_yields_record_layers_of_the_agreed_suite(suite: str) -> None:
    ours, theirs = server(), client(suites=[suite])
    run(theirs, ours)
    assert (ours.version, ours.cipher) == (theirs.version, theirs.cipher) == ("TLSv1.3", suite)
    one, other = ours.records(), theirs.records()
    assert one.suite == other.suite == suite
    talk(one, other)


def test_clients_with_fast_aes_get_the_cheapest_suite() -> None:
    ours, theirs = server(), client(suites=["TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256"])
    run(theirs, ours)
    assert ours.cipher == "TLS_AES_128_GCM_SHA256"


def test_clients_that_prefer_chacha_get_it() -> None:
    ours, theirs = (
        server(),
        client(suites=["TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256"]),
    )
    run(theirs, ours)
    assert ours.cipher == "TLS_CHACHA20_POLY1305_SHA256"


def test_handshakes_work_when_every_byte_comes_alone() -> None:
    ours, theirs = server(), client()
    for _ in range(5):
        for one, other in ((theirs, ours), (ours, theirs)):
            one.step()
            for byte in one.take_output():
                other.feed(bytes([byte]))
                other.step()
    assert ours.done
    assert theirs.done
    talk(ours.records(), theirs.records())


def test_the_chain_is_presented_exactly_as_given() -> None:
    ours = Handshake(ServerContext([RELAY.der, OTHER.der, RELAY.der], RELAY.key_pem))
    theirs = client()
    run(theirs, ours)
    assert theirs.peer_chain == [RELAY.der, OTHER.der, RELAY.der]
    assert ours.peer_chain == []


def test_the_chain_is_the_same_under_tls_12() -> None:
    ours = Handshake(ServerContext([RELAY.der, OTHER.der], RELAY.key_pem))
    theirs = client(max_version="TLSv1.2")
    run(theirs, ours)
    assert theirs.peer_chain == [RELAY.der, OTHER.der]


def test_server_name_and_protocol_are_known_when_done() -> None:
    ours, theirs = server(), PythonClient(["h2", "http/1.1"])
    theirs.run(ours)
    assert (ours.server_name, ours.alpn) == ("relay.test", "http/1.1")
    assert theirs.tls.selected_alpn_protocol() == "http/1.1"


def test_a_client_that_speaks_none_of_our_protocols_is_refused() -> None:
    with pytest.raises(TlsError) as error:
        PythonClient(["h2"]).run(server())
    assert error.value.cause == "no_shared"


def test_tls_12_clients_get_no_tickets() -> None:
    theirs = PythonClient(["http/1.1"])
    theirs.run(server(max_version="TLSv1.2"))
    assert theirs.tls.session is None or not theirs.tls.session.has_ticket


@pytest.mark.parametrize("name", ["relay.test", "RELAY.test"])
def test_the_required_server_name_is_served_in_any_case(name: str) -> None:
    run(client(name), server(required_sni="relay.test"))


@pytest.mark.parametrize("name", [None, "other.test", "127.0.0.1"])
def test_another_or_missing_server_name_is_refused_with_an_alert(name: str | None) -> None:
    ours, theirs = server(required_sni="relay.test"), client(name, verify=False)
    theirs.step()
    ours.feed(theirs.take_output())
    with pytest.raises(TlsError) as error:
        ours.step()
    assert error.value.cause == "server_name"
    asked = "asked for 'other.test'" if name == "other.test" else "sent no server name"
    assert str(error.value) == f"the client {asked}; only 'relay.test' is served"
    assert ours.take_output()[-2:] == bytes([2, 112])  # fatal unrecognized_name


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("deferred", [False, True])
def test_the_error_of_a_refused_client_has_its_server_name(version: str, deferred: bool) -> None:
    """Check the refusal of a client that was sent to the wrong relay."""
    context = ServerContext([RELAY.der], RELAY.key_der, max_version=version)
    ours = Handshake(DeferredContext(max_version=version) if deferred else context)
    theirs = client("wrong.test")
    theirs.step()
    ours.feed(theirs.take_output())
    ours.step()
    if deferred:
        ours.choose(context)
        ours.step()
    theirs.feed(ours.take_output())
    with pytest.raises(TlsError, match=r"(?i)hostname mismatch"):
        theirs.step()
    ours.feed(theirs.take_output())
    with pytest.raises(TlsError, match=r"; the client asked for 'wrong\.test'$") as error:
        ours.step()
    assert error.value.cause == "alert"


def test_an_address_is_checked_but_never_sent_as_server_name() -> None:
    for address in ("127.0.0.1", "::1"):
        ours = server()
        run(client(address), ours)
        assert ours.server_name is None


def test_untrusted_wrongly_named_and_expired_certificates_are_refused_by_name() -> None:
    assert "self-signed" in str(failure(client(roots=[OTHER.der]), server())).replace(" ", "-")
    assert "hostname mismatch" in str(failure(client("wrong.test"), server())).lower()
    assert "ip address mismatch" in str(failure(client("127.0.0.2"), server())).lower()
    old = self_signed("relay.test", days=(-9, -2))
    error = failure(client(roots=[old.der]), server(old))
    assert "expired" in str(error)
    assert error.cause == "certificate"


def test_a_server_reports_the_alert_of_a_client_that_does_not_trust_it() -> None:
    ours, theirs = server(), client(roots=[OTHER.der])
    failure(theirs, ours)
    ours.feed(theirs.take_output())
    with pytest.raises(TlsError) as error:
        ours.step()
    assert error.value.cause == "alert"


def test_the_certificate_name_may_differ_from_the_server_name() -> None:
    theirs = Handshake(
        ClientContext(roots=[RELAY.der], system_roots=False), "front.test", cert_name="relay.test"
    )
    ours = server()
    run(theirs, ours)
    assert ours.server_name == "front.test"


def serving(*chain: bytes) -> Handshake:
    """Return a server that presents these certificates; the first is its own."""
    key = OTHER.key_der if chain[0] == OTHER.der else RELAY.key_der
    return Handshake(ServerContext(chain, key))


def test_a_pinned_certificate_needs_no_issuer_and_no_other_is_accepted() -> None:
    run(client(pin=pin_of(RELAY)), server())
    error = failure(client(pin=pin_of(RELAY)), server(OTHER))
    assert "not the pinned one" in str(error)
    assert error.cause == "certificate"


def test_a_pinned_certificate_must_match_the_name_if_there_is_one() -> None:
    assert "but not for relay.test" in str(failure(client(pin=pin_of(OTHER)), server(OTHER)))
    run(client("127.0.0.9", pin=pin_of(OTHER)), server(OTHER))
    run(client("::1", pin=pin_of(OTHER)), server(OTHER))


def test_beside_a_pinned_certificate_only_metacerts_may_come() -> None:
    metacert = meta_cert("ab" * 32)
    run(client(pin=pin_of(RELAY)), serving(RELAY.der, metacert))
    run(client(pin=pin_of(RELAY)), serving(RELAY.der, metacert, metacert))
    for chain in ([RELAY.der, OTHER.der], [RELAY.der, metacert, OTHER.der], [RELAY.der, RELAY.der]):
        assert "more certificates than" in str(failure(client(pin=pin_of(RELAY)), serving(*chain)))
    assert "not the pinned one" in str(
        failure(client(pin=pin_of(OTHER)), serving(RELAY.der, OTHER.der))
    )


def test_a_metacert_cannot_be_pinned() -> None:
    metacert = self_signed("derpkey" + "ab" * 28)
    ours = server(metacert)
    assert "not the pinned one" in str(failure(client("127.0.0.1", pin=pin_of(metacert)), ours))


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("name", ["derpkey", "derpkey" + "ab" * 28, "relay.test"])
def test_man_in_the_middle_with_the_genuine_certificate_behind_is_refused(
    version: str, name: str
) -> None:
    impostor = self_signed(name, "relay.test")
    genuine_chain = [RELAY.der, meta_cert("ab" * 32)]
    ours = Handshake(
        ServerContext([impostor.der, *genuine_chain], impostor.key_der, max_version=version)
    )
    theirs = client(pin=pin_of(RELAY))
    error = failure(theirs, ours)
    assert error.cause == "certificate"
    assert "not the pinned one" in str(error)
    assert not theirs.done
    assert theirs.take_output() == b""


def test_built_in_roots_are_trusted_beside_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    failure(client(roots=[], system_roots=True), server())
    monkeypatch.setattr(roots, "BUILT_IN", (RELAY.der,))
    run(client(roots=[], system_roots=True), server())
    run(client(roots=[OTHER.der], system_roots=True), server())
    failure(client(roots=[OTHER.der], system_roots=False), server())


def test_built_in_roots_are_those_of_lets_encrypt() -> None:
    published = [
        "96bcec06264976f37460779acf28c5a7cfe8a3c0aae11a8ffcee05c0bddf08c6",
        "69729b8e15a86efc177a57afb7171dfc64add28c2fca8cf1507e34453ccb1470",
    ]
    assert [hashlib.sha256(der).hexdigest() for der in roots.BUILT_IN] == published


@pytest.mark.parametrize("days", [(-9, -2), (2, 9)])
def test_a_pinned_certificate_out_of_its_time_is_refused(days: tuple[int, int]) -> None:
    old = self_signed("relay.test", days=days)
    assert "not valid now" in str(failure(client(pin=pin_of(old)), server(old)))


def test_roots_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "roots.pem"
    file.write_text(ssl.DER_cert_to_PEM_cert(RELAY.der))
    run(client(roots=[], cafile=file), server())
    with pytest.raises(TlsError, match=r"missing\.pem"):
        client(cafile=tmp_path / "missing.pem")


def test_verifying_needs_a_name() -> None:
    with pytest.raises(ValueError, match="name"):
        client(None)


@pytest.mark.parametrize("side", ["server", "client"])
def test_tls_12_continues_through_openssl(side: str) -> None:
    ours = server(max_version="TLSv1.2" if side == "server" else "TLSv1.3")
    theirs = client(max_version="TLSv1.2" if side == "client" else "TLSv1.3")
    run(theirs, ours)
    assert ours.version == theirs.version == "TLSv1.2"
    with pytest.raises(RuntimeError):
        ours.records()
    data = bytes(range(256)) * 500
    theirs.write(data)
    ours.feed(theirs.take_output())
    got = b""
    while chunk := ours.read():
        got += chunk
    assert got == data
    assert not ours.eof
    theirs.close_notify()
    ours.feed(theirs.take_output())
    assert ours.read() == b""
    assert ours.eof


def test_changed_tls_12_records_are_refused() -> None:
    ours, theirs = server(), client(max_version="TLSv1.2")
    run(theirs, ours)
    theirs.write(b"secret")
    wire = bytearray(theirs.take_output())
    wire[-1] ^= 1
    ours.feed(wire)
    with pytest.raises(TlsError):
        ours.read()


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_tls_12_peer_that_renegotiates_is_refused_at_its_first_attempt(side: str) -> None:
    ours = server() if side == "server" else client()
    with OpenSSLPeer(None if side == "server" else RELAY, version=0x0303) as peer:
        while not (peer.step() & ours.step()):
            ours.feed(peer.take_output())
            ours.step()
            peer.feed(ours.take_output())
        peer.renegotiate()
        ours.feed(peer.take_output())
        with pytest.raises(TlsError, match="no renegotiation"):
            ours.read()
        with pytest.raises(PeerError):
            peer.read(ours.take_output())


@pytest.mark.parametrize("version", [0x0301, 0x0302])
def test_older_versions_are_refused_with_a_protocol_version_alert(version: int) -> None:
    body = (
        version.to_bytes(2) + bytes(32) + bytes.fromhex("00 0004 c013 002f 0100")
    )  # no session, two suites
    hello = bytes([1]) + len(body).to_bytes(3) + body
    ours = server()
    ours.feed(bytes([22, 3, 1]) + len(hello).to_bytes(2) + hello)
    with pytest.raises(TlsError) as error:
        ours.step()
    assert error.value.cause == "version"
    assert ours.take_output()[-2:] == bytes([2, 70])  # fatal protocol_version


@pytest.mark.parametrize(
    "method",
    ["GET /", "HEAD /", "POST /", "PUT /", "OPTIONS /", "DELETE /", "PATCH /", "CONNECT x"],
)
def test_plain_http_on_a_tls_port_is_recognised(method: str) -> None:
    ours = server()
    ours.feed(f"{method} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    with pytest.raises(TlsError) as error:
        ours.step()
    assert error.value.cause == "plain_http"


@pytest.mark.parametrize("noise", [bytes(20), b"SSH-2.0-OpenSSH_9.9\r\n", b"\xff" * 40])
def test_noise_is_distinguished_from_tls(noise: bytes) -> None:
    ours = server()
    ours.feed(noise)
    with pytest.raises(TlsError) as error:
        ours.step()
    assert error.value.cause == "not_tls"


def test_a_failed_handshake_cannot_continue() -> None:
    ours = server()
    ours.feed(bytes(20))
    with pytest.raises(TlsError):
        ours.step()
    for call in (ours.step, ours.records, ours.read, ours.close_notify, lambda: ours.feed(b"more")):
        with pytest.raises(TlsError) as error:
            call()
        assert error.value.cause == "closed"


def test_failures_leave_no_error_for_other_users_of_openssl() -> None:
    failure(client(roots=[OTHER.der]), server())
    failure(client(pin=bytes(32)), server())
    ours, theirs = server(), client()
    run(theirs, ours)
    with pytest.raises(TlsError):
        ours.records().open(bytes([23, 3, 3, 0, 20]) + bytes(20))
    assert openssl_errors() == 0


def test_a_client_that_floods_its_handshake_is_refused() -> None:
    ours = server()
    ours.feed(bytes(INPUT_MAX_BYTES))
    with pytest.raises(TlsError) as error:
        ours.feed(b"x")
    assert error.value.cause == "flood"


def test_keys_are_moved_once_and_not_before_the_end() -> None:
    ours, theirs = server(), client()
    with pytest.raises(RuntimeError):
        ours.records()
    run(theirs, ours)
    ours.records()
    with pytest.raises(TlsError):
        ours.records()


def test_steps_run_in_other_threads_while_the_owner_feeds() -> None:
    pairs = [(server(), client()) for _ in range(8)]

    def shake(ours: Handshake, theirs: Handshake) -> None:
        run(theirs, ours)

    threads = [threading.Thread(target=shake, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, theirs in pairs:
        talk(ours.records(), theirs.records())


def test_one_context_serves_many_handshakes_and_may_be_dropped_meanwhile() -> None:
    context = ServerContext([RELAY.der], RELAY.key_der, required_sni="relay.test")
    waiting = [Handshake(context) for _ in range(3)]
    del context
    for ours in waiting:
        run(client(), ours)


def test_unusable_certificates_and_keys_are_refused_with_the_reason() -> None:
    key = serialization.load_der_private_key(RELAY.key_der, None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    )
    cases: list[tuple[list[bytes], bytes, str]] = [
        ([], RELAY.key_der, "empty"),
        ([b"junk"], RELAY.key_der, "DER"),
        ([RELAY.der, b"junk"], RELAY.key_der, "DER"),
        ([RELAY.der], b"junk", "private key"),
        ([RELAY.der], b"-----BEGIN PRIVATE KEY-----\njunk", "private key"),
        ([RELAY.der], encrypted, "not encrypted"),
        ([RELAY.der], OTHER.key_der, "does not fit"),
    ]
    for chain, private, reason in cases:
        with pytest.raises(TlsError, match=reason) as error:
            ServerContext(chain, private)
        assert error.value.cause == "certificate"


@pytest.mark.parametrize(
    "options", [{"max_version": "TLSv1.1"}, {"suites": ["TLS_NULL"]}, {"required_sni": "a" * 300}]
)
def test_impossible_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        server(**options)


def context_for(certificate: Certificate, **options: Any) -> ServerContext:
    return ServerContext([certificate.der], certificate.key_der, **options)


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_a_certificate_can_be_chosen_by_the_client_hello(version: str) -> None:
    ours, theirs = (
        Handshake(DeferredContext()),
        client("other.test", roots=[OTHER.der], max_version=version),
    )
    theirs.step()
    ours.feed(theirs.take_output())
    assert not ours.step()
    assert ours.hello == ("other.test", ())
    assert ours.take_output() == b""
    assert not ours.step(), "it waits however often it is asked"
    ours.choose(context_for(OTHER))
    assert ours.hello is None
    run(theirs, ours)
    assert (ours.version, ours.server_name) == (version, "other.test")
    assert theirs.peer_chain == [OTHER.der]
    if version == "TLSv1.3":
        talk(ours.records(), theirs.records())


@pytest.mark.parametrize("protocols", [["acme-tls/1"], ["h2", "http/1.1"]])
def test_the_chosen_certificate_brings_its_own_protocols(protocols: list[str]) -> None:
    ours, theirs = Handshake(DeferredContext()), PythonClient(protocols)
    with pytest.raises(ssl.SSLWantReadError):
        theirs.tls.do_handshake()
    ours.feed(theirs.sink.read())
    ours.step()
    assert ours.hello == ("relay.test", tuple(protocols))
    ours.choose(context_for(RELAY, alpn=protocols[-1:]))
    ours.step()
    theirs.source.write(ours.take_output())
    theirs.run(ours)
    assert ours.alpn == theirs.tls.selected_alpn_protocol() == protocols[-1]


def test_a_certificate_can_be_chosen_for_a_client_that_names_no_server() -> None:
    ours, theirs = Handshake(DeferredContext()), client("127.0.0.1")
    theirs.step()
    ours.feed(theirs.take_output())
    ours.step()
    assert ours.hello == (None, ())


@pytest.mark.parametrize(
    ("cause", "alert"), [("server_name", "unrecognized name"), ("no_certificate", "internal error")]
)
def test_a_refused_choice_sends_the_client_the_cause(cause: str, alert: str) -> None:
    ours, theirs = Handshake(DeferredContext()), client()
    theirs.step()
    ours.feed(theirs.take_output())
    ours.step()
    ours.refuse(TlsError(cause, "no such thing here"))
    with pytest.raises(TlsError, match="no such thing here") as refused:
        ours.step()
    assert refused.value.cause == cause
    theirs.feed(ours.take_output())
    with pytest.raises(TlsError, match=alert):
        theirs.step()


def test_noise_does_not_reach_the_certificate_choice() -> None:
    ours = Handshake(DeferredContext())
    ours.feed(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(TlsError) as refused:
        ours.step()
    assert refused.value.cause == "plain_http"
    with pytest.raises(RuntimeError, match="no certificate is to be chosen"):
        server().choose(context_for(RELAY))
