"""The description of a certificate: names, days, pin."""

from __future__ import annotations

import hashlib

import pytest

from fastderp.probing.certificate import certificate_finding
from fastderp.probing.step import Outcome
from tests.kit.certificates import self_signed


@pytest.mark.parametrize(
    ("days", "text", "outcome"),
    [
        ((-1, 90), "a.test; expires in 90 days", Outcome.OK),
        ((-1, 5), "a.test; expires in 5.0 days", Outcome.OK),
        ((-1, 1), "a.test; expires in 1.0 days", Outcome.NOTE),
        ((-9, -1), "a.test; expired 1.0 days ago", Outcome.NOTE),
        ((3, 9), "a.test; not valid for another 3.0 days", Outcome.NOTE),
    ],
)
def test_the_validity_is_in_days(days: tuple[int, int], text: str, outcome: Outcome) -> None:
    found = certificate_finding(self_signed("a.test", days=days).der, "", is_trusted=True)
    assert (found.text, found.outcome) == (f"{text}; self-signed", outcome)
    assert found.details["days_left"] == days[1]


def test_names_and_addresses_are_shown() -> None:
    der = self_signed("a.test", "*.b.test", "192.0.2.1", "2001:db8::1").der
    found = certificate_finding(der, "", is_trusted=True)
    assert found.details["names"] == ["a.test", "*.b.test", "192.0.2.1", "2001:db8::1"]
    assert found.text.startswith("a.test, *.b.test and 2 more; ")


def test_the_pin_is_shown_where_it_is_needed() -> None:
    der = self_signed("a.test", days=(-1, 9)).der
    pin = f"sha256-raw:{hashlib.sha256(der).hexdigest()}"
    refused = certificate_finding(der, "", is_trusted=False)
    assert refused.text.endswith(f"; self-signed, {pin}")
    assert refused.details["pin_matched"] is None
    matched = certificate_finding(der, f"sha256-raw:{pin[11:].upper()}", is_trusted=True)
    assert matched.text.endswith(f"; matches {pin[:19]}…")
    assert matched.details["pin_matched"] is True
    other = certificate_finding(der, f"sha256-raw:{'00' * 32}", is_trusted=False)
    assert other.details["pin_matched"] is False
    assert other.text.endswith(f"; self-signed, {pin}")
