"""One accepted connection from its first byte to the hand-over: TLS, HTTP, login, admission. PROTOCOL §3, §9, §10.

Lives on the loop thread, within one time budget and bounded memory; nothing of it remains once the data plane has the connection.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from enum import Enum
from typing import TYPE_CHECKING

from fastderp.errors import LoginError
from fastderp.server.accept import websocket
from fastderp.server.accept.bridge import Bridge
from fastderp.server.accept.channel import Channel, Clear, Tls12, farewell
from fastderp.server.accept.stream import Stream
from fastderp.server.accept.tls_handshake import Negotiation
from fastderp.server.accept.websocket import WebSocket
from fastderp.server.certificates.acme.challenges import ALPN_PROTOCOL
from fastderp.server.http import message as http
from fastderp.server.http.message import BadRequest, HeadParser, Request, Response, Upgrade
from fastderp.server.http.tunnel import Target, Tunnels
from fastderp.tls.errors import TlsError
from fastderp.tls.handshake import Handshake
from fastderp.tls.record import RecordLayer
from fastderp.wire.login import ClientLogin, check_client_info_header
from fastderp.wire.protocol import HEADER, HEADER_SIZE

if TYPE_CHECKING:
    from fastderp.server.accept.listener import Listener

log = logging.getLogger("fastderp")

# How long the peer of a refused connection has to read the answer, and how much more it may say meanwhile.
LINGER_S = 0.5
LINGER_BYTES = 256 * 1024
# A page that takes its time ends after this long, as a forgotten browser would keep it open for days.
PAGE_S = 300.0
# A real ClientInfo is a tenth of this. Larger ones are legal, but come out of the memory shared by all.
SMALL_LOGIN_BYTES = 1024


class State(Enum):
    """Where a connection is.

    accept ─┬─► TLS ─┐
            └────────┴─► HTTP ─► LOGIN ─┬─────────────────┬─► PROMOTED
                         ▲  │ │         └─► ADMISSION ────┘
            next request └──┘ ├─► PAGE (one that takes its time)
                              └─► TUNNEL (dialling) ─► PROMOTED

    From all but PROMOTED: ─► CLOSED, or ─► LINGER ─► CLOSED after an answer.
    """

    TLS = "tls"
    HTTP = "http"
    PAGE = "page"
    TUNNEL = "tunnel"
    LOGIN = "login"
    ADMISSION = "admission"
    PROMOTED = "promoted"
    LINGER = "linger"
    CLOSED = "closed"


_LEGAL_MOVES = {
    State.TLS: {State.HTTP, State.LINGER, State.CLOSED},
    State.HTTP: {State.LOGIN, State.PAGE, State.TUNNEL, State.LINGER, State.CLOSED},
    State.TUNNEL: {State.PROMOTED, State.LINGER, State.CLOSED},
    State.PAGE: {State.LINGER, State.CLOSED},
    State.LOGIN: {State.ADMISSION, State.PROMOTED, State.LINGER, State.CLOSED},
    State.ADMISSION: {State.PROMOTED, State.LINGER, State.CLOSED},
    State.LINGER: {State.CLOSED},
    State.PROMOTED: set(),
    State.CLOSED: set(),
}


class Connection:
    """Reads and answers until the client is logged in or has to go."""

    __slots__ = (
        "_channel",
        "_entrance",
        "_greeting",
        "_head",
        "_idle",
        "_journal",
        "_listener",
        "_loop",
        "_n_lingered",
        "_negotiation",
        "_reserved_bytes",
        "_stream",
        "_task",
        "_timer",
        "_tls_version",
        "_unread",
        "_upgrade",
        "remote",
        "state",
    )

    def __init__(self, listener: Listener, sock: socket.socket, remote: tuple[str, int]) -> None:
        """Take over an accepted socket; its time starts now."""
        self._listener = listener
        self._entrance = listener.entrance
        self._journal = listener.entrance.journal
        self._loop = listener.loop
        self.remote = remote
        self._stream = Stream(
            listener.entrance.poller, sock, self._on_bytes, self._on_end, self._on_drained
        )
        self._channel: Channel = Clear()
        self._negotiation: Negotiation | None = None
        self._tls_version = ""
        self._head: HeadParser | None = None
        self._unread: bytes | bytearray = b""
        self._greeting = b""
        self._upgrade: Upgrade | None = None
        self._reserved_bytes = 0
        self._n_lingered = 0
        self._idle = False
        self._task: asyncio.Task[None] | None = None
        self.state = State.TLS if listener.tls is not None else State.HTTP
        self._timer = self._loop.call_later(listener.login_budget_s, self._on_time)
        self._stream.resume()

    def close(self, reason: str, detail: str = "") -> None:
        """End the connection at once, counting why; a no-op when it is over or handed over."""
        if self.state in (State.CLOSED, State.PROMOTED):
            return
        if self.state is not State.LINGER:
            self._journal.note_refused(self.state.value, reason, self.remote, detail)
        self._move(State.CLOSED)
        self._release()
        self._stream.close()

    def leave(self) -> None:
        """End the connection because the relay goes away; say so if the peer can be told at once."""
        if (
            self.state in (State.HTTP, State.PAGE, State.LOGIN, State.ADMISSION)
            and self._stream.flushed
        ):
            websocket.leave(self._channel)
            self._stream.send(farewell(self._channel))
        self.close("shutdown")

    @property
    def tls_version(self) -> str:
        """ "1.2" or "1.3" once TLS is spoken, "" before that and without."""
        return self._tls_version.removeprefix("TLSv")

    @property
    def is_at_request(self) -> bool:
        """Whether a request is being served that takes its time: a login, a page, a tunnel that is being dug."""
        return self.state in (State.LOGIN, State.ADMISSION, State.PAGE, State.TUNNEL)

    def _move(self, state: State) -> None:
        """Change state; a move the diagram does not have is a bug of ours."""
        if state not in _LEGAL_MOVES[self.state]:
            raise RuntimeError(f"a connection cannot go from {self.state.name} to {state.name}")
        self.state = state

    def _release(self) -> None:
        """Give back the timer, the memory and the place among those not yet logged in."""
        self._timer.cancel()
        self._listener.unreserve(self._reserved_bytes)
        self._reserved_bytes = 0
        self._unread = b""
        if self._negotiation is not None:
            self._negotiation.cancel()
            self._negotiation = None
        if self._task is not None:
            self._task.cancel()
        self._listener.forget(self)

    def _set_budget(self, budget_s: float) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(budget_s, self._on_time)

    # What the stream and the clock say

    def _on_bytes(self, data: bytes) -> None:
        self._guard(self._receive, data)

    def _on_drained(self) -> None:
        self._guard(self._go_on)

    def _guard(self, act: Callable[..., None], *args: object) -> None:
        """Act; whatever goes wrong ends this connection and nothing else."""
        try:
            act(*args)
        except TlsError as error:
            self._refuse_tls(error)
        except Exception:
            log.exception("%s: an error of ours", self.remote[0])
            self.close("internal")

    def _receive(self, data: bytes) -> None:
        if self.state is State.TLS:
            if self._negotiation is None:
                self._negotiation = self._negotiate()
            self._negotiation.feed(data)
        else:
            self._take(self._channel.open(data))
        if isinstance(self._channel, WebSocket):
            self._after_frames(self._channel)
        elif self._channel.eof and self.state in (State.HTTP, State.PAGE, State.LOGIN):
            self._on_end(None)

    def _go_on(self) -> None:
        """Continue after the peer has taken what it was told."""
        if self.state is State.LINGER:
            self._stream.end_output()
        else:
            self._stream.resume()
            self._advance()

    def _on_end(self, error: OSError | None) -> None:
        if self.state is State.LINGER:
            self.close("end")
        elif error is not None:
            self.close("reset", error.strerror or "")
        elif self.state is State.HTTP and not self._stream.flushed:
            # A client that has said all it wants still gets the rest of its answer.
            self._linger()
        elif isinstance(self._channel, WebSocket):
            # The closing handshake gets time to arrive.
            self._refuse("end", self._what_was_cut_off(), b"")
        else:
            self.close("end", self._what_was_cut_off())

    def _what_was_cut_off(self) -> str:
        """Say what the client left unfinished, "" when it had not begun, as who only asks for our key never does."""
        if self.state is State.LOGIN and self._unread:
            return "the client left before its login was complete"
        if self.state is State.HTTP and self._head is not None:
            return "the client left in the middle of a request"
        return ""

    def _on_time(self) -> None:
        if self._idle:
            self.close("idle")
        elif self._negotiation is not None and self._negotiation.waits_for_certificate:
            self.close("timeout", "its certificate was not issued in time")
        else:
            self.close("timeout", "not logged in in time")

    # TLS

    def _negotiate(self) -> Negotiation:
        """Begin the handshake. Only now that the client has said something: what OpenSSL needs for it is large."""
        assert self._listener.tls is not None
        entrance = self._entrance
        return Negotiation(
            self._listener.tls,
            self._stream,
            entrance.poller,
            entrance.handshakes,
            guard=self._guard,
            done=self._secured,
        )

    def _secured(self, handshake: Handshake) -> None:
        """Go on to HTTP behind a handshake that is complete."""
        if handshake.alpn == ALPN_PROTOCOL:
            # A CA that has seen what it wanted; RFC 8737 §3 allows nothing behind the handshake.
            self._linger()
            return
        self._negotiation = None
        self._tls_version = handshake.version or ""
        if handshake.version == "TLSv1.3":
            self._channel = handshake.records()
        else:
            self._channel = Tls12(handshake)
        self._move(State.HTTP)
        self._take(self._channel.open(b""))

    def _refuse_tls(self, error: TlsError) -> None:
        """Send the alert, or tell a browser that came without TLS, and close."""
        if self.state is State.LINGER:
            self.close("end")
        elif error.cause == "plain_http":
            self._refuse(error.cause, str(error), http.PLAIN_HTTP_ON_TLS_PORT)
        elif self._negotiation is not None:
            self._refuse(error.cause, str(error), self._negotiation.take_output())
        else:
            self._refuse(error.cause, str(error), b"")

    # Plain bytes

    def _take(self, data: bytes) -> None:
        """Add plain bytes and act on what is complete."""
        if self.state in (State.LINGER, State.PAGE):
            self._n_lingered += len(data)
            if self._n_lingered > LINGER_BYTES:
                self.close("end")
            return
        if self._unread:
            self._unread += data
        else:
            self._unread = data
        self._advance()

    def _advance(self) -> None:
        """Go on as long as there is input and the peer takes what it is told."""
        while self._unread and self._stream.flushed:
            if self.state is State.HTTP:
                self._read_request()
            else:
                if self.state is State.LOGIN:
                    self._read_login()
                break
        if not self._stream.flushed:
            self._stream.pause()

    # HTTP

    def _read_request(self) -> None:
        if self._idle:
            self._idle = False
            self._set_budget(self._listener.login_budget_s)
        data, self._unread = bytes(self._unread), b""
        known = self._listener.known_upgrades.find(data) if self._head is None else None
        if known is not None:
            upgrade, self._unread = known
            self._note_request()
            self._start_login(upgrade)
        else:
            self._parse_request(data)

    def _parse_request(self, data: bytes) -> None:
        is_whole = self._head is None
        head = self._head = self._head or HeadParser()
        try:
            request = head.feed(data)
        except BadRequest as error:
            self._refuse(str(error.status), error.reason, self._channel.seal(error.response()))
            return
        if request is None:
            return
        self._unread = head.rest
        self._head = None
        self._answer(request, data[: len(data) - len(head.rest)] if is_whole else b"")

    def _note_request(self) -> None:
        if self._tls_version:
            self._journal.note_request(self.tls_version)

    def _answer(self, request: Request, head: bytes) -> None:
        """Answer a request; `head` is how it came, if in one piece."""
        request.remote = self.remote
        request.secure = bool(self._tls_version)
        self._note_request()
        tunnels = self._listener.tunnels
        if request.method == "CONNECT" and tunnels is not None:
            self._open_tunnel(request, tunnels)
            return
        if request.path == "/derp" and self._listener.routes.derp:
            upgrade = http.derp_upgrade(request)
            if upgrade is not None:
                if head:
                    self._listener.known_upgrades.remember(head, upgrade)
                self._start_login(upgrade)
                return
            if http.wants_websocket(request):
                self._open_websocket(request)
                return
            if odd := request.header("upgrade"):
                self._journal.note_odd_upgrade(self.remote, odd)
        answer = self._page(request)
        if isinstance(answer, Response):
            self._respond(request, answer)
        else:
            self._start_page(self._answer_later(request, answer))

    def _respond(self, request: Request, response: Response) -> None:
        close = response.close or response.pieces is not None
        close = close or not request.keep_alive or request.has_body or request.method == "CONNECT"
        self._stream.send(self._channel.seal(response.encode(request, close)))
        if response.pieces is not None and request.method != "HEAD":
            self._start_page(self._send_pieces(response.pieces))
        elif close:
            self._linger()
        else:
            self._idle = True
            self._set_budget(self._listener.idle_s)

    def _page(self, request: Request) -> Response | Awaitable[Response]:
        try:
            return self._listener.routes.respond(request)
        except Exception:
            return _no_answer(request)

    # WebSocket

    def _open_websocket(self, request: Request) -> None:
        """Answer the opening handshake; what came behind it are frames already."""
        opening = websocket.accept(request)
        if isinstance(opening, Response):
            self._respond(request, opening)
            return
        self._stream.send(self._channel.seal(opening.response))
        channel = WebSocket(self._channel, self._stream, self._journal.websocket_failures)
        self._channel = channel
        if not opening.derp:
            self._refuse(
                "websocket",
                "no subprotocol is derp",
                channel.fail(1008, "the subprotocol must be derp"),
            )
            return
        self._journal.note_websocket()
        self._unread = channel.unwrap(bytes(self._unread))
        self._start_login(Upgrade(fast_start=True, not_ideal=False))
        self._after_frames(channel)

    def _after_frames(self, channel: WebSocket) -> None:
        """Look after a WebSocket that was read from: it may be closing, or hold much of a message that is not complete."""
        if self.state is not State.LOGIN:
            return
        if channel.eof:
            self._on_end(None)
        elif channel.held_bytes > SMALL_LOGIN_BYTES and not self._reserve(channel.held_bytes):
            self._refuse("memory", "no memory left for a long message", b"")

    # Tunnels

    def _open_tunnel(self, request: Request, tunnels: Tunnels) -> None:
        """Begin to connect to where the client wants to be taken."""
        target = Target.parse(request.target)
        if target is None:
            self._respond(request, http.text_error(403, "Invalid CONNECT target"))
            return
        self._move(State.TUNNEL)
        # What it says meanwhile waits in the kernel; how long that is says the dialling.
        self._stream.pause()
        self._timer.cancel()
        self._task = self._loop.create_task(self._dial(request, tunnels, target))

    async def _dial(self, request: Request, tunnels: Tunnels, target: Target) -> None:
        try:
            sock = await tunnels.connect(target)
        except OSError as error:
            log.debug("%s: cannot connect to %s: %s", self.remote[0], target.host, error)
            self._task = None
            self._guard(self._respond, request, http.text_error(502, "Connect failure"))
        else:
            self._task = None
            self._guard(self._hand_over, tunnels, sock)

    def _hand_over(self, tunnels: Tunnels, sock: socket.socket) -> None:
        first = bytes(self._unread)
        self._move(State.PROMOTED)
        self._release()
        tunnels.join(self._entrance.poller, self._stream, self._channel, sock, first)

    # Pages that take their time

    def _start_page(self, page: Coroutine[None, None, None]) -> None:
        """Begin a page that takes its time, PAGE_S at most; what the client says meanwhile is not looked at."""
        self._move(State.PAGE)
        self._unread = b""
        self._timer.cancel()
        self._task = self._loop.create_task(self._send_page(page))

    async def _send_page(self, page: Coroutine[None, None, None]) -> None:
        try:
            async with asyncio.timeout(PAGE_S):
                await page
        except TimeoutError:
            pass
        except Exception:
            log.exception("%s: a page ended with an error of ours", self.remote[0])
        self._task = None
        if self.state is State.PAGE:
            self._guard(self._linger)

    async def _send_pieces(self, pieces: AsyncIterator[bytes]) -> None:
        """Send piece after piece; a client that is behind misses some."""
        async for piece in pieces:
            if self._stream.flushed:
                self._stream.send(self._channel.seal(piece))

    async def _answer_later(self, request: Request, answer: Awaitable[Response]) -> None:
        try:
            response = await answer
        except Exception:
            response = _no_answer(request)
        self._stream.send(self._channel.seal(response.encode(request, close=True)))

    # Login

    def _start_login(self, upgrade: Upgrade) -> None:
        """Begin the DERP conversation. The greeting waits a moment: a pipelined login lets it share a write with ServerInfo."""
        self._journal.note_accept()
        self._move(State.LOGIN)
        self._upgrade = upgrade
        self._greeting = self._entrance.greeting(upgrade.fast_start)
        # From here on pieces are added, possibly many.
        self._unread = bytearray(self._unread)
        if not self._unread:
            self._send_greeting()

    def _send_greeting(self) -> None:
        if self._greeting:
            self._stream.send(self._channel.seal(self._greeting))
            self._greeting = b""

    def _read_login(self) -> None:
        """Read ClientInfo once it is there, and let the client in or not."""
        try:
            login = self._client_info()
        except LoginError as error:
            self._send_greeting()
            self._refuse(error.reason, str(error), b"")
            return
        if login is None:
            self._send_greeting()
        else:
            self._admit(login)

    def _client_info(self) -> ClientLogin | None:
        """Return the login once its frame is complete."""
        unread = self._unread
        if len(unread) < HEADER_SIZE:
            return None
        frame_type, length = HEADER.unpack_from(unread)
        check_client_info_header(frame_type, length)
        if length > SMALL_LOGIN_BYTES and not self._reserve(length):
            raise LoginError("memory", f"no memory left for a ClientInfo of {length} bytes")
        end = HEADER_SIZE + length
        if len(unread) < end:
            return None
        login = self._entrance.open_client_info(bytes(unread[HEADER_SIZE:end]))
        self._unread = bytes(unread[end:])
        return login

    def _reserve(self, n_bytes: int) -> bool:
        """Hold at least so much of the memory that all logins share; False when it is used up."""
        more = n_bytes - self._reserved_bytes
        if more > 0:
            if not self._listener.reserve(more):
                return False
            self._reserved_bytes = n_bytes
        return True

    def _admit(self, login: ClientLogin) -> None:
        mesh = self._entrance.is_mesh_peer(login)
        if mesh or self._entrance.verify is None:
            self._promote(login, mesh)
            return
        self._move(State.ADMISSION)
        self._stream.pause()
        self._task = self._loop.create_task(self._ask_admission(login))

    async def _ask_admission(self, login: ClientLogin) -> None:
        refusal = await self._entrance.refusal(login, self.remote[0])
        self._task = None
        if self.state is not State.ADMISSION:
            return
        if refusal:
            self._send_greeting()
            self._refuse("denied", refusal, b"")
        else:
            self._promote(login, mesh=False)

    # The end of it

    def _promote(self, login: ClientLogin, mesh: bool) -> None:
        """Hand the connection to the data plane: descriptor, keys, what to say first and what was read too far."""
        assert self._upgrade is not None
        try:
            descriptor, bridge = self._give_away_stream()
        except OSError as error:
            self._refuse("shortage", error.strerror or "", b"")
            return
        first = self._greeting + self._entrance.server_info(login, mesh)
        opened = bytes(self._unread)
        self._move(State.PROMOTED)
        self._release()
        handle = self._entrance.promote(
            descriptor,
            login,
            self.remote,
            first=first,
            opened=opened,
            records=self._channel if isinstance(self._channel, RecordLayer) else None,
            mesh=mesh,
            not_ideal=self._upgrade.not_ideal,
            on_end=bridge.session_ended if bridge is not None else None,
            own_rtt=bridge is not None and bridge.has_round_trips,
        )
        if bridge is not None:
            bridge.handle = handle

    def _give_away_stream(self) -> tuple[int, Bridge | None]:
        """Return a descriptor the data plane can read: the socket's, or one end of a bridge."""
        if isinstance(self._channel, (Clear, RecordLayer)):
            return self._stream.detach(), None
        return self._entrance.bridges.join(self._stream, self._channel, self.tls_version)

    def _refuse(self, reason: str, detail: str, answer: bytes) -> None:
        """Count and log why the peer has to go, tell it, and close."""
        self._journal.note_refused(self.state.value, reason, self.remote, detail)
        self._stream.send(answer)
        self._linger()

    def _linger(self) -> None:
        """Let the answer arrive before closing: closing on unread input would reset the connection under it."""
        if self.state is not State.TLS:
            self._stream.send(farewell(self._channel))
        self._move(State.LINGER)
        self._unread = b""
        self._set_budget(LINGER_S)
        self._stream.resume()
        if self._stream.flushed:
            self._stream.end_output()


def _no_answer(request: Request) -> Response:
    """Log why there is no answer; return the one that says so."""
    log.exception("no answer to %s %s", request.method, ascii(request.target))
    return http.text_error(500, "internal server error")
