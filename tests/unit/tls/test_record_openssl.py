"""The record layer against OpenSSL after a real handshake, record by record."""

import os
from collections.abc import Iterator

import pytest

from fastderp.tls.context import ClientContext, ServerContext
from fastderp.tls.errors import TlsError
from fastderp.tls.handshake import Handshake
from fastderp.tls.record import RecordLayer
from tests.kit.certificates import self_signed
from tests.kit.openssl_peer import OpenSSLPeer, PeerError
from tests.kit.records import SUITES

CERTIFICATE = self_signed("relay.test")
SIZES = [1, 2, 100, 1400, 16383, 16384, 16385, 40_000]


def shake(ours: Handshake, peer: OpenSSLPeer) -> RecordLayer:
    """Run the handshake to its end and take our keys."""
    for _ in range(10):
        done = ours.step()
        peer.feed(ours.take_output())
        if peer.step() and done:
            break
        ours.feed(peer.take_output())
    layer = ours.records()
    peer.feed(ours.take_output())
    return layer


@pytest.fixture(
    params=[(side, suite) for side in ("server", "client") for suite in SUITES], ids="-".join
)
def link(request: pytest.FixtureRequest) -> Iterator[tuple[RecordLayer, OpenSSLPeer]]:
    """Return our record layer on the named side and OpenSSL on the other."""
    side, suite = request.param
    if side == "server":
        ours = Handshake(ServerContext([CERTIFICATE.der], CERTIFICATE.key_der))
        with OpenSSLPeer(suite=suite) as peer:
            yield shake(ours, peer), peer
    else:
        ours = Handshake(ClientContext(roots=[CERTIFICATE.der], system_roots=False), "relay.test")
        with OpenSSLPeer(CERTIFICATE, suite=suite) as peer:
            yield shake(ours, peer), peer


def test_records_of_both_sides_open_at_the_other(
    link: tuple[RecordLayer, OpenSSLPeer],
) -> None:
    layer, peer = link
    for size in SIZES:
        data = os.urandom(size)
        assert peer.read(layer.seal(data)) == data
        assert layer.open(peer.write(data)) == data


def test_many_small_records_in_one_read(link: tuple[RecordLayer, OpenSSLPeer]) -> None:
    layer, peer = link
    peer.fragment(512)
    data = os.urandom(20_000)
    wire = peer.write(data)
    assert layer.open(wire[:10_001]) + layer.open(wire[10_001:]) == data


def test_padded_records_of_openssl_are_read(link: tuple[RecordLayer, OpenSSLPeer]) -> None:
    layer, peer = link
    peer.pad_to(1024)
    peer.key_update(ask=False)  # OpenSSL from 3.2 on pads from the next change of keys on
    for size in (1, 1000, 1023, 1024, 16000):
        wire = peer.write(bytes(size))
        assert len(wire) >= 1024
        assert layer.open(wire) == bytes(size)


@pytest.mark.parametrize("ask", [False, True])
def test_openssl_changes_its_key_and_we_answer_when_asked(
    link: tuple[RecordLayer, OpenSSLPeer], ask: bool
) -> None:
    layer, peer = link
    for turn in range(5):
        text = b"turn %d" % turn
        peer.key_update(ask=ask)
        assert layer.open(peer.write(text)) == text
        wire = layer.seal(text)
        assert (len(wire) > len(text) + 22) == ask
        assert peer.read(wire) == text


def test_we_change_our_key_and_openssl_answers(link: tuple[RecordLayer, OpenSSLPeer]) -> None:
    layer, peer = link
    for turn in range(5):
        text = b"turn %d" % turn
        layer.ask_key_update()
        assert peer.read(layer.seal(text)) == text
        assert layer.open(peer.write(text)) == text


def test_both_sides_change_keys_at_the_same_time(link: tuple[RecordLayer, OpenSSLPeer]) -> None:
    layer, peer = link
    layer.ask_key_update()
    peer.key_update(ask=True)
    ours, theirs = layer.seal(b"ours"), peer.write(b"theirs")
    assert (peer.read(ours), layer.open(theirs)) == (b"ours", b"theirs")
    assert peer.read(layer.seal(b"again")) == b"again"
    assert layer.open(peer.write(b"again")) == b"again"


def test_close_notify_is_understood_both_ways(link: tuple[RecordLayer, OpenSSLPeer]) -> None:
    layer, peer = link
    assert peer.read(layer.seal(b"bye") + layer.close_notify()) == b"bye"
    assert peer.got_close_notify
    assert layer.open(peer.close_notify()) == b""
    assert layer.eof


def test_openssl_understands_our_alert(link: tuple[RecordLayer, OpenSSLPeer]) -> None:
    layer, peer = link
    with pytest.raises(PeerError):
        peer.read(layer.alert(20))


def test_openssl_and_we_refuse_the_same_changes(link: tuple[RecordLayer, OpenSSLPeer]) -> None:
    layer, peer = link
    wire = bytearray(peer.write(b"to us"))
    wire[-1] ^= 1
    with pytest.raises(TlsError, match="authenticate"):
        layer.open(bytes(wire))
    wire = bytearray(layer.seal(b"to openssl"))
    wire[-1] ^= 1
    with pytest.raises(PeerError):
        peer.read(bytes(wire))


@pytest.mark.parametrize("tickets", [0, 1, 8])
def test_a_client_ignores_any_number_of_tickets(tickets: int) -> None:
    ours = Handshake(ClientContext(roots=[CERTIFICATE.der], system_roots=False), "relay.test")
    with OpenSSLPeer(CERTIFICATE, tickets=tickets) as peer:
        layer = shake(ours, peer)
        peer.step()
        assert layer.open(peer.write(b"data")) == b"data"
        assert peer.read(layer.seal(b"data")) == b"data"


def test_data_sent_with_the_last_handshake_message_is_not_lost() -> None:
    ours = Handshake(ServerContext([CERTIFICATE.der], CERTIFICATE.key_der))
    with OpenSSLPeer() as peer:
        peer.step()
        ours.feed(peer.take_output())
        ours.step()
        peer.feed(ours.take_output())
        assert peer.step()
        ours.feed(peer.write(b"first request"))
        assert ours.step()
        assert ours.records().open() == b"first request"
