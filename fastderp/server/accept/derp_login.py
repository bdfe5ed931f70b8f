"""One client's DERP login: greeting, ClientInfo, admission, ServerInfo. PROTOCOL §3, §8.

Sans I/O: bytes in, bytes and the next step out. The caller owns the stream, the clock and the
call to admission.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import Enum

from fastderp.errors import LoginError
from fastderp.server.http.upgrade import switching_protocols
from fastderp.tls.openssl import LIBRARY
from fastderp.util.net import address_bytes
from fastderp.wire.keys import NodePrivate
from fastderp.wire.login import (
    Agree,
    ClientInfo,
    ClientLogin,
    ServerInfo,
    check_app_name_allowed,
    check_client_info_header,
    open_client_info,
    server_key_frame,
)
from fastderp.wire.protocol import HEADER, HEADER_SIZE


class Step(Enum):
    """The action that a login needs next from its caller.

    READ ─┬─► ASK ─┬─► ADMIT
          ├────────┤
          └────────┴─► REFUSE
    """

    READ = "read"
    """More bytes of the client."""
    ASK = "ask"
    """The answer of admission about `client`, through `judge`."""
    ADMIT = "admit"
    """A session for `client`: the login is complete."""
    REFUSE = "refuse"
    """The end of the connection, for `reason` and `detail`."""


# Python 3.11 takes 0.1 µs to look a member of an enumeration up.
READ, ASK, ADMIT, REFUSE = Step


class LoginTerms:
    """The settings that all logins of a relay share.

    Args:
        private_key: the relay's identity.
        is_mesh_peer: whether a ClientInfo shows the region's secret.
        server_info: the limits to announce to a client, by its raw key, its AppName and the 16 bytes
            of its address.
        disallowed_app_names: AppNames of clients to refuse, mesh peers excepted. PROTOCOL §22.
    """

    def __init__(
        self,
        private_key: NodePrivate,
        is_mesh_peer: Callable[[ClientInfo], bool],
        server_info: Callable[[bytes, str, bytes], ServerInfo],
        disallowed_app_names: Collection[str] = (),
    ) -> None:
        self.private_key = private_key
        self.agree: Agree | None = None
        if LIBRARY == "AWS-LC":  # the only crypto library that is faster than libsodium
            from fastderp.tls.agreement import Agreement

            self.agree = Agreement(private_key.raw).shared_key
        self.is_mesh_peer = is_mesh_peer
        self.server_info = server_info
        self.disallowed_app_names: frozenset[str] = frozenset(disallowed_app_names)
        # Whether admission has to be asked about clients other than mesh peers.
        self.asks_admission = False
        public_key = private_key.public_key
        self._server_key = server_key_frame(public_key)
        self._switching = switching_protocols(public_key.hex) + self._server_key

    def greeting(self, fast_start: bool) -> bytes:
        """Return the relay's first bytes: the 101 response, without a fast start, and its key."""
        return self._server_key if fast_start else self._switching


class DerpLogin:
    """Reads one ClientInfo and admits or refuses its client, with the caller's help.

    Args:
        terms: the settings that all logins share.
        ip: the client's address.
        fast_start: leave the 101 response out of the greeting.
    """

    __slots__ = (
        "_client",
        "_ip",
        "_output",
        "_terms",
        "_unread",
        "detail",
        "is_mesh_peer",
        "reason",
    )

    def __init__(self, terms: LoginTerms, ip: str, *, fast_start: bool) -> None:
        self._terms = terms
        self._ip = ip
        self._client: ClientLogin | None = None
        self._unread = bytearray()
        # The first step sends it: a pipelined login gets it in one write with ServerInfo.
        self._output = terms.greeting(fast_start)
        self.is_mesh_peer: bool = False
        self.reason: str = ""
        self.detail: str = ""

    @property
    def client(self) -> ClientLogin:
        """The client, once its ClientInfo was read."""
        assert self._client is not None
        return self._client

    @property
    def rest(self) -> bytes:
        """The bytes after the ClientInfo, or the part of it that has arrived."""
        return bytes(self._unread)

    @property
    def held_bytes(self) -> int:
        """The memory that the client's bytes take."""
        return len(self._unread)

    def feed(self, data: bytes) -> None:
        """Add bytes of the client."""
        self._unread += data

    def step(self) -> Step:
        """Read the ClientInfo if it is complete; return what is needed next."""
        try:
            payload = self._take_client_info()
            if payload is None:
                return READ
            self._client = open_client_info(self._terms.private_key, payload, self._terms.agree)
            self.is_mesh_peer = self._terms.is_mesh_peer(self._client.info)
            if self._terms.disallowed_app_names and not self.is_mesh_peer:
                check_app_name_allowed(self._client.info, self._terms.disallowed_app_names)
        except LoginError as error:
            return self._refuse(error.reason, str(error))
        if self._terms.asks_admission and not self.is_mesh_peer:
            return ASK
        return self._admit()

    def judge(self, refusal: str) -> Step:
        """Continue with admission's answer: the reason of a refusal, "" to admit the client."""
        return self._refuse("denied", refusal) if refusal else self._admit()

    def take_output(self) -> bytes:
        """Return the bytes to send; after ADMIT the session may send them."""
        output, self._output = self._output, b""
        return output

    def _take_client_info(self) -> bytes | None:
        """Return the payload of ClientInfo once its frame is complete."""
        unread = self._unread
        if len(unread) < HEADER_SIZE:
            return None
        frame_type, length = HEADER.unpack_from(unread)
        check_client_info_header(frame_type, length)
        end = HEADER_SIZE + length
        if len(unread) < end:
            return None
        payload = bytes(unread[HEADER_SIZE:end])
        del unread[:end]
        return payload

    def _admit(self) -> Step:
        client = self.client
        if self.is_mesh_peer:
            info = ServerInfo()
        else:
            addr = address_bytes(self._ip)
            info = self._terms.server_info(client.public.raw, client.info.app_name, addr)
        self._output += client.server_info_frame(info)
        return ADMIT

    def _refuse(self, reason: str, detail: str) -> Step:
        self.reason = reason
        self.detail = detail
        return REFUSE
