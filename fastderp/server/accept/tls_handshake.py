"""The TLS handshake of an accepted connection, its expensive step in a helper thread while many are waiting for theirs. ARCHITECTURE §5, PROTOCOL §10.

A step costs a few hundred microseconds without the GIL: in a login storm other cores can do it. With little to do the loop thread
does it itself, which is cheaper in all.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fastderp.server.certificates.certificate import CertificateSource
from fastderp.server.net.stream import Poller, Stream
from fastderp.tls.context import ServerContext
from fastderp.tls.errors import TlsError
from fastderp.tls.handshake import ClientHello, Handshake

Outcome = bool | TlsError
"""What a step led to: whether the handshake is done, or why it failed."""

# The loop thread has more to do per connection than a thread here: a few keep it busy.
THREADS_LIMIT = 4


def take_step(handshake: Handshake) -> Outcome:
    """Take a step in this thread."""
    try:
        return handshake.step()
    except TlsError as error:
        return error


class HandshakeThreads:
    """Threads that take steps and report back to the loop; none is started before there is work."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Report to callbacks on `loop`."""
        n_cores = len(os.sched_getaffinity(0))
        self._loop = loop
        self._pool = ThreadPoolExecutor(min(n_cores, THREADS_LIMIT), "fastderp-tls")
        self.worthwhile = n_cores > 1

    def submit(self, handshake: Handshake, report: Callable[[Outcome], None]) -> None:
        """Take a step in some thread; `report` is called on the loop with the outcome."""
        self._pool.submit(self._work, handshake, report)

    def close(self) -> None:
        """End the threads; steps under way are finished and reported to nobody."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _work(self, handshake: Handshake, report: Callable[[Outcome], None]) -> None:
        self._loop.call_soon_threadsafe(report, take_step(handshake))


class ServerHandshake:
    """One handshake, from the client's first byte until it is complete or has failed. Methods raise TlsError when it fails.

    Args:
        tls: the certificate, or who has one for each client.
        stream: takes what there is to say, and is paused while a step or a certificate is waited for.
        poller: tells whether there is a storm.
        threads: take the expensive step in one.
        guard: called with what goes on after such a wait, and handles what goes wrong with it.
        done: called with the handshake when it is complete.
    """

    __slots__ = (
        "_cancelled",
        "_certificate",
        "_done",
        "_guard",
        "_handshake",
        "_hello_sent",
        "_poller",
        "_stream",
        "_threads",
        "_tls",
    )

    def __init__(
        self,
        tls: ServerContext | CertificateSource,
        stream: Stream,
        poller: Poller,
        threads: HandshakeThreads,
        *,
        guard: Callable[[Callable[[], None]], None],
        done: Callable[[Handshake], None],
    ) -> None:
        self._tls = tls
        self._handshake = Handshake(tls if isinstance(tls, ServerContext) else tls.context)
        self._stream = stream
        self._poller = poller
        self._threads = threads
        self._guard = guard
        self._done = done
        self._certificate: asyncio.Future[ServerContext] | None = None
        self._hello_sent = False
        self._cancelled = False

    @property
    def waits_for_certificate(self) -> bool:
        """Whether it cannot go on before a certificate is issued."""
        return self._certificate is not None

    def feed(self, data: bytes) -> None:
        """Go on with what the client has said."""
        self._handshake.feed(data)
        self._step()

    def take_output(self) -> bytes:
        """Return what is still to be said, after a failure the alert."""
        return self._handshake.take_output()

    def cancel(self) -> None:
        """Do nothing more, whatever a thread or an issued certificate has to report."""
        self._cancelled = True
        if self._certificate is not None:
            self._certificate.cancel()

    def _step(self) -> None:
        # The first step is the expensive one: key agreement and signature.
        if not self._hello_sent and self._threads.worthwhile and self._poller.is_busy:
            self._stream.pause()
            self._threads.submit(self._handshake, self._go_on)
        else:
            self._stepped(take_step(self._handshake))

    def _go_on(self, outcome: Outcome) -> None:
        """Hear from a helper thread."""
        if not self._cancelled:
            self._stream.resume()
            self._guard(lambda: self._stepped(outcome))

    def _stepped(self, outcome: Outcome) -> None:
        """Act on a step: say what it has to say, choose a certificate when it asks for one."""
        if isinstance(outcome, TlsError):
            raise outcome
        output = self._handshake.take_output()
        if output:
            self._hello_sent = True
            self._stream.send(output)
        if outcome:
            self._done(self._handshake)
        elif self._handshake.hello is not None:
            self._choose_certificate(self._handshake.hello)

    def _choose_certificate(self, hello: ClientHello) -> None:
        """Answer with the certificate for this client, or wait for it; whoever gets none is told so by an alert."""
        assert not isinstance(self._tls, ServerContext)
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
        """Go on with the certificate that was waited for."""
        if self._cancelled or certificate.cancelled():
            return
        self._certificate = None
        error = certificate.exception()
        if isinstance(error, TlsError):
            self._handshake.refuse(error)
        else:
            self._handshake.choose(certificate.result())
        self._stream.resume()
        self._guard(self._step)
