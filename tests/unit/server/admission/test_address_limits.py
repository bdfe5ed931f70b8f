"""The connections and logins of an address. PROTOCOL §9.9."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from fastderp.server.admission import address_limits
from fastderp.server.admission.address_limits import AddressLimitError, AddressLimits
from fastderp.server.admission.limits import AddressLimit, ClientClass, Limits


def limited(**limit: int) -> AddressLimits:
    limits = AddressLimits()
    limits.set(Limits(address=AddressLimit(**limit)), list)
    return limits


def test_connections_count_for_an_ipv4_address_or_an_ipv6_network_of_64_bits() -> None:
    limits = limited(connections=2)
    for ips in (
        ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1"),
        ("192.0.2.2", "192.0.2.2", "192.0.2.2"),
        ("2001:db8::1", "2001:db8::ffff:2", "2001:db8::3"),
        ("2001:db8:0:1::1", "2001:db8:0:1::2", "2001:db8:0:1::3"),
    ):
        for ip in ips[:2]:
            limits.place().enter(ip)
        with pytest.raises(AddressLimitError, match="limit of its address reached: 2 connections"):
            limits.place().enter(ips[2])


def test_a_place_is_given_back_once_at_the_end_of_its_connection_or_session() -> None:
    limits = limited(connections=1)
    first = limits.place()
    first.enter("192.0.2.1")
    first.enter("192.0.2.1")
    first.leave()
    first.leave()
    second = limits.place()
    second.enter("192.0.2.1")
    limits.keep(7, second.give_away())
    second.leave()
    assert limits.place().log_in("192.0.2.1") == "limit of its address reached: 1 connections"
    limits.ended(8)
    limits.ended(7)
    limits.ended(7)
    assert limits.place().log_in("192.0.2.1") == ""


def test_a_client_without_an_address_is_not_limited() -> None:
    limits = limited(connections=1, logins_per_s=1, login_burst=1)
    assert limits.place().log_in("::1") == "", "its network is all zeros, too"
    for _ in range(3):
        assert limits.place().log_in("") == ""


def test_a_limit_that_is_lowered_closes_nothing_and_refuses_newcomers() -> None:
    limits = limited(connections=3)
    places = [limits.place() for _ in range(3)]
    for place in places:
        place.enter("192.0.2.1")
    limits.set(Limits(address=AddressLimit(connections=2)), list)
    places.pop().leave()
    with pytest.raises(AddressLimitError):
        limits.place().enter("192.0.2.1")
    places.pop().leave()
    limits.place().enter("192.0.2.1")


def test_connections_of_before_a_limit_do_not_disturb_the_count() -> None:
    limits = AddressLimits()
    early = limits.place()
    early.enter("192.0.2.1")
    limits.set(Limits(address=AddressLimit(connections=1)), list)
    limits.place().enter("192.0.2.1")
    early.leave()
    with pytest.raises(AddressLimitError):
        limits.place().enter("192.0.2.1")


def test_logins_that_come_too_fast_are_refused_for_that_address_only() -> None:
    limits = limited(logins_per_s=1, login_burst=3)
    for _ in range(3):
        assert limits.place().log_in("192.0.2.1") == ""
    assert limits.place().log_in("192.0.2.1") == "limit of its address reached: 1 logins/s"
    assert limits.place().log_in("192.0.2.2") == ""


def test_a_class_of_a_network_has_limits_of_its_own() -> None:
    limits = AddressLimits()
    office = ClientClass("office", networks=(ip_network("10.0.0.0/8"),))
    limits.set(Limits(address=AddressLimit(connections=1), classes=(office,)), list)
    for _ in range(5):
        limits.place().enter("10.0.0.1")


def test_the_memory_of_many_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_limits, "SWEEP_BUCKETS", 8)
    monkeypatch.setattr(address_limits, "MAX_BUCKETS", 64)
    limits = limited(logins_per_s=1, login_burst=1)
    limits._sweep_at = 8
    for number in range(1000):
        assert limits.place().log_in(f"10.0.{number >> 8}.{number & 255}") == ""
    assert len(limits._buckets) <= 64
    assert limits.place().log_in("10.0.3.231") != "", "the latest is still known"
