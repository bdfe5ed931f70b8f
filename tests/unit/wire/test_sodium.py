"""NaCl's box, compiled and in plain Python, beside PyNaCl's own functions. PROTOCOL §1."""

from __future__ import annotations

from types import ModuleType

import pytest
from nacl.public import Box, PrivateKey

from fastderp.wire import portable_sodium, sodium

IMPLEMENTATIONS = (sodium, portable_sodium)
OURS, THEIRS = PrivateKey(bytes(range(1, 33))), PrivateKey(bytes(range(33, 65)))
NONCE = bytes(range(24))


@pytest.fixture(params=IMPLEMENTATIONS, ids=["compiled", "portable"])
def boxes(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


@pytest.fixture
def shared(boxes: ModuleType) -> bytes:
    key: bytes = boxes.shared_key(bytes(THEIRS.public_key), bytes(OURS))
    return key


def test_two_keys_agree_as_in_pynacl(boxes: ModuleType, shared: bytes) -> None:
    assert shared == Box(OURS, THEIRS.public_key).shared_key()
    assert boxes.shared_key(bytes(OURS.public_key), bytes(THEIRS)) == shared
    assert boxes.public_key(bytes(OURS)) == bytes(OURS.public_key)


@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17, 24, 4096, 70000])
def test_a_box_opens_in_pynacl_and_pynacls_box_opens_here(
    boxes: ModuleType, shared: bytes, n: int
) -> None:
    message = bytes(i % 251 for i in range(n))
    sealed = boxes.seal(shared, NONCE, message)
    assert sealed == Box(THEIRS, OURS.public_key).encrypt(message, NONCE).ciphertext
    assert boxes.open_sealed(shared, NONCE, sealed) == message


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 17, 20])
def test_a_box_that_is_cut_or_changed_does_not_open(
    boxes: ModuleType, shared: bytes, cut: int
) -> None:
    sealed = boxes.seal(shared, NONCE, b"packet")
    assert boxes.open_sealed(shared, NONCE, sealed[:cut]) is None
    for i in range(len(sealed)):
        changed = sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1 :]
        assert boxes.open_sealed(shared, NONCE, changed) is None
    assert boxes.open_sealed(shared, NONCE[:-1], sealed) is None
    assert boxes.open_sealed(shared, bytes(24), sealed) is None


def test_no_key_is_shared_with_a_key_of_low_order(boxes: ModuleType) -> None:
    assert boxes.shared_key(bytes(32), bytes(OURS)) is None
    assert boxes.shared_key(b"\1" + bytes(31), bytes(OURS)) is None


def test_secrets_are_compared(boxes: ModuleType) -> None:
    secret = bytes(range(32))
    assert boxes.are_equal(secret, bytes(range(32)))
    assert not boxes.are_equal(secret, bytes(31) + b"\1")


@pytest.mark.parametrize("n", [0, 31, 33])
def test_keys_of_another_size_are_refused(n: int) -> None:
    key, wrong = bytes(OURS), bytes(range(1, n + 1))
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        sodium.shared_key(wrong, key)
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        sodium.shared_key(key, wrong)
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        sodium.public_key(wrong)
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        sodium.seal(wrong, NONCE, b"")
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        sodium.open_sealed(wrong, NONCE, bytes(16))
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        sodium.are_equal(key, wrong)
