"""The limits of clients: rates, and the connections and logins of an address. PROTOCOL §6.8, §9.9.

Constant values; any thread.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from fastderp.server.admission.rate_limit import RateLimit
from fastderp.util import bounds
from fastderp.util.arguments import check_type
from fastderp.util.net import IpNetwork, address_bytes
from fastderp.util.value import Value

# Maximum of classes: the data plane stores the number of a class in one byte.
MAX_CLASSES = 255


class AddressLimit(NamedTuple):
    """The limits of one client address: an IPv4 address or an IPv6 /64. PROTOCOL §9.9.

    Args:
        connections: at once, logged in or not; 0 for no limit.
        logins_per_s: average; 0 for no limit.
        login_burst: logins at once after a pause.
    """

    connections: int = 0
    logins_per_s: float = 0.0
    login_burst: int = 20

    def __str__(self) -> str:
        parts = []
        if self.connections:
            parts.append(f"{self.connections} connections")
        if self.logins_per_s:
            parts.append(f"{self.logins_per_s:g} logins/s with bursts of {self.login_burst}")
        return ", ".join(parts) or "no limit"


class ClientClass(Value):
    """Separate limits for the clients that meet all set conditions. PROTOCOL §6.8.

    Args:
        name: for logs.
        keys: raw public keys; empty for any.
        apps: AppNames; empty for any. A client chooses its AppName itself.
        networks: of the client's address; empty for any.
        rate: replaces the rate of all clients.
        address: replaces the limits of each address; applies only to a class without keys and apps,
            because both are unknown when a connection arrives.

    Raises TypeError for an argument of another type, ValueError for a limit out of bounds.
    """

    __match_args__: Final = ("name", "keys", "apps", "networks", "rate", "address")
    __slots__ = (*__match_args__, "_masks")

    name: str
    keys: frozenset[bytes]
    apps: frozenset[str]
    networks: tuple[IpNetwork, ...]
    rate: RateLimit
    address: AddressLimit
    _masks: tuple[tuple[int, int], ...]  # (prefix, mask) of each network, numbers of 128 bits

    def __init__(
        self,
        name: str,
        keys: frozenset[bytes] = frozenset(),
        apps: frozenset[str] = frozenset(),
        networks: tuple[IpNetwork, ...] = (),
        rate: RateLimit = RateLimit(),
        address: AddressLimit = AddressLimit(),
    ) -> None:
        if not all(isinstance(key, bytes) for key in keys):
            raise TypeError("keys must be raw public keys: NodePublic.raw")
        _check(rate, address)
        self._set(name=name, keys=keys, apps=apps, networks=networks, rate=rate, address=address)
        self._set(_masks=tuple(map(_prefix_and_mask, networks)))

    @property
    def is_by_address(self) -> bool:
        """Whether only the address decides the membership."""
        return not self.keys and not self.apps

    def has(self, key: bytes, app_name: str, addr: int) -> bool:
        """Whether the client with this `key`, `app_name` and `addr` (128 bits) is in this class."""
        return (
            (not self.keys or key in self.keys)
            and (not self.apps or app_name in self.apps)
            and (not self._masks or self.has_address(addr))
        )

    def has_address(self, addr: int) -> bool:
        """Whether `addr`, a number of 128 bits, is in one of the networks."""
        return any(addr & mask == prefix for prefix, mask in self._masks)

    def __str__(self) -> str:
        limits = [str(self.rate)]
        if self.is_by_address:
            limits.append(f"each address: {self.address}")
        return f"class {self.name}: {'; '.join(limits)}"


class Limits(Value):
    """All limits of clients. PROTOCOL §6.8, §9.9.

    The first class that a client is in applies to it.

    Args:
        rate: of each client; None also omits it from the metrics.
        address: of each address.
        classes: up to 255.

    Raises TypeError for an argument of another type, ValueError for a limit out of bounds.
    """

    __match_args__: Final = ("rate", "address", "classes")
    __slots__ = (*__match_args__, "_by_address")

    rate: RateLimit | None
    address: AddressLimit
    classes: tuple[ClientClass, ...]
    _by_address: tuple[ClientClass, ...]

    def __init__(
        self,
        rate: RateLimit | None = None,
        address: AddressLimit = AddressLimit(),
        classes: tuple[ClientClass, ...] = (),
    ) -> None:
        _check(RateLimit() if rate is None else rate, address)
        for each in classes:
            check_type("classes", each, ClientClass)
        if len(classes) > MAX_CLASSES:
            raise ValueError(f"at most {MAX_CLASSES} classes, not {len(classes)}")
        self._set(rate=rate, address=address, classes=classes)
        self._set(_by_address=tuple(each for each in classes if each.is_by_address))

    @property
    def rates(self) -> list[RateLimit]:
        """The rates by the numbers that `class_of` returns."""
        return [self.rate or RateLimit(), *(each.rate for each in self.classes)]

    @property
    def limits_addresses(self) -> bool:
        """Whether any address has a limit."""
        limits = [self.address, *(each.address for each in self._by_address)]
        return any(limit.connections or limit.logins_per_s for limit in limits)

    def class_of(self, key: bytes, app_name: str, addr: bytes) -> int:
        """Return the number of a client's class, from 1; 0 when it is in none.

        Args:
            key: its raw public key.
            app_name: its AppName.
            addr: the 16 bytes of its address.
        """
        if not self.classes:
            return 0
        number_of_address = int.from_bytes(addr, "big")
        for number, each in enumerate(self.classes, 1):
            if each.has(key, app_name, number_of_address):
                return number
        return 0

    def of_address(self, addr: bytes) -> AddressLimit:
        """Return the limits of an address, the 16 bytes `addr`."""
        for each in self._by_address:
            if each.has_address(int.from_bytes(addr, "big")):
                return each.address
        return self.address

    def describe(self) -> list[str]:
        """Return log lines about the limits in force."""
        lines = [] if self.rate is None else [f"each client: {self.rate}"]
        if self.limits_addresses:
            lines.append(f"each address: {self.address}")
        return [*lines, *map(str, self.classes)]


def _check(rate: RateLimit, address: AddressLimit) -> None:
    """Raise TypeError or ValueError for limits that a relay cannot keep."""
    check_type("rate", rate, RateLimit)
    check_type("address", address, AddressLimit)
    bounds.NOT_NEGATIVE.check_argument("connections", address.connections, whole=True)
    bounds.NOT_NEGATIVE.check_argument("logins_per_s", address.logins_per_s)
    bounds.POSITIVE.check_argument("login_burst", address.login_burst, whole=True)


def _prefix_and_mask(network: IpNetwork) -> tuple[int, int]:
    n_bits = network.prefixlen + (96 if network.version == 4 else 0)
    prefix = int.from_bytes(address_bytes(str(network.network_address)), "big")
    return prefix, (1 << 128) - (1 << (128 - n_bits))
