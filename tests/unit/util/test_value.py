"""Immutable objects: equality, hash, text, copies."""

from __future__ import annotations

import copy
import pickle
from ipaddress import IPv4Network, ip_network

import pytest

from fastderp import AddressLimit, ClientClass, Limits, RateLimit
from fastderp.util.value import Value

OFFICE = ClientClass("office", networks=(ip_network("10.0.0.0/8"),), address=AddressLimit(5))

# Each twice: by position and by name.
PAIRS = [
    (RateLimit(1_000_000, 70_000), RateLimit(burst_bytes=70_000, bytes_per_s=1_000_000)),
    (
        ClientClass("ci", frozenset(), frozenset({"ci"}), (), RateLimit(5)),
        ClientClass(name="ci", apps=frozenset({"ci"}), rate=RateLimit(5)),
    ),
    (
        Limits(RateLimit(5), AddressLimit(1), (OFFICE,)),
        Limits(classes=(OFFICE,), address=AddressLimit(1), rate=RateLimit(5)),
    ),
]
VALUES = [pair[0] for pair in PAIRS]


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda value: type(value).__name__)
def test_equal_arguments_make_equal_objects(one: Value, other: Value) -> None:
    assert one == other and hash(one) == hash(other)
    assert len({*VALUES, other}) == len(VALUES)


def test_objects_with_another_argument_or_class_differ() -> None:
    class Faster(RateLimit):
        pass

    assert RateLimit(1) != RateLimit(2)
    assert RateLimit(1) != (1, 65_568)
    assert RateLimit(1) != Faster(1) and Faster(1) != RateLimit(1)
    assert Limits(RateLimit()) != Limits()


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_the_repr_makes_an_equal_object(value: Value) -> None:
    names = {
        cls.__name__: cls for cls in (AddressLimit, ClientClass, IPv4Network, Limits, RateLimit)
    }
    assert eval(repr(value), names) == value


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_an_attribute_can_neither_be_set_nor_deleted(value: Value) -> None:
    for name in (*type(value).__match_args__, "other"):  # type: ignore[attr-defined]
        with pytest.raises(AttributeError, match="immutable"):
            setattr(value, name, None)
        with pytest.raises(AttributeError, match="immutable"):
            delattr(value, name)


def test_copies_have_what_the_constructor_derives() -> None:
    limits = Limits(classes=(OFFICE,))
    address = bytes(10) + b"\xff\xff\x0a\x00\x00\x01"
    for again in (copy.copy(limits), copy.deepcopy(limits), pickle.loads(pickle.dumps(limits))):
        assert again == limits
        assert again.of_address(address) == AddressLimit(5)


def test_arguments_can_be_matched_by_position() -> None:
    match RateLimit(1_000_000, 70_000):
        case RateLimit(rate, burst):
            assert (rate, burst) == (1_000_000, 70_000)
