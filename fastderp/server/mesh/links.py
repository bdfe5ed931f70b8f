"""Maintains the links to the other relays of the region; their sessions are in the data plane.

PROTOCOL §7. One task per member dials it, waits for the link's end and dials again. The keys that a link
announces become forwarders in the data plane until the link ends. Loop thread only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fastderp.dataplane.plane import ClosedEvent, FrameEvent, Plane, PlaneError
from fastderp.errors import BoxError, DerpError, DialError, ProtocolError
from fastderp.net.settling import Settling
from fastderp.net.target import PIN_PREFIX, UrlTarget, certificate_pin
from fastderp.server.mesh.dial import CONNECT_TIMEOUT_S, DialedRelay, JoinSocket, dial
from fastderp.server.mesh.withdrawals import KEYS_PER_TURN, Withdrawals
from fastderp.server.observe.supervisor import supervisor
from fastderp.server.observe.values import Value
from fastderp.tls.context import ClientContext
from fastderp.util import jitter
from fastderp.util.net import address_bytes
from fastderp.wire import login
from fastderp.wire.keys import Box, MeshKey, NodePrivate, NodePublic
from fastderp.wire.messages import ServerRestarting, parse_message
from fastderp.wire.protocol import KEY_SIZE, FrameType, PeerGoneReason, frame

log: logging.Logger = logging.getLogger("fastderp")

# The wait doubles from the first to the last value, ± 20 %, so that relays do not dial at the same
# time.
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 5.0
JITTER = 0.2
# Minimum duration of a link that resets the wait.
GOOD_LINK_S = 30.0
# Maximum of the delay that a restarting relay may request.
MAX_RESTART_WAIT_S = 30.0
# Seconds before the next attempt when the data plane had no memory for a key.
REFUSED_RETRY_S = 1.0
# Maximum of keys that one relay may announce: their routes take about 50 MB.
MAX_KEYS_PER_LINK = 250_000


class LinkState(StrEnum):
    """The states of a link: dialling → login → up → waiting → dialling …, or finally itself."""

    DIALLING = "dialling"
    LOGIN = "login"  # connected; up when the other relay lists its first client, this relay
    UP = "up"
    WAITING = "waiting"
    ITSELF = "itself"


@dataclass(frozen=True, slots=True)
class MeshPeer:
    """A member of the region. PROTOCOL §7.1, §12.

    Args:
        name: as the operator wrote it, without a pin, for logs and metrics.
        url: its address, as for HTTPClient.
        dial_host: the host of the TCP connection; the URL's host if empty.
        pin: SHA-256 of its only acceptable certificate (DER); None for one signed by a known CA.
    """

    name: str
    url: str
    dial_host: str = ""
    pin: bytes | None = None

    @classmethod
    def parse(cls, text: str) -> MeshPeer:
        """Read a `text` of `host[:port]`, `host[:port]/dialhost` or an http:// or https:// URL.

        With a suffix `=sha256-raw:` and 64 hex digits, as in a DERP map's CertName, only that
        certificate is accepted. Raises ValueError for any other text.
        """
        where, pinned, digits = text.partition(f"={PIN_PREFIX}")
        pin = certificate_pin(PIN_PREFIX + digits) if pinned else None
        if where.startswith(("http://", "https://")):
            if pin is not None and where.startswith("http://"):
                raise ValueError("plain HTTP has no certificate: remove =sha256-raw:…")
            peer = cls(where, where, pin=pin)
        else:
            host, slash, dial_host = where.partition("/")
            if not host or "/" in dial_host or (slash and not dial_host):
                raise ValueError(f"want HOST or HOST/DIALHOST, not {where!r}")
            peer = cls(where, f"https://{host}/derp", dial_host, pin)
        peer.target()
        return peer

    def target(self) -> UrlTarget:
        """Return the address to dial. Raises ValueError for a malformed host."""
        return UrlTarget(self.url, "", self.dial_host)


class _ItIsOurselves(Exception):
    pass


class MeshLink:
    """The link to one member, from its addition to its removal."""

    def __init__(self, mesh: Mesh, peer: MeshPeer) -> None:
        self.peer = peer
        self.state: LinkState = LinkState.DIALLING
        self.server_key: NodePublic | None = None
        self.n_connects: int = 0
        self.n_failures: int = 0
        self._mesh = mesh
        self._plane = mesh.plane
        self._handle = 0
        self._keys: set[bytes] = set()
        # Keys announced, but refused by the data plane for lack of memory.
        self._refused: set[bytes] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._box: Box | None = None
        self._ended: asyncio.Future[str] | None = None
        self._settling: Settling | None = None
        self._up_since_s = 0.0
        self._retry_s = FIRST_RETRY_S
        self._advised_s = 0.0
        self._complaint = ""
        self._back = asyncio.Event()

    @property
    def keys(self) -> frozenset[bytes]:
        """The keys that the member has announced."""
        return frozenset(self._keys)

    @property
    def n_keys(self) -> int:
        """The number of keys that the member has announced."""
        return len(self._keys)

    async def run(self) -> None:
        """Maintain the link until cancelled, or until the member proves to be this relay."""
        try:
            while True:
                try:
                    await self._connect_and_stay()
                except _ItIsOurselves:
                    self.state = LinkState.ITSELF
                    log.info("mesh: %s is this relay itself", self.peer.name)
                    return
                except (DerpError, OSError) as error:
                    self._complain(str(error))
                except Exception as error:
                    supervisor.note(
                        "mesh link", error, f"next attempt to link to {self.peer.name} follows"
                    )
                self._withdraw()
                self.state = LinkState.WAITING
                self.n_failures += 1
                await self._pause(self._next_wait_s())
        finally:
            self._withdraw()

    async def _connect_and_stay(self) -> None:
        """Connect and wait for the end, which is always an error."""
        self.state = LinkState.DIALLING
        dialled = await dial(self.peer.target(), self._mesh.tls_context(self.peer.pin))
        try:
            if dialled.server_key == self._mesh.public_key:
                raise _ItIsOurselves
            self._promote(dialled)
        finally:
            dialled.close()
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        deadline = loop.call_later(
            CONNECT_TIMEOUT_S, supervisor.guarded("mesh link", self._login_expired)
        )
        try:
            raise DialError(await self._ended)
        finally:
            deadline.cancel()

    def _promote(self, dialled: DialedRelay) -> None:
        """Have the data plane log in as this relay and ask for presence at once. PROTOCOL §7.3."""
        mesh = self._mesh
        try:
            self._box = mesh.private_key.box(dialled.server_key)
        except BoxError as error:
            raise ProtocolError(f"the relay's key cannot be used: {error}") from None
        info = login.ClientInfo(can_ack_pings=True, mesh_key=mesh.mesh_key())
        first = login.client_info_frame(mesh.public_key, self._box, info) + frame(
            FrameType.WATCH_CONNS
        )
        records, remote = dialled.records(), dialled.remote
        self.server_key = dialled.server_key
        descriptor, attach = dialled.hand_over(mesh.join)
        self._handle = self._plane.promote(
            descriptor,
            dialled.server_key.raw,
            link=True,
            first=first,
            unread=dialled.wire if records is not None else dialled.opened,
            opened=dialled.opened if records is not None else b"",
            records=records,
            addr=address_bytes(remote[0]),
            port=remote[1],
        )
        attach(self._handle)
        mesh.links_by_handle[self._handle] = self
        self.state = LinkState.LOGIN

    def _login_expired(self) -> None:
        if self.state is LinkState.LOGIN:
            self._give_up("the relay did not answer the login")

    async def _pause(self, wait_s: float) -> None:
        """Wait before the next attempt, or until the member logs in to this relay."""
        self._back.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._back.wait()

    def peer_arrived(self, key: NodePublic) -> None:
        """Dial the member now if it may be the relay that has just logged in to this one."""
        if self.server_key is None or self.server_key == key:
            self._back.set()

    # Events of the data plane

    def received(self, frame_type: int, payload: bytes) -> None:
        """Act on a frame of the other relay."""
        if frame_type == FrameType.PEER_PRESENT:
            self._announced(payload[:KEY_SIZE])
        elif frame_type == FrameType.PEER_GONE:
            self._gone(payload)
        elif frame_type == FrameType.SERVER_INFO:
            self._check_server_info(payload)
        elif frame_type == FrameType.RESTARTING:
            self._note_restart(payload)

    def closed(self, event: ClosedEvent) -> None:
        """Note that the connection has ended."""
        if self.state is LinkState.LOGIN:
            reason = (
                "the relay closed the connection instead of listing its clients:"
                " check that both have the same mesh key"
            )
        else:
            reason = f"the link broke: {event.detail or event.reason}"
        self._end(reason)

    def _announced(self, key: bytes) -> None:
        if self.state is LinkState.LOGIN:
            self._is_up()
        if self._settling is not None:
            self._settling.arrived()
        if key in self._keys or key in self._refused:
            return
        if len(self._keys) + len(self._refused) >= self._mesh.max_keys_per_link:
            self._mesh.n_keys_ignored += 1
        elif not self._add(key):
            self._mesh.n_keys_ignored += 1
            self._refused.add(key)
            self._retry_later()

    def _add(self, key: bytes) -> bool:
        """Make the key reachable through this link; False when there is no memory for it."""
        try:
            self._plane.add_forwarder(key, self._handle)
        except PlaneError:
            return False
        self._keys.add(key)
        return True

    def _retry_later(self) -> None:
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(
                REFUSED_RETRY_S, supervisor.guarded("mesh link", self._retry_refused)
            )

    def _retry_refused(self) -> None:
        """Retry the keys refused for lack of memory, in batches, until one is refused again."""
        self._retry = None
        for _ in range(min(len(self._refused), KEYS_PER_TURN)):
            key = self._refused.pop()
            if not self._add(key):
                self._refused.add(key)
                break
        if self._refused:
            self._retry_later()

    def _is_up(self) -> None:
        self.state = LinkState.UP
        self.n_connects += 1
        self._up_since_s = asyncio.get_running_loop().time()
        self._complaint = ""
        self._settling = Settling(self._is_listed)

    def _is_listed(self) -> None:
        assert self.server_key is not None
        log.info(
            "mesh: linked to %s %s; %d peers",
            self.peer.name,
            self.server_key.short,
            len(self._keys),
            extra={
                "fields": {
                    "event": "mesh_up",
                    "peer": self.peer.name,
                    "key": self.server_key.short,
                    "clients": len(self._keys),
                }
            },
        )

    def _gone(self, payload: bytes) -> None:
        key = payload[:KEY_SIZE]
        if payload[KEY_SIZE:] == bytes((PeerGoneReason.NOT_HERE,)):
            log.debug("mesh: %s does not have %s", self.peer.name, NodePublic(key).short)
        self._keys.discard(key)
        self._refused.discard(key)
        self._plane.remove_forwarder(key, self._handle)

    def _check_server_info(self, payload: bytes) -> None:
        box, self._box = self._box, None
        if box is None:
            return
        try:
            login.open_server_info(box, payload)
        except ProtocolError as error:
            self._give_up(str(error))

    def _note_restart(self, payload: bytes) -> None:
        message = parse_message(FrameType.RESTARTING, payload)
        if isinstance(message, ServerRestarting):
            self._advised_s = min(message.reconnect_in_s, MAX_RESTART_WAIT_S)
            log.info("mesh: %s restarts", self.peer.name)

    # The end of a connection

    def _give_up(self, reason: str) -> None:
        self._plane.close_session(self._handle)
        self._end(reason)

    def _end(self, reason: str) -> None:
        self._withdraw()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(reason)

    def _withdraw(self) -> None:
        """Withdraw every forwarder of this connection, and close it if it is open."""
        handle, self._handle = self._handle, 0
        self._box = None
        if self._settling is not None:
            self._settling.stop()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._refused.clear()
        keys, self._keys = self._keys, set()
        self._mesh.withdrawals.add(handle, keys)
        if handle:
            self._mesh.links_by_handle.pop(handle, None)
            self._plane.close_session(handle)

    def _next_wait_s(self) -> float:
        advised_s, self._advised_s = self._advised_s, 0.0
        lived_s = asyncio.get_running_loop().time() - self._up_since_s if self._up_since_s else 0.0
        self._up_since_s = 0.0
        if lived_s >= GOOD_LINK_S:
            self._retry_s = FIRST_RETRY_S
        wait_s, self._retry_s = self._retry_s, min(2 * self._retry_s, LAST_RETRY_S)
        return max(advised_s, wait_s * jitter.uniform(1 - JITTER, 1 + JITTER))

    def _complain(self, text: str) -> None:
        """Log the reason for a missing link; a repeated reason is logged once."""
        if text != self._complaint:
            self._complaint = text
            fields = {"event": "mesh_down", "peer": self.peer.name, "reason": text}
            log.warning("mesh: no link to %s: %s", self.peer.name, text, extra={"fields": fields})


class Mesh:
    """All links of a relay to its region."""

    def __init__(
        self,
        plane: Plane,
        private_key: NodePrivate,
        mesh_key: Callable[[], MeshKey],
        join: JoinSocket,
        tls: ClientContext | None = None,
    ) -> None:
        """Start without members.

        Args:
            private_key: the key of this relay for its logins.
            mesh_key: returns the secret to send.
            join: bridges connections over TLS 1.2.
            tls: the trusted certificates; None for the system's roots.
        """
        self.plane = plane
        self.private_key = private_key
        self.public_key: NodePublic = private_key.public_key
        self.mesh_key = mesh_key
        self.join = join
        self.max_keys_per_link = MAX_KEYS_PER_LINK
        self.n_keys_ignored = 0
        self.links_by_handle: dict[int, MeshLink] = {}
        self.withdrawals: Withdrawals = Withdrawals(plane)
        self._tls = tls
        self._links: dict[MeshPeer, tuple[MeshLink, asyncio.Task[None]]] = {}

    @property
    def links(self) -> list[MeshLink]:
        """The links, one per member."""
        return [link for link, _ in self._links.values()]

    @property
    def keys(self) -> set[bytes]:
        """The keys that the data plane reaches through links, including ended ones."""
        return self.withdrawals.keys.union(*(link.keys for link in self.links))

    @property
    def has_other_relays(self) -> bool:
        """Whether another relay of the region serves clients now."""
        return any(link.state is LinkState.UP for link in self.links)

    def tls_context(self, pin: bytes | None) -> ClientContext:
        """Return a context that trusts the certificate with this hash, or the system's roots."""
        if pin is not None:
            return ClientContext(pin=pin)
        if self._tls is None:
            self._tls = ClientContext()
        return self._tls

    def set_peers(self, peers: Iterable[MeshPeer]) -> None:
        """Replace the members: end links to old ones, start links to new ones, keep the rest."""
        wanted = dict.fromkeys(peers)
        for peer in [peer for peer in self._links if peer not in wanted]:
            self._links.pop(peer)[1].cancel()
        for peer in wanted:
            if peer not in self._links:
                link = MeshLink(self, peer)
                task = supervisor.start("mesh link", link.run, name=f"mesh link {peer.name}")
                self._links[peer] = (link, task)

    def received(self, event: FrameEvent) -> bool:
        """Handle a frame of a link; return False if the session is not a link."""
        link = self.links_by_handle.get(event.handle)
        if link is not None:
            link.received(event.type, event.payload)
        return link is not None

    def peer_arrived(self, key: NodePublic) -> None:
        """Note a mesh peer's login, probably of a member that has just started."""
        for link in self.links:
            link.peer_arrived(key)

    def closed(self, event: ClosedEvent) -> None:
        """Note the end of a session, which may be a link."""
        link = self.links_by_handle.get(event.handle)
        if link is not None:
            link.closed(event)

    def metrics(self) -> dict[str, Value]:
        """Return the state of every link, labelled with the member as the operator wrote it."""
        links = self.links
        return {
            "fastderp_mesh_links": {
                (link.peer.name, state.value): int(link.state is state)
                for link in links
                for state in LinkState
            },
            "fastderp_mesh_keys": _by_host(links, lambda link: link.n_keys),
            "fastderp_mesh_connects_total": _by_host(links, lambda link: link.n_connects),
            "fastderp_mesh_failures_total": _by_host(links, lambda link: link.n_failures),
        }

    async def close(self) -> None:
        """End every link."""
        tasks = [task for _, task in self._links.values()]
        self._links.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.withdrawals.close()


def _by_host(links: list[MeshLink], number: Callable[[MeshLink], int]) -> dict[Any, int]:
    return {(link.peer.name,): number(link) for link in links}
