"""The relay's key is read from a metacert after the leaf, and from no other certificate.

PROTOCOL §10.
"""

import pytest

from fastderp.net.metacert import announced_key
from fastderp.server.certificates.metacert import meta_cert
from fastderp.wire.keys import NodePrivate, NodePublic

KEY = NodePrivate.generate().public_key


def changed(old: bytes, new: bytes) -> bytes:
    der = meta_cert(KEY.hex)
    assert old in der
    return der.replace(old, new)


@pytest.mark.parametrize(
    ("der", "key"),
    [
        (meta_cert(KEY.hex), KEY),
        (changed(b"\x02\x01\x02\x30", b"\x02\x01\x7f\x30"), KEY),
        (changed(b"\x02\x01\x02\x30", b"\x02\x01\x00\x30"), None),
        (changed(b"derpkey", b"derpkex"), None),
        (changed(KEY.hex.encode(), b"0" * 64), None),
        (changed(KEY.hex.encode(), b"g" * 64), None),
        (b"", None),
        (b"\x30", None),
    ],
)
def test_metacert_is_recognised_by_its_name_and_small_serial(
    der: bytes, key: NodePublic | None
) -> None:
    assert announced_key([b"something else", der]) == key


def test_leaf_that_looks_like_a_metacert_announces_no_key() -> None:
    own, other = (meta_cert(NodePrivate.generate().public_key.hex) for _ in range(2))
    assert announced_key([own]) is None
    assert announced_key([own, b"something else"]) is None
    assert announced_key([b"leaf", meta_cert(KEY.hex), other]) == KEY
    assert announced_key([]) is None
