"""Counts the connections and logins of each client address, and refuses those over its limits.

The unit is an IPv4 address or an IPv6 network of 64 bits, because a machine chooses among the
addresses of its network. Loop thread only. PROTOCOL §9.9.
"""

from __future__ import annotations

from collections.abc import Callable

from fastderp.dataplane.plane import SessionInfo
from fastderp.server.admission.limits import Limits
from fastderp.util.net import address_bytes
from fastderp.util.token_bucket import TokenBucket

# IPv4 as 4 bytes, the network of an IPv6 address as 8.
Group = bytes

_MAPPED = bytes(10) + b"\xff\xff"
_NO_ADDRESS = bytes(16)

# Limit of the buckets of recent addresses; above this number, full buckets are removed.
SWEEP_BUCKETS = 4096
# At this number the older half is removed; those addresses get a full burst again.
MAX_BUCKETS = 65536


class AddressLimitError(Exception):
    """An address has reached a limit, which the text names."""

    reason = "address"


class AddressLimits:
    """The limits in force, and their use by each address.

    Connections are counted after the first limit is set.
    """

    def __init__(self) -> None:
        self._limits = Limits()
        self._is_counting = False
        self._connections: dict[Group, int] = {}
        self._sessions: dict[int, Group] = {}
        self._buckets: dict[Group, TokenBucket] = {}
        self._sweep_at = SWEEP_BUCKETS

    def place(self) -> AddressPlace:
        """Return the place of a new connection, which is not counted yet."""
        return AddressPlace(self)

    def set(self, limits: Limits, sessions: Callable[[], list[SessionInfo]]) -> None:
        """Apply these limits to later connections and logins.

        sessions: returns every session; called when counting begins.
        """
        self._limits = limits
        self._buckets.clear()
        if limits.limits_addresses and not self._is_counting:
            self._is_counting = True
            for session in sessions():
                if not session.link:
                    self.keep(session.handle, self._count(session.addr))

    def enter(self, ip: str) -> Group | None:
        """Count a connection from `ip`; return the argument of `leave`.

        A client without an address ("") is not counted: None.

        Raises AddressLimitError when the address has reached its limit of connections.
        """
        if not self._is_counting:
            return None
        addr = address_bytes(ip)
        if addr == _NO_ADDRESS:
            return None
        limit = self._limits.of_address(addr).connections
        if limit and self._connections.get(_group(addr), 0) >= limit:
            raise AddressLimitError(f"limit of its address reached: {limit} connections")
        return self._count(addr)

    def leave(self, group: Group | None) -> None:
        """Count the end of a connection."""
        if group is not None:
            self._connections[group] -= 1
            if not self._connections[group]:
                del self._connections[group]

    def keep(self, handle: int, group: Group | None) -> None:
        """Take over the place of a connection for a session until `ended`."""
        if group is not None:
            self._sessions[handle] = group

    def ended(self, handle: int) -> None:
        """Count the end of a session."""
        if self._sessions:
            self.leave(self._sessions.pop(handle, None))

    def take_login(self, ip: str) -> None:
        """Count a login. Raises AddressLimitError when the address exceeds its rate of logins."""
        if not self._is_counting:
            return
        addr = address_bytes(ip)
        limit = self._limits.of_address(addr)
        if not limit.logins_per_s or addr == _NO_ADDRESS:
            return
        group = _group(addr)
        bucket = self._buckets.get(group)
        if bucket is None:
            if len(self._buckets) >= self._sweep_at:
                self._sweep()
            bucket = TokenBucket(limit.logins_per_s, limit.login_burst)
            self._buckets[group] = bucket
        if not bucket.take():
            raise AddressLimitError(
                f"limit of its address reached: {limit.logins_per_s:g} logins/s"
            )

    def _count(self, addr: bytes) -> Group | None:
        if addr == _NO_ADDRESS:
            return None
        group = _group(addr)
        self._connections[group] = self._connections.get(group, 0) + 1
        return group

    def _sweep(self) -> None:
        """Remove the buckets of addresses without a recent login."""
        for group in [group for group, bucket in self._buckets.items() if bucket.is_full]:
            del self._buckets[group]
        if len(self._buckets) >= MAX_BUCKETS:
            for group in list(self._buckets)[: MAX_BUCKETS // 2]:
                del self._buckets[group]
        # Doubling keeps the cost of sweeps, spread over the logins, constant.
        self._sweep_at = max(SWEEP_BUCKETS, min(2 * len(self._buckets), MAX_BUCKETS))


def _group(addr: bytes) -> Group:
    return addr[12:] if addr.startswith(_MAPPED) else addr[:8]


class AddressPlace:
    """The place of one connection among those of its client's address."""

    __slots__ = ("_group", "_limits")

    def __init__(self, limits: AddressLimits) -> None:
        self._limits = limits
        self._group: Group | None = None

    def enter(self, ip: str) -> None:
        """Count the connection for this address, "" for none. Raises AddressLimitError."""
        if self._group is None:
            self._group = self._limits.enter(ip)

    def log_in(self, ip: str) -> str:
        """Count a login, and the connection if it is not counted yet.

        Return the reason of a refusal, or "".
        """
        try:
            self.enter(ip)
            self._limits.take_login(ip)
        except AddressLimitError as error:
            return str(error)
        return ""

    def leave(self) -> None:
        """Release the place; a no-op without one."""
        if self._group is not None:
            self._limits.leave(self.give_away())

    def give_away(self) -> Group | None:
        """Return the place, for a session that keeps it."""
        group, self._group = self._group, None
        return group
