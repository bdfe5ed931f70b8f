"""The client's side of TLS without compiled modules."""

import pytest

from fastderp.tls import portable
from fastderp.tls.errors import TlsError
from tests.kit.certificates import self_signed
from tests.kit.openssl_peer import OpenSSLPeer, PeerError

RELAY = self_signed("relay.test")


def test_a_tls_12_relay_that_renegotiates_is_refused_at_its_first_attempt() -> None:
    handshake = portable.Handshake(portable.ClientContext(verify=False), "relay.test")
    with OpenSSLPeer(RELAY, version=0x0303) as peer:
        while not (handshake.step() & peer.step()):
            peer.feed(handshake.take_output())
            peer.step()
            handshake.feed(peer.take_output())
        peer.read(handshake.take_output())
        channel = portable.channel_of(handshake)
        assert channel.open(peer.write(b"data")) == b"data"
        assert peer.read(channel.seal(b"answer")) == b"answer"
        peer.renegotiate()
        with pytest.raises(TlsError, match="no renegotiation"):
            channel.open(peer.take_output())
        assert channel.failure is not None
        with pytest.raises(PeerError):
            peer.read(channel.close_notify())
