"""The keys of boxes by the crypto library, beside libsodium's."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastderp.tls.agreement import Agreement
from fastderp.wire import sodium

KEYS = st.binary(min_size=32, max_size=32)
# Points of small order, canonical and not (RFC 7748 §6.1): 0, 1, p - 1, p, p + 1, and two of order 8.
LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
]


@given(private=KEYS, public=KEYS)
def test_the_keys_are_those_of_libsodium(private: bytes, public: bytes) -> None:
    assert Agreement(private).shared_key(public) == sodium.shared_key(public, private)


def test_one_private_key_agrees_with_many_public_ones() -> None:
    private = os.urandom(32)
    agreement = Agreement(private)
    for _ in range(10):
        public = sodium.public_key(os.urandom(32))
        assert agreement.shared_key(public) == sodium.shared_key(public, private)


@pytest.mark.parametrize("high_bit", [0, 0x80])
@pytest.mark.parametrize("text", LOW_ORDER)
def test_a_public_key_of_low_order_is_refused(text: str, high_bit: int) -> None:
    public = bytearray.fromhex(text)
    public[31] |= high_bit
    agreement = Agreement(os.urandom(32))
    assert agreement.shared_key(bytes(public)) is None
    # The next agreement is not affected.
    assert agreement.shared_key(sodium.public_key(os.urandom(32))) is not None


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_of_another_size_is_an_error(size: int) -> None:
    with pytest.raises(ValueError, match=f"a private key has 32 bytes, not {size}"):
        Agreement(bytes(size))
    with pytest.raises(ValueError, match=f"a public key has 32 bytes, not {size}"):
        Agreement(os.urandom(32)).shared_key(bytes(size))
