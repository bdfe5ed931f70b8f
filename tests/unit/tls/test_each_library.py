"""Requirements on every crypto library where OpenSSL and AWS-LC differ."""

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from fastderp.tls import openssl, roots
from fastderp.tls.context import ClientContext, ServerContext
from fastderp.tls.handshake import Handshake
from tests.kit.certificates import self_signed
from tests.kit.openssl_peer import OpenSSLPeer

ROOT = Path(__file__).parents[3]
RELAY = self_signed("relay.test")
LIBRARIES = ["system", *(["bundled"] if os.path.exists(openssl.BUNDLED) else [])]

# in its own process, as this process would reuse memory that earlier tests left on the heap
MEASURE_MEMORY = """
from pathlib import Path
from fastderp.server.accept.login_memory import HANDSHAKE_BYTES
from fastderp.tls.context import ClientContext, ServerContext
from fastderp.tls.handshake import Handshake
from tests.kit.certificates import self_signed
relay = self_signed("relay.test")
server, client = ServerContext([relay.der], relay.key_der), ClientContext(verify=False)
def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
def answered():
    ours, theirs = Handshake(server), Handshake(client, "relay.test")
    theirs.step()
    ours.feed(theirs.take_output())
    ours.step()
    assert ours.take_output()
    return ours
first = answered()
before = resident_bytes()
held = [answered() for _ in range(300)]
print((resident_bytes() - before) // 300, HANDSHAKE_BYTES)
"""


@pytest.mark.parametrize("crypto", LIBRARIES)
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="pads each allocation")
def test_a_waiting_handshake_holds_at_most_its_charged_memory(crypto: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_MEMORY],
        capture_output=True, text=True, check=True, cwd=ROOT,
        env=os.environ | {"FASTDERP_CRYPTO": crypto},
    )  # fmt: skip
    held, charged = map(int, done.stdout.split())
    assert charged / 8 < held <= charged


def leaf_that_signs_nothing(directory: Path) -> tuple[ServerContext, Path]:
    """Return a server whose self-signed certificate lacks keyCertSign, and its root file."""
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    certificate = self_signed("relay.test", usage=x509.KeyUsage(digital_signature=True, **usage))
    trusted = directory / "trusted.pem"
    trusted.write_text(ssl.DER_cert_to_PEM_cert(certificate.der))
    return ServerContext([certificate.der], certificate.key_der), trusted


def finish(client: Handshake, server: Handshake) -> None:
    while not (client.step() & server.step()):
        server.feed(client.take_output())
        server.step()
        client.feed(server.take_output())


def test_a_trusted_certificate_is_accepted_though_it_may_sign_no_other(tmp_path: Path) -> None:
    context, trusted = leaf_that_signs_nothing(tmp_path)
    client = Handshake(ClientContext(system_roots=False, cafile=trusted), "relay.test")
    finish(client, Handshake(context))
    assert client.done


@pytest.mark.skipif(openssl.SOURCE == "system", reason="the system's library knows its roots")
def test_roots_of_a_system_without_hashed_names_are_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check one file with all roots, as on Fedora and RHEL; bundled libraries do not find it."""
    context, trusted = leaf_that_signs_nothing(tmp_path)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setattr(roots, "BUNDLES", ("/nowhere/bundle.pem", str(trusted)))
    client = Handshake(ClientContext(), "relay.test")
    finish(client, Handshake(context))
    assert client.done


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ("TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"),
        ("TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384"),
        (
            "TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256",
            "TLS_AES_128_GCM_SHA256",
        ),
        ("TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"),
    ],
)
def test_aes_128_is_chosen_unless_the_client_puts_chacha20_first(offered: str, chosen: str) -> None:
    ours = Handshake(ServerContext([RELAY.der], RELAY.key_der))
    with OpenSSLPeer(suite=offered) as peer:
        while not (peer.step() & ours.step()):
            ours.feed(peer.take_output())
            ours.step()
            peer.feed(ours.take_output())
    assert ours.cipher == chosen
