"""The classes of clients. PROTOCOL §6.8."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest

from fastderp.server.admission.limits import AddressLimit, ClientClass, Limits
from fastderp.server.admission.rate_limit import RateLimit
from fastderp.util.net import address_bytes
from fastderp.wire.keys import NodePrivate

KEY, OTHER = b"k" * 32, b"o" * 32


def client_class(*networks: str, **conditions: Any) -> ClientClass:
    return ClientClass("x", networks=tuple(map(ip_network, networks)), **conditions)


def test_the_first_class_whose_conditions_all_hold_applies() -> None:
    limits = Limits(
        classes=(
            client_class("10.0.0.0/8", keys=frozenset({KEY})),
            client_class(keys=frozenset({KEY})),
            client_class(apps=frozenset({"ci"})),
            client_class("10.1.0.0/16", "2001:db8::/32"),
        )
    )

    def number(key: bytes, app_name: str, ip: str) -> int:
        return limits.class_of(key, app_name, address_bytes(ip))

    assert number(KEY, "ci", "10.1.0.1") == 1
    assert number(KEY, "ci", "192.0.2.1") == 2
    assert number(OTHER, "ci", "10.1.0.1") == 3
    assert number(OTHER, "", "10.1.0.1") == 4
    assert number(OTHER, "", "2001:db8:ffff::1") == 4
    assert number(OTHER, "", "10.2.0.1") == 0
    assert number(OTHER, "", "2001:db9::1") == 0
    assert number(OTHER, "", "") == 0


@pytest.mark.parametrize(
    ("network", "inside", "outside"),
    [
        ("0.0.0.0/0", "203.0.113.9", "2001:db8::1"),
        ("::/0", "2001:db8::1", None),
        ("192.0.2.7/32", "192.0.2.7", "192.0.2.8"),
        ("2001:db8::7/128", "2001:db8::7", "2001:db8::8"),
    ],
)
def test_networks_contain_addresses_of_their_family(
    network: str, inside: str, outside: str | None
) -> None:
    limits = Limits(classes=(client_class(network),))
    assert limits.class_of(KEY, "", address_bytes(inside)) == 1
    if outside is not None:
        assert limits.class_of(KEY, "", address_bytes(outside)) == 0


def test_only_classes_by_network_change_the_limits_of_an_address() -> None:
    office = ClientClass(
        "office", networks=(ip_network("10.0.0.0/8"),), address=AddressLimit(connections=9)
    )
    by_key = ClientClass("key", keys=frozenset({KEY}), address=AddressLimit(connections=5))
    limits = Limits(address=AddressLimit(connections=2), classes=(by_key, office))
    assert limits.of_address(address_bytes("10.0.0.1")).connections == 9
    assert limits.of_address(address_bytes("192.0.2.1")).connections == 2


def test_the_limits_in_force_are_described() -> None:
    office = ClientClass("office", networks=(ip_network("10.0.0.0/8"),))
    ci = ClientClass("ci", apps=frozenset({"ci"}), rate=RateLimit(5))
    assert Limits(RateLimit(), AddressLimit(64, 0.5), (office, ci)).describe() == [
        "each client: no limit",
        "each address: 64 connections, 0.5 logins/s with bursts of 20",
        "class office: no limit; each address: no limit",
        "class ci: 5 bytes/s with bursts of 65568 bytes",
    ]
    assert Limits().describe() == []


def test_more_classes_than_the_data_plane_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 255 classes, not 256"):
        Limits(classes=(client_class("10.0.0.0/8"),) * 256)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: RateLimit(-1), "bytes_per_s: want 0 to 18446744073709551615, not -1"),
        (lambda: RateLimit(1 << 64), "bytes_per_s: want 0 to "),
        (lambda: RateLimit(1000, -1), "burst_bytes: want 0 to "),
        (lambda: Limits(address=AddressLimit(-1)), "connections: want 0 or more, not -1"),
        (lambda: Limits(address=AddressLimit(1, -1.0)), "logins_per_s: want 0 or more, not -1"),
        (lambda: Limits(address=AddressLimit(1, 1.0, 0)), "login_burst: want 1 or more, not 0"),
        (lambda: ClientClass("x", address=AddressLimit(-1)), "connections: want 0 or more, not -1"),
    ],
)
def test_a_limit_out_of_bounds_is_refused(make: Callable[[], object], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        make()


@pytest.mark.parametrize(
    ("make", "error"),
    [
        # Clients cannot read a ServerInfo with such a number.
        (lambda: RateLimit(1e6), "bytes_per_s must be a whole number, not float"),  # type: ignore[arg-type]
        (lambda: Limits(0), "rate must be a RateLimit, not int"),  # type: ignore[arg-type]
        (lambda: Limits(address=5), "address must be an AddressLimit, not int"),  # type: ignore[arg-type]
        (lambda: Limits(classes=("ci",)), "classes must be a ClientClass, not str"),  # type: ignore[arg-type]
        (lambda: Limits(address=AddressLimit(1.5)), "connections must be a whole number"),  # type: ignore[arg-type]
        (
            lambda: ClientClass("x", frozenset({NodePrivate.generate().public_key})),  # type: ignore[arg-type]
            "keys must be raw public keys: NodePublic.raw",
        ),
    ],
)
def test_a_limit_of_another_type_is_refused(make: Callable[[], object], error: str) -> None:
    with pytest.raises(TypeError, match=error):
        make()
