"""The TLS handshake of an accepted connection. ARCHITECTURE §2, §5, PROTOCOL §10.

`handshake_queue` lets it begin, and in a login storm `handshake_threads` run its expensive step.
Loop thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastderp.server.accept.client_hello import TOO_LONG_ALERT, ClientHelloReader
from fastderp.server.accept.handshake_queue import HandshakeQueue, Ticket
from fastderp.server.accept.handshake_threads import HandshakeThreads, Outcome, take_step
from fastderp.server.accept.login_memory import HANDSHAKE_BYTES
from fastderp.server.certificates.certificate import CertificateSource
from fastderp.server.net.stream import Poller, Stream
from fastderp.tls.context import ServerContext
from fastderp.tls.errors import TlsError
from fastderp.tls.handshake import ClientHello, Handshake

# Bytes that a client may send between its ClientHello and the end of the handshake: another
# ClientHello, its Finished, and pipelined data.
FLIGHT_LIMIT_BYTES = 40 * 1024


class ServerHandshake:
    """One handshake, from the client's first byte until it is complete or has failed.

    Methods raise TlsError when the handshake fails, MemoryError when memory is out.

    Args:
        tls: the certificate, or a `CertificateSource` that picks one for each client.
        stream: takes the output, and is paused during a step in a thread and while a certificate is
            issued.
        poller: detects a login storm.
        threads: run the expensive step.
        queue: starts the handshake when there is memory for an OpenSSL object.
        guard: runs the callback after a wait, and handles its exceptions.
        waits: called with True when the handshake has to wait in the queue, with False after that.
        give_way: ends the connection when its handshake is too slow while others wait.
        done: called with the handshake when it is complete.
    """

    __slots__ = (
        "_cancelled",
        "_certificate",
        "_done",
        "_give_way",
        "_guard",
        "_handshake",
        "_hello",
        "_hello_sent",
        "_n_fed",
        "_output",
        "_poller",
        "_queue",
        "_stream",
        "_threads",
        "_ticket",
        "_tls",
        "_waits",
    )

    def __init__(
        self,
        tls: ServerContext | CertificateSource,
        stream: Stream,
        poller: Poller,
        threads: HandshakeThreads,
        queue: HandshakeQueue,
        *,
        guard: Callable[[Callable[[], None]], None],
        waits: Callable[[bool], None],
        give_way: Callable[[], None],
        done: Callable[[Handshake], None],
    ) -> None:
        self._tls = tls
        self._stream = stream
        self._poller = poller
        self._threads = threads
        self._queue = queue
        self._guard = guard
        self._waits = waits
        self._done = done
        self._hello = ClientHelloReader()
        self._ticket: Ticket | None = None
        self._give_way = give_way
        self._handshake: Handshake | None = None
        self._certificate: asyncio.Future[ServerContext] | None = None
        self._hello_sent = False
        self._n_fed = 0
        self._output = b""
        self._cancelled = False

    @property
    def held_bytes(self) -> int:
        """The handshake's memory: the client's bytes and the OpenSSL object, if it exists."""
        if self._handshake is None:
            return len(self._hello)
        return HANDSHAKE_BYTES + self._n_fed

    @property
    def delay(self) -> tuple[str, str] | None:
        """Why it ends when time is up, a reason and a detail; None if it waits for the client."""
        if self._ticket is not None and self._handshake is None:
            return "shortage", "there was no memory for its handshake in time"
        if self._certificate is not None:
            return "timeout", "its certificate was not issued in time"
        return None

    def feed(self, data: bytes) -> None:
        """Continue with bytes of the client."""
        if self._handshake is not None:
            self._n_fed += len(data)
            if self._n_fed > FLIGHT_LIMIT_BYTES:
                raise TlsError("flood", f"more than {FLIGHT_LIMIT_BYTES} bytes in a handshake")
            self._handshake.feed(data)
            self._step()
            return
        try:
            self._hello.feed(data)
        except TlsError:
            self._output = TOO_LONG_ALERT
            raise
        if self._hello.is_complete and self._ticket is None:
            self._enter_queue()

    def take_output(self) -> bytes:
        """Return the unsent output; after a failure, the alert."""
        return self._output if self._handshake is None else self._handshake.take_output()

    def cancel(self) -> None:
        """Stop, and ignore later reports of threads and of issued certificates.

        This frees the OpenSSL object, which a cycle would keep until the garbage collector runs.
        """
        self._cancelled = True
        self._handshake = None
        if self._ticket is not None:
            self._queue.leave(self._ticket)
            self._ticket = None
        if self._certificate is not None:
            self._certificate.cancel()

    def _enter_queue(self) -> None:
        """Begin as soon as there is memory for an OpenSSL object."""
        came_at_once = True

        def start() -> None:
            if came_at_once:
                self._start()
            elif not self._cancelled:
                self._waits(False)
                self._guard(self._start)

        self._ticket = Ticket(start, self._give_way)
        came_at_once = self._queue.enter(self._ticket)
        if not came_at_once:
            self._waits(True)

    def _start(self) -> None:
        tls = self._tls
        hello = self._hello.take()
        if not self._hello.is_hello:
            _check_proxy_header(hello)
        self._handshake = Handshake(tls if isinstance(tls, ServerContext) else tls.context)
        self._n_fed = len(hello)
        self._handshake.feed(hello)
        self._step()

    def _step(self) -> None:
        assert self._handshake is not None
        # The first step is the expensive one: key agreement and signature.
        if not self._hello_sent and self._threads.worthwhile and self._poller.is_busy:
            self._stream.pause()
            self._threads.submit(self._handshake, self._continue)
        else:
            self._stepped(take_step(self._handshake))

    def _continue(self, outcome: Outcome) -> None:
        """Continue after a step in a helper thread."""
        if not self._cancelled:
            self._stream.resume()
            self._guard(lambda: self._stepped(outcome))

    def _stepped(self, outcome: Outcome) -> None:
        """Handle a step's outcome: send its output; choose a certificate if it needs one."""
        assert self._handshake is not None
        if not isinstance(outcome, bool):
            raise outcome
        output = self._handshake.take_output()
        if output:
            self._hello_sent = True
            self._stream.send(output)
        if outcome:
            assert self._ticket is not None
            self._queue.note_finished(self._ticket)
            self._done(self._handshake)
        elif self._handshake.hello is not None:
            self._choose_certificate(self._handshake.hello)
        elif not self._hello.is_hello:
            # OpenSSL would take the bytes for an SSLv2 ClientHello and wait for the rest.
            raise TlsError("not_tls", "the peer does not begin with a TLS ClientHello")

    def _choose_certificate(self, hello: ClientHello) -> None:
        """Answer with the client's certificate or an alert, or wait for the certificate."""
        assert self._handshake is not None and not isinstance(self._tls, ServerContext)
        try:
            choice = self._tls.choose(hello, self._stream.local_ip)
        except TlsError as error:
            self._handshake.refuse(error)
        else:
            if isinstance(choice, asyncio.Future):
                self._stream.pause()
                self._certificate = choice
                choice.add_done_callback(self._on_certificate)
                return
            self._handshake.choose(choice)
        self._step()

    def _on_certificate(self, certificate: asyncio.Future[ServerContext]) -> None:
        """Continue with the certificate that the source has delivered."""
        if self._cancelled or certificate.cancelled():
            return
        assert self._handshake is not None
        self._certificate = None
        error = certificate.exception()
        if isinstance(error, TlsError):
            self._handshake.refuse(error)
        else:
            self._handshake.choose(certificate.result())
        self._stream.resume()
        self._guard(self._step)


def _check_proxy_header(data: bytes) -> None:
    """Raise TlsError when a proxy has sent a header that this port does not read."""
    # Imported on use: most relays have no proxy.
    from fastderp.server.accept.proxy_header import unexpected_header

    if error := unexpected_header(data):
        raise TlsError("not_tls", error)
