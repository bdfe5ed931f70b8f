"""Reads the limits of clients from the `-rate-config` file. PROTOCOL §6.8.

The file is derper's, a JSON object with two members; the other members are ours. derper ignores
those; this relay ignores unknown members with a warning.
"""

from __future__ import annotations

import ipaddress
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fastderp.errors import ConfigError
from fastderp.server.admission.limits import MAX_CLASSES, AddressLimit, ClientClass, Limits
from fastderp.server.admission.rate_limit import RateLimit
from fastderp.util import bounds, files
from fastderp.util.json_members import folded
from fastderp.util.net import IpNetwork
from fastderp.util.text import nearest, printable
from fastderp.wire.keys import NodePublic

log: logging.Logger = logging.getLogger("fastderp")

T = TypeVar("T")

_UINT64_MAX = (1 << 64) - 1
LIMIT_MEMBERS = (
    "PerClientRateLimitBytesPerSec",
    "PerClientRateBurstBytes",
    "PerAddressConnections",
    "PerAddressLoginsPerSec",
    "PerAddressLoginBurst",
)
TOP_MEMBERS = (*LIMIT_MEMBERS, "Classes")
CLASS_MEMBERS = ("Name", "Keys", "Apps", "CIDRs", *LIMIT_MEMBERS)


def load_limits(path: Path, address: AddressLimit = AddressLimit()) -> Limits:
    """Read the file at `path`; `address` has the limits of an address if the file has none.

    Raises ConfigError that names the file and the reason.
    """
    try:
        document = json.loads(files.read(path))
    except OSError as error:
        raise ConfigError(f"rate configuration {path}: cannot read it: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"rate configuration {path}: not valid JSON{_place(error)}") from None
    if not isinstance(document, dict | None):
        raise ConfigError(f"rate configuration {path}: not a JSON object")
    found = _Members(document or {})
    for name in found.unknown(TOP_MEMBERS):
        log.warning(
            "rate configuration %s: unknown member %s is ignored", path, json.dumps(name[:80])
        )
    try:
        rate, address = _rate(found, RateLimit()), _address(found, address)
        classes: tuple[ClientClass, ...] = ()
        classes = found.take("Classes", lambda value: _classes(value, rate, address), classes)
        return Limits(rate, address, classes)
    except ValueError as error:
        raise ConfigError(f"rate configuration {path}: {error}") from None


def _place(error: Exception) -> str:
    """Return the place of a JSON error and its cause; "" where the parser does not tell it."""
    if not isinstance(error, json.JSONDecodeError):
        return ""
    # Python's text of some errors ends where the place would follow.
    cause = error.msg.removesuffix(" at").removesuffix(" starting")
    return f": line {error.lineno}, column {error.colno}: {cause}"


class _Members:
    """The members of a JSON object, found by name in any case; null counts as absent."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._members = folded({name: (name, value) for name, value in document.items()})

    def unknown(self, known: tuple[str, ...]) -> list[str]:
        """Return the names of other members."""
        names = {name.casefold() for name in known}
        return [
            name for folded_name, (name, _) in self._members.items() if folded_name not in names
        ]

    def has(self, name: str) -> bool:
        """Whether a member is present and not null."""
        return self._members.get(name.casefold(), ("", None))[1] is not None

    def take(self, name: str, read: Callable[[Any], T], default: T) -> T:
        """Read a member. Raises ValueError that begins with its name as the file has it."""
        written, value = self._members.get(name.casefold(), ("", None))
        if value is None:
            return default
        try:
            return read(value)
        except ValueError as error:
            raise ValueError(f"{printable(written)} {error}") from None


def _rate(found: _Members, default: RateLimit) -> RateLimit:
    return RateLimit(
        found.take("PerClientRateLimitBytesPerSec", _bytes, default.bytes_per_s),
        found.take("PerClientRateBurstBytes", _bytes, default.burst_bytes),
    )


def _address(found: _Members, default: AddressLimit) -> AddressLimit:
    return AddressLimit(
        found.take(
            "PerAddressConnections", _whole(bounds.ADDRESS_CONNECTIONS), default.connections
        ),
        found.take("PerAddressLoginsPerSec", _logins_per_s, default.logins_per_s),
        found.take("PerAddressLoginBurst", _whole(bounds.ADDRESS_BURST), default.login_burst),
    )


def _classes(value: Any, rate: RateLimit, address: AddressLimit) -> tuple[ClientClass, ...]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError("is not a list of objects")
    if len(value) > MAX_CLASSES:
        raise ValueError(f"has {len(value)} classes, the limit is {MAX_CLASSES}")
    classes = []
    for number, item in enumerate(value, 1):
        try:
            classes.append(_class(_Members(item), number, rate, address))
        except ValueError as error:
            raise ValueError(f"{number}: {error}") from None
    return tuple(classes)


def _class(found: _Members, number: int, rate: RateLimit, address: AddressLimit) -> ClientClass:
    # In a class an unknown member is an error: a mistyped condition would put every client into it.
    for name in found.unknown(CLASS_MEMBERS):
        meant = nearest(name, CLASS_MEMBERS)
        hint = f"; did you mean {meant}?" if meant else ""
        raise ValueError(f"unknown member {printable(name)}{hint}")
    if not any(found.has(name) for name in ("Keys", "Apps", "CIDRs")):
        raise ValueError("no condition: want Keys, Apps or CIDRs")
    no_keys: tuple[bytes, ...] = ()
    no_apps: tuple[str, ...] = ()
    made = ClientClass(
        found.take("Name", _name, str(number)),
        frozenset(found.take("Keys", _list(_key), no_keys)),
        frozenset(found.take("Apps", _list(_text), no_apps)),
        found.take("CIDRs", _list(_network), ()),
        _rate(found, rate),
        _address(found, address),
    )
    if not made.is_by_address:
        for name in LIMIT_MEMBERS[2:]:
            if found.has(name):
                raise ValueError(
                    f"{name} needs a class with CIDRs only: the key and the app are not known "
                    "when a connection arrives"
                )
    return made


def _bytes(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _UINT64_MAX:
        raise ValueError("is not a number of bytes")
    return value


def _whole(limits: bounds.Bounds) -> Callable[[Any], int]:
    """Return a reader of whole numbers within bounds."""

    def read(value: Any) -> int:
        if type(value) is not int:
            raise ValueError("is not a whole number")
        _check(limits, value)
        return value

    return read


def _logins_per_s(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError("is not a number")
    _check(bounds.ADDRESS_LOGINS, value)
    return float(value)


def _check(limits: bounds.Bounds, value: float) -> None:
    try:
        limits.check(value)
    except ValueError as error:
        raise ValueError(f"is {value}: {error}") from None


def _list(read: Callable[[str], T]) -> Callable[[Any], tuple[T, ...]]:
    """Return a reader of a list of texts."""

    def read_all(value: Any) -> tuple[T, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError("is not a list of texts")
        if not value:
            raise ValueError("is empty")
        return tuple(read(item) for item in value)

    return read_all


def _key(text: str) -> bytes:
    try:
        return NodePublic.from_text(text).raw
    except ValueError:
        raise ValueError(
            f'has "{printable(text)}", which is not nodekey:… with 64 hex digits'
        ) from None


def _network(text: str) -> IpNetwork:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(
            f"has {printable(str(error))}; want 192.0.2.0/24 or 2001:db8::/32"
        ) from None


def _text(text: str) -> str:
    return text


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("is not a text")
    return printable(value)
