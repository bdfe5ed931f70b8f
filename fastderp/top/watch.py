"""Asks a relay again and again, and keeps what the view shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from fastderp.top.figures import Clients, Metrics, Rates, Reading, client_rates
from fastderp.top.pages import PageError, RelayPages
from fastderp.top.view import State

# The most that the page of clients gives at once.
LIST_LIMIT = 1000
# The relay makes the list on its loop. A large one is asked for less often, to cost it up to 5 %.
_REST_PER_LIST = 20


class Watch:
    """The last answers of one relay; `state` is what they show. One thread at a time."""

    def __init__(
        self, pages: RelayPages, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._pages = pages
        self._monotonic = monotonic
        self._reading: Reading | None = None
        self._clients: Clients | None = None
        self._next_list_s = 0.0
        self.state: State = State(_ascii(str(pages.address)))

    def ask(self) -> None:
        """Ask the relay and change `state`. Raises PageError when it does not answer."""
        with self._pages.connection() as requests:
            text = requests.varz()
            now = Reading(self._monotonic(), Metrics.parse(text))
            rates = Rates.between(self._reading, now)
            if rates.before is None:
                self._clients, self._next_list_s = None, 0.0
            clients = None
            if now.taken_s >= self._next_list_s:
                # Beyond the limit: those that received most and those that sent most.
                pages = [requests.clients("-rx", LIST_LIMIT)]
                if pages[0].get("remaining"):
                    pages.append(requests.clients("-tx", LIST_LIMIT))
                clients = Clients.parse(pages, self._monotonic())
                if self._clients is not None:  # rates need two lists, so the second does not wait
                    took_s = clients.taken_s - now.taken_s
                    self._next_list_s = now.taken_s + _REST_PER_LIST * took_s
        state = replace(self.state, clock=time.strftime("%H:%M:%S"), rates=rates, trouble="")
        if clients is not None:
            rows = client_rates(self._clients, clients)
            state = replace(state, rows=rows, n_connections=clients.n_connections)
            self._clients = clients
        self._reading, self.state = now, state

    def try_ask(self) -> None:
        """Ask the relay; keep the previous figures and the reason when it does not answer."""
        try:
            self.ask()
        except PageError as error:
            since = f"; figures of {self.state.clock}" if self.state.clock else ""
            self.state = replace(self.state, trouble=_ascii(f"{error}{since}"))


def _ascii(text: str) -> str:
    """Return a text with escapes, as the view needs it."""
    return text.encode("unicode_escape").decode()
