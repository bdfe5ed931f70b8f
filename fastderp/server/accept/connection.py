"""One accepted connection from its first byte to the hand-over. PROTOCOL §3, §9, §10.

`ServerHandshake`, `HttpSession` and `DerpLogin` speak the protocols, in this order; the connection
moves the bytes and owns the timers. Loop thread only; the object is freed at the hand-over to the
data plane.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fastderp.server.accept.connection_state import (
    ADMISSION,
    CLOSED,
    HTTP,
    LINGER,
    LOGIN,
    PAGE,
    PROMOTED,
    PROXY_HEADER,
    TLS,
    TUNNEL,
    State,
    moved,
)
from fastderp.server.accept.context import AcceptContext
from fastderp.server.accept.derp_login import ADMIT, ASK, READ, DerpLogin, Step
from fastderp.server.accept.http_session import (
    Action,
    HttpSession,
    Page,
    Reject,
    Reply,
    StartLogin,
    StartTunnel,
    StartWebSocket,
)
from fastderp.server.accept.login_memory import (
    CONNECTION_BYTES,
    WEBSOCKET_BYTES,
    Account,
    tls_bytes,
)
from fastderp.server.accept.message_channel import MessageChannel, leave
from fastderp.server.accept.page import send_page
from fastderp.server.accept.tls_handshake import ServerHandshake
from fastderp.server.admission.address_limits import AddressLimitError, AddressPlace
from fastderp.server.certificates.acme.settings import ALPN_PROTOCOL
from fastderp.server.http.client_address import Origin, ProxyHeaderError
from fastderp.server.http.message import PLAIN_HTTP_ON_TLS_PORT, TOO_MANY_REQUESTS
from fastderp.server.http.upgrade import Upgrade
from fastderp.server.net.stream import Stream, kernel_cause
from fastderp.server.observe.supervisor import supervisor
from fastderp.tls.channel import Channel, Plain, channel_of, close_notify
from fastderp.tls.errors import TlsError
from fastderp.tls.handshake import Handshake
from fastderp.tls.record import RecordLayer
from fastderp.util.shortage import shortage_of

if TYPE_CHECKING:
    from fastderp.server.accept.proxy_header import ProxyHeaderReader

# Limits for a refused client: its time to read the answer, and the input ignored meanwhile.
LINGER_S = 0.5
LINGER_BYTES = 256 * 1024
# Maximum wait for the memory of a TLS handshake; most clients disconnect earlier.
MEMORY_BUDGET_S = 60.0

_OVER = (CLOSED, PROMOTED)
_PLAIN = Plain()


class Connection:
    """Serves a client until its login, tunnel or refusal.

    Args:
        context: the settings that the listener's connections share.
        descriptor: an accepted socket's; its login budget starts now.
        remote: (ip, port) of the peer.
        place: its place among the connections of its address.
        on_end: called once, when the connection is closed or handed over.
    """

    __slots__ = (
        "_account", "_channel", "_channel_bytes", "_connection_log", "_context", "_deadlines",
        "_http", "_idle", "_is_queued", "_login", "_n_lingered", "_not_ideal", "_on_end", "_origin",
        "_place", "_proxy_header", "_registrar", "_stream", "_task", "_tls", "_was_served",
        "budget_s", "state", "tls_version",
    )  # fmt: skip

    def __init__(
        self,
        context: AcceptContext,
        descriptor: int,
        remote: tuple[str, int],
        place: AddressPlace,
        on_end: Callable[[Connection], None],
    ) -> None:
        self._context = context
        self._registrar = context.registrar
        self._connection_log = context.registrar.connection_log
        self._deadlines = context.registrar.deadlines
        self._on_end = on_end
        self._place = place
        self._origin = Origin.of_peer(remote, context.proxies.trusted)
        self._stream = Stream(
            context.registrar.poller,
            descriptor,
            partial(self._guard, self._receive),
            self._on_input_end,
            partial(self._guard, self._continue),
        )
        self._account = Account(self._evict)
        self._channel: Channel = _PLAIN
        self._channel_bytes = 0
        self.tls_version: str = ""  # "1.2" or "1.3" after the TLS handshake
        self._tls: ServerHandshake | None = None
        self._http: HttpSession | None = None
        self._login: DerpLogin | None = None
        self._not_ideal = False
        self._n_lingered = 0
        # The first request of a connection is served at once; later ones are queued.
        self._was_served = False
        self._is_queued = False
        self._idle = False
        self._task: asyncio.Task[None] | None = None
        self.state: State = TLS
        self._proxy_header: ProxyHeaderReader | None = None
        self.budget_s: float = 0.0
        self._deadlines.start(self, context.login_budget_s)
        if context.proxies.proxy_protocol:
            self.state = PROXY_HEADER
            from fastderp.server.accept.proxy_header import ProxyHeaderReader

            self._proxy_header = ProxyHeaderReader(self._origin, context.proxies.trusted)
        elif context.tls is None:
            self._start_http()

    def start(self, *, at_once: bool) -> None:
        """Begin to read: now, or when the poller reports input."""
        (self._stream.start if at_once else self._stream.resume)()
        self._charge()

    def close(self, reason: str, detail: str = "") -> None:
        """End the connection at once and count the reason; a no-op after its end or hand-over."""
        if self.state in _OVER:
            return
        if self.state is not LINGER:
            self._note_end(reason, detail)
        self._move(CLOSED)
        self._release()
        self._stream.close()

    def leave(self) -> None:
        """End the connection at a shutdown; send close_notify if that cannot block."""
        if self.state in (HTTP, PAGE, LOGIN, ADMISSION) and self._stream.flushed:
            leave(self._channel)
            self._stream.send(close_notify(self._channel))
        self.close("shutdown")

    @property
    def is_at_request(self) -> bool:
        """Whether it serves a login, an endless page, or a tunnel that is not open yet."""
        return self.state in (LOGIN, ADMISSION, PAGE, TUNNEL)

    @property
    def silent_s(self) -> float:
        """Seconds that it has waited for the client; 0 while it waits for anything else."""
        has_delay = self._tls is not None and self._tls.delay is not None
        return 0.0 if has_delay or self.state is PAGE else self._stream.silent_s

    def _move(self, state: State) -> None:
        """Change state. Raises RuntimeError for a move that is not in the diagram."""
        self.state = moved(self.state, state)

    def _release(self) -> None:
        """Release the deadline, the memory and the place among the pending connections."""
        self._deadlines.stop(self)
        self._registrar.login_memory.release(self._account)
        self._place.leave()
        self._end_protocol()
        self._on_end(self)

    def _end_protocol(self) -> None:
        """End handshake, request or login, whichever is in progress."""
        self._http = None
        self._login = None
        if self._tls is not None:
            self._tls.cancel()
            self._tls = None
        if self._task is not None:
            self._task.cancel()

    # The stream and the clock

    def _guard(self, act: Callable[..., None], *args: object) -> None:
        """Act, and account for the memory it took; an exception ends this connection only."""
        try:
            act(*args)
        except TlsError as error:
            self._refuse_tls(error)
        except (ProxyHeaderError, AddressLimitError) as error:
            self.close(error.reason, str(error))
        except Exception as error:
            if shortage := shortage_of(error):
                self.close("shortage", shortage)
            else:
                supervisor.note("connection", error, f"{self._origin.address[0]} is disconnected")
                self.close("internal")
        self._charge()

    def _charge(self) -> None:
        """Account for the connection's memory; close it when the budget is exceeded."""
        if self.state in _OVER:
            return
        n_bytes = CONNECTION_BYTES + self._channel_bytes + self._channel.held_bytes
        n_bytes += self._stream.n_unsent
        # They follow each other.
        part = self._login or self._http or self._tls or self._proxy_header
        if part is not None:
            n_bytes += part.held_bytes
        if not self._registrar.login_memory.charge(self._account, n_bytes):
            self._evict()

    def _evict(self) -> None:
        """End the connection: it holds more memory than other pending ones, or holds it longer."""
        if self.state in (HTTP, PAGE, LOGIN) and self._stream.flushed:
            self._stream.send(close_notify(self._channel))
        self.close("memory", "the memory limit for logins is reached (-login-memory)")

    def _receive(self, data: bytes) -> None:
        if self._proxy_header is not None:
            if (found := self._proxy_header.feed(data)) is None:
                return
            self._origin, data = found
            self._proxy_header = None
            self._place.enter(self._origin.own_ip)
            self._move(TLS)
            if self._context.tls is None:
                self._start_http()
            if not data:
                return
        if self.state is TLS:
            if self._tls is None:
                self._tls = self._start_tls()
            self._tls.feed(data)
        else:
            self._take(self._channel.open_next(data))
            self._check_end()

    @property
    def _may_take(self) -> bool:
        """Whether no earlier input waits for its answer."""
        if self.state in (HTTP, LOGIN):
            return self._stream.flushed and not self._is_queued
        return self.state in (PAGE, LINGER)

    def _check_end(self) -> None:
        """Take what the channel has left; end the connection if its input has ended or failed."""
        while self._channel.has_more and self._may_take:
            self._take(self._channel.open_next(b""))
        failure = self._channel.failure
        if failure is None and not self._channel.eof:
            return
        if self.state not in (HTTP, PAGE, LOGIN) or self._is_queued:
            return
        if self.state is LOGIN and not self._stream.flushed:
            return  # `_continue` takes the login's next step first
        if failure is not None:
            self._refuse_tls(failure)
        else:
            self._on_input_end(None)

    def _continue(self) -> None:
        """Continue once all output is sent."""
        if self.state is LINGER:
            self._stream.end_output()
        else:
            self._stream.resume()
            self._advance()
            self._check_end()

    def _on_input_end(self, error: OSError | None) -> None:
        if self.state is LINGER:
            self.close("end")
        elif error is not None:
            self.close(*kernel_cause(error.errno or 0))
        elif self.state is HTTP and not self._stream.flushed:
            # A client that has closed its sending side still gets the rest of its answer.
            self._linger()
        elif isinstance(self._channel, MessageChannel):
            # Give the closing handshake time to arrive.
            self._refuse("end", self._unfinished(), b"")
        else:
            self.close("end", self._unfinished())

    def _unfinished(self) -> str:
        """Return the client's unfinished step; "" for a probe that read only our key."""
        if self.state is LOGIN and self._login is not None and self._login.rest:
            return "the client left before its login was complete"
        in_request = self._http is not None and self._http.is_in_request
        return "the client left in the middle of a request" if in_request else ""

    def on_time(self) -> None:
        """End the connection: its time is used up."""
        if self._idle:
            self.close("idle")
        elif self._tls is not None and (delay := self._tls.delay) is not None:
            self.close(*delay)
        else:
            self.close("timeout", "not logged in in time")

    # TLS

    def _start_tls(self) -> ServerHandshake:
        """Begin the handshake, at the client's first bytes."""
        assert self._context.tls is not None
        return ServerHandshake(
            self._context.tls,
            self._stream,
            self._registrar.poller,
            self._registrar.handshake_threads,
            self._registrar.handshake_queue,
            guard=self._guard,
            waits=self._wait_for_memory,
            give_way=self._give_way,
            done=self._secured,
        )

    def _wait_for_memory(self, waits: bool) -> None:
        """Replace the login budget while the handshake waits for memory: the relay is the cause."""
        self._deadlines.start(self, MEMORY_BUDGET_S if waits else self._context.login_budget_s)

    def _give_way(self) -> None:
        self.close("crowded", "its handshake was not finished while others waited for theirs")

    def _secured(self, handshake: Handshake) -> None:
        """Continue with HTTP after a complete handshake."""
        if handshake.alpn == ALPN_PROTOCOL:
            # The CA has its answer; RFC 8737 §3 allows no data after the handshake.
            self._linger()
            return
        assert self._tls is not None and handshake.version is not None
        self._tls.cancel()
        self._tls = None
        self.tls_version = handshake.version.removeprefix("TLSv")
        self._channel = channel_of(handshake)
        self._channel_bytes = tls_bytes(self._channel)
        self._start_http()
        self._take(self._channel.open_next(b""))
        self._check_end()

    def _refuse_tls(self, error: TlsError) -> None:
        """Send the alert, or an HTTP answer to a request without TLS, and close."""
        if self.state is LINGER:
            self.close("end")
        elif error.cause == "plain_http":
            self._refuse(error.cause, str(error), PLAIN_HTTP_ON_TLS_PORT)
        else:
            alert = self._tls.take_output() if self._tls is not None else b""
            self._refuse(error.cause, str(error), alert)

    # Plain bytes

    def _take(self, data: bytes) -> None:
        """Pass plain bytes to the current protocol, and act on complete input."""
        if self.state is LOGIN and self._login is not None:
            self._login.feed(data)
        elif self.state is HTTP and self._http is not None:
            self._http.feed(data)
        elif self.state in (LINGER, PAGE):
            self._n_lingered += len(data)
            if self._n_lingered > LINGER_BYTES:
                self.close("end")
            return
        self._advance()

    def _advance(self, *, queued: bool = False) -> None:
        """Act on complete input, one request at most, once the client has taken the output."""
        if self._stream.flushed:
            if self.state is HTTP and self._http is not None and self._http.has_input:
                if self._was_served and not queued:
                    self._queue_request()
                    return
                self._serve_request(self._http)
            if self.state is LOGIN and self._login is not None:
                self._follow(self._login, self._login.step())
        if not self._stream.flushed:
            self._stream.pause()

    def _queue_request(self) -> None:
        """Serve the next request after those of other connections and after logins."""
        self._stream.pause()
        if not self._is_queued:
            self._is_queued = True
            self._registrar.requests.add(self._on_queued)

    def _on_queued(self) -> None:
        self._is_queued = False
        if self.state is HTTP and self._stream.flushed:  # else `_continue` queues the request again
            self._guard(self._serve_queued)

    def _serve_queued(self) -> None:
        self._stream.resume()
        self._advance(queued=True)
        self._check_end()

    # HTTP

    def _start_http(self) -> None:
        self._move(HTTP)
        self._http = HttpSession(self._context, self._origin, self.tls_version)

    def _serve_request(self, session: HttpSession) -> None:
        if self._idle:
            self._idle = False
            self._deadlines.start(self, self._context.login_budget_s)
        if (action := session.next_action()) is None:
            return
        self._origin = session.origin
        self._was_served = True
        self._act(action)
        if self.state is HTTP and session.has_input:
            self._queue_request()

    def _act(self, action: Action) -> None:
        """Perform the action for a request."""
        match action:
            case StartLogin() | StartWebSocket() if refusal := self._place.log_in(
                self._origin.own_ip
            ):
                self._refuse("429", refusal, self._channel.seal(TOO_MANY_REQUESTS))
            case StartLogin(upgrade):
                self._start_login(upgrade)
            case Reply(data, close):
                self._reply(data, close)
            case Page():
                self._start_page(action)
            case StartWebSocket():
                self._open_websocket(action)
            case StartTunnel():
                self._open_tunnel(action)
            case Reject(status, reason, data):
                self._refuse(str(status), reason, self._channel.seal(data))

    def _reply(self, data: bytes, close: bool) -> None:
        self._stream.send(self._channel.seal(data))
        if close:
            self._linger()
        else:
            self._idle = True
            self._deadlines.start(self, self._context.idle_s)

    def _start_page(self, page: Page) -> None:
        """Begin an endless page; ignore the client's input meanwhile."""
        self._move(PAGE)
        self._http = None
        self._deadlines.stop(self)
        self._stream.send(self._channel.seal(page.head))
        self._task = self._registrar.loop.create_task(self._send_page(page))

    async def _send_page(self, page: Page) -> None:
        await send_page(page, self._stream, self._channel, self._origin.address[0])
        self._task = None
        if self.state is PAGE:
            self._guard(self._linger)

    def _open_websocket(self, start: StartWebSocket) -> None:
        """Answer the opening handshake; the bytes after it are frames."""
        from fastderp.server.accept.websocket import WebSocket

        assert self._http is not None
        self._stream.send(self._channel.seal(start.opening.response))
        channel = WebSocket(self._channel, self._stream, self._connection_log.websocket_failures)
        self._channel = channel
        self._channel_bytes += WEBSOCKET_BYTES
        if not start.opening.derp:
            self._refuse("websocket", "no subprotocol is derp", channel.refuse_protocol())
            return
        self._connection_log.note_websocket()
        self._http.feed(channel.unwrap(self._http.take_rest()))
        self._start_login(Upgrade(fast_start=True, not_ideal=False))

    def _open_tunnel(self, tunnel: StartTunnel) -> None:
        """Begin to connect to the target of a CONNECT."""
        self._move(TUNNEL)
        # Further input stays in the kernel while the target is dialled.
        self._stream.pause()
        self._deadlines.stop(self)
        self._task = self._registrar.loop.create_task(self._dial(tunnel))

    async def _dial(self, tunnel: StartTunnel) -> None:
        assert self._context.tunnels is not None and self._http is not None
        sock = await self._context.tunnels.connect(tunnel.target, self._origin.address[0])
        self._task = None
        if sock is None:
            self._guard(self._act, self._http.tunnel_failed(tunnel.request))
        else:
            self._guard(self._hand_over, sock)

    def _hand_over(self, sock: socket.socket) -> None:
        """Hand the connection over to a tunnel."""
        assert self._context.tunnels is not None and self._http is not None
        first = self._http.take_rest()
        self._move(PROMOTED)
        on_close = partial(self._registrar.addresses.leave, self._place.give_away())
        self._release()
        self._context.tunnels.join(
            self._registrar.poller, self._stream, self._channel, sock, first, on_close
        )

    # Login

    def _start_login(self, upgrade: Upgrade) -> None:
        """Change to DERP; `_advance` takes the first step."""
        assert self._http is not None
        self._connection_log.note_accept()
        self._move(LOGIN)
        self._not_ideal = upgrade.not_ideal
        self._login = DerpLogin(
            self._registrar.login_terms, self._origin.address[0], fast_start=upgrade.fast_start
        )
        self._login.feed(self._http.take_rest())
        self._http = None

    def _follow(self, login: DerpLogin, step: Step) -> None:
        """Perform the next step of a login."""
        if step is READ:
            if output := login.take_output():
                self._stream.send(self._channel.seal(output))
        elif step is ADMIT:
            self._promote(login)
        elif step is ASK:
            self._move(ADMISSION)
            self._stream.pause()
            self._task = self._registrar.loop.create_task(self._ask_admission(login))
        else:
            output = login.take_output()
            answer = self._channel.seal(output) if output else b""
            self._refuse(login.reason, login.detail, answer)

    async def _ask_admission(self, login: DerpLogin) -> None:
        refusal = await self._registrar.refusal(login.client, self._origin.address[0])
        self._task = None
        if self.state is ADMISSION:
            self._guard(self._follow, login, login.judge(refusal))

    # The end

    def _promote(self, login: DerpLogin) -> None:
        """Hand descriptor, keys, first output and unread input to the data plane."""
        try:
            descriptor, bridge = self._registrar.bridges.detach(
                self._stream, self._channel, self.tls_version
            )
        except OSError as error:
            self._refuse("shortage", error.strerror or "", b"")
            return
        self._move(PROMOTED)
        group = self._place.give_away()
        self._release()
        self._registrar.promote(
            descriptor,
            login.client,
            self._origin.address,
            first=login.take_output(),
            opened=login.rest,
            records=self._channel if isinstance(self._channel, RecordLayer) else None,
            mesh=login.is_mesh_peer,
            not_ideal=self._not_ideal,
            bridge=bridge,
            behind_proxy=self._origin.through_proxy or isinstance(self._channel, MessageChannel),
            address_group=group,
        )

    def _refuse(self, reason: str, detail: str, answer: bytes) -> None:
        """Count and log the reason of the end, send the answer, and close."""
        self._note_end(reason, detail)
        self._stream.send(answer)
        self._linger()

    def _note_end(self, reason: str, detail: str) -> None:
        note = self._connection_log.note_refused
        is_visitor = self._idle or self.state is PAGE
        note(self.state.value, reason, self._origin.address, detail, is_visitor=is_visitor)

    def _linger(self) -> None:
        """Wait before the close: a close with unread input would reset the connection."""
        if self.state is not TLS:
            self._stream.send(close_notify(self._channel))
        self._move(LINGER)
        self._end_protocol()
        self._deadlines.start(self, LINGER_S)
        self._stream.resume()
        if self._stream.flushed:
            self._stream.end_output()
