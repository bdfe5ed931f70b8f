"""The X25519 key pairs that OpenSSL takes from us, beside OpenSSL's own."""

import _ssl
import ctypes
from collections.abc import Iterator

import pytest

from fastderp.tls import openssl
from fastderp.tls.context import ClientContext, ServerContext
from fastderp.tls.handshake import Handshake
from fastderp.wire import sodium
from tests.kit.certificates import self_signed

pytestmark = pytest.mark.skipif(
    not openssl.VERSION.startswith(("OpenSSL 3", "OpenSSL 4")) or openssl.SOURCE != "system",
    reason="the library is not an OpenSSL with providers that Python has loaded",
)

KEY = 32
OURS, THEIRS = b"provider=fastderp", b"provider=default"


@pytest.fixture(scope="module")
def crypto() -> ctypes.CDLL:
    """Return the libcrypto of this process, with the results of the functions used here."""
    library = ctypes.CDLL(getattr(_ssl, "__file__", None))
    for name in (
        "EVP_PKEY_CTX_new_from_name",
        "EVP_PKEY_CTX_new_from_pkey",
        "EVP_PKEY_new_raw_public_key_ex",
        "EVP_PKEY_get0_provider",
    ):
        getattr(library, name).restype = ctypes.c_void_p
    library.OSSL_PROVIDER_get0_name.restype = ctypes.c_char_p
    return library


@pytest.fixture
def key(crypto: ctypes.CDLL) -> Iterator[ctypes.c_void_p]:
    """A key pair of our provider."""
    pair = generate(crypto, OURS)
    assert pair
    yield pair
    crypto.EVP_PKEY_free(pair)


def generate(
    crypto: ctypes.CDLL, query: bytes | None, group: bytes = b"X25519", *, pair: bool = True
) -> ctypes.c_void_p:
    """Return a key, or one without either half; NULL when the provider refuses."""
    context = ctypes.c_void_p(crypto.EVP_PKEY_CTX_new_from_name(None, b"X25519", query))
    made = ctypes.c_void_p()
    if pair:
        assert crypto.EVP_PKEY_keygen_init(context) == 1
    else:
        assert crypto.EVP_PKEY_paramgen_init(context) == 1
    if crypto.EVP_PKEY_CTX_set_group_name(context, group) == 1:
        assert crypto.EVP_PKEY_generate(context, ctypes.byref(made)) == 1
    crypto.EVP_PKEY_CTX_free(context)
    crypto.ERR_clear_error()
    return made


def half(crypto: ctypes.CDLL, key: ctypes.c_void_p, which: str) -> bytes:
    """Return the raw "public" or "private" half of a key."""
    raw = ctypes.create_string_buffer(KEY)
    n = ctypes.c_size_t(KEY)
    read = getattr(crypto, f"EVP_PKEY_get_raw_{which}_key")
    assert read(key, raw, ctypes.byref(n)) == 1 and n.value == KEY
    return raw.raw


def agree(crypto: ctypes.CDLL, own: ctypes.c_void_p, peer: ctypes.c_void_p, query: bytes) -> bytes:
    """Return the secret that two keys agree on."""
    context = ctypes.c_void_p(crypto.EVP_PKEY_CTX_new_from_pkey(None, own, query))
    secret = ctypes.create_string_buffer(KEY)
    n = ctypes.c_size_t(KEY)
    assert crypto.EVP_PKEY_derive_init(context) == 1
    assert crypto.EVP_PKEY_derive_set_peer(context, peer) == 1
    assert crypto.EVP_PKEY_derive(context, secret, ctypes.byref(n)) == 1 and n.value == KEY
    crypto.EVP_PKEY_CTX_free(context)
    return secret.raw


def provider(crypto: ctypes.CDLL, key: ctypes.c_void_p) -> bytes:
    name: bytes = crypto.OSSL_PROVIDER_get0_name(
        ctypes.c_void_p(crypto.EVP_PKEY_get0_provider(key))
    )
    return name


def test_a_key_pair_is_new_and_its_halves_belong_together(
    crypto: ctypes.CDLL, key: ctypes.c_void_p
) -> None:
    private = half(crypto, key, "private")
    assert provider(crypto, key) == b"fastderp"
    assert half(crypto, key, "public") == sodium.public_key(private)
    assert private[0] & 7 == 0 and private[31] >> 6 == 1
    another = generate(crypto, OURS)
    assert half(crypto, another, "private") != private
    crypto.EVP_PKEY_free(another)


def test_a_key_pair_agrees_with_one_of_openssl(crypto: ctypes.CDLL, key: ctypes.c_void_p) -> None:
    other = generate(crypto, THEIRS)
    # The received half of a handshake: a key without a pair, whose public half is set.
    received = generate(crypto, OURS, pair=False)
    public = half(crypto, other, "public")
    assert crypto.EVP_PKEY_set1_encoded_public_key(received, public, ctypes.c_size_t(KEY)) == 1
    secret = agree(crypto, key, received, OURS)
    assert secret == sodium_secret(crypto, key, public)
    ours = ctypes.c_void_p(
        crypto.EVP_PKEY_new_raw_public_key_ex(
            None, b"X25519", THEIRS, half(crypto, key, "public"), ctypes.c_size_t(KEY)
        )
    )
    assert agree(crypto, other, ours, THEIRS) == secret
    for one in (other, received, ours):
        crypto.EVP_PKEY_free(one)


def sodium_secret(crypto: ctypes.CDLL, key: ctypes.c_void_p, public: bytes) -> bytes:
    """Return the agreement by libsodium's X25519."""
    from nacl.bindings import crypto_scalarmult

    secret: bytes = crypto_scalarmult(half(crypto, key, "private"), public)
    return secret


@pytest.mark.parametrize(
    "public",
    [
        bytes(KEY),
        bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    ],
)
def test_no_secret_is_agreed_on_with_a_public_key_of_low_order(
    crypto: ctypes.CDLL, key: ctypes.c_void_p, public: bytes
) -> None:
    received = generate(crypto, OURS, pair=False)
    assert crypto.EVP_PKEY_set1_encoded_public_key(received, public, ctypes.c_size_t(KEY)) == 1
    context = ctypes.c_void_p(crypto.EVP_PKEY_CTX_new_from_pkey(None, key, OURS))
    n = ctypes.c_size_t(KEY)
    assert crypto.EVP_PKEY_derive_init(context) == 1
    crypto.EVP_PKEY_derive_set_peer(context, received)
    secret = ctypes.create_string_buffer(KEY)
    assert crypto.EVP_PKEY_derive(context, secret, ctypes.byref(n)) <= 0
    crypto.EVP_PKEY_CTX_free(context)
    crypto.EVP_PKEY_free(received)
    crypto.ERR_clear_error()


@pytest.mark.parametrize("pair", [True, False])
def test_another_group_is_refused(crypto: ctypes.CDLL, pair: bool) -> None:
    assert generate(crypto, OURS, b"x25519", pair=pair)
    assert not generate(crypto, OURS, b"X448", pair=pair)


def test_other_users_of_openssl_keep_its_own_keys(crypto: ctypes.CDLL) -> None:
    theirs = generate(crypto, None)
    assert provider(crypto, theirs) == b"default"
    crypto.EVP_PKEY_free(theirs)


def test_handshakes_exchange_such_keys() -> None:
    relay = self_signed("relay.test")
    server = Handshake(ServerContext([relay.der], relay.key_der))
    client = Handshake(ClientContext(verify=False), "relay.test")
    client.step()
    hello = client.take_output()
    server.feed(hello)
    server.step()
    answer = server.take_output()
    # The entry of a key_share: the group's number, and a key of 32 bytes (RFC 8446 §4.2.8).
    x25519 = bytes.fromhex("001d 0020")
    # From OpenSSL 3.5 on both prefer X25519MLKEM768, which contains X25519.
    hybrid = bytes.fromhex("11ec 0460")
    assert x25519 in hello and (x25519 in answer or hybrid in answer)
    client.feed(answer)
    assert client.step()
