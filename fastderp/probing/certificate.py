"""Describes the certificate that a relay presents. Pure functions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import ip_address

from fastderp.net.target import PIN_PREFIX
from fastderp.probing.step import Finding, Outcome
from fastderp.tls.x509 import read_leaf

DAY_S = 86_400
# CAs' clients renew earlier, also those of certificates that are valid for few days only.
SHORT_S = 2 * DAY_S


def certificate_finding(der: bytes, cert_name: str, *, is_trusted: bool) -> Finding:
    """Describe the leaf of a relay: its names, its pin, the days until it expires.

    `cert_name` is that of the probe, `is_trusted` whether the handshake has accepted the leaf.
    Raises TlsError for a malformed certificate.
    """
    leaf = read_leaf(der)
    names = [*leaf.dns_names, *(str(ip_address(packed)) for packed in leaf.addresses)]
    pin = PIN_PREFIX + leaf.sha256.hex()
    left_s = leaf.not_after - time.time()
    details = {
        "names": names,
        "pin": pin,
        "pin_matched": cert_name.lower() == pin if cert_name.startswith(PIN_PREFIX) else None,
        "not_before": _iso(leaf.not_before),
        "not_after": _iso(leaf.not_after),
        "days_left": round(left_s / DAY_S, 1),
        "self_signed": leaf.is_self_signed,
    }
    parts = [_listed(names) or "no names", _validity(left_s, leaf.not_before - time.time())]
    if details["pin_matched"]:
        parts.append(f"matches {pin[: len(PIN_PREFIX) + 8]}…")
    elif leaf.is_self_signed:
        parts.append("self-signed" if is_trusted else f"self-signed, {pin}")
    is_due = left_s < SHORT_S or leaf.not_before > time.time()
    outcome = Outcome.NOTE if is_due else Outcome.OK
    return Finding("; ".join(parts), details, outcome=outcome)


def _validity(left_s: float, until_valid_s: float) -> str:
    if until_valid_s > 0:
        return f"not valid for another {_days(until_valid_s)}"
    return f"expired {_days(-left_s)} ago" if left_s < 0 else f"expires in {_days(left_s)}"


def _days(seconds: float) -> str:
    days = seconds / DAY_S
    return f"{days:.1f} days" if days < 10 else f"{days:.0f} days"


def _listed(names: Sequence[str], limit: int = 2) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _iso(unix: int) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat().replace("+00:00", "Z")
