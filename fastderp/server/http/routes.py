"""The handlers of paths: of the main listener, the plain port beside TLS, and that of -debug-addr.

PROTOCOL §9.2, §9.5.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from fastderp.server.http import pages
from fastderp.server.http.document import STYLE_PATH
from fastderp.server.http.message import Request, Response, not_found
from fastderp.server.http.pages import Site

if TYPE_CHECKING:
    from fastderp.server.http.debug import DebugPages

Handler = Callable[[Request], Response | Awaitable[Response]]
"""Returns an answer, or an awaitable of one.

A connection ends with an answer that it had to await.
"""


class Routes:
    """A table of handlers by path.

    Args:
        fallback: answers all other paths.
        exact: by whole path.
        prefixes: by the beginning of the path; the longest wins.
        derp: whether `/derp` may be upgraded.
    """

    def __init__(
        self,
        fallback: Handler,
        exact: dict[str, Handler],
        prefixes: dict[str, Handler],
        *,
        derp: bool = False,
    ) -> None:
        self.fallback: Handler = fallback
        self.exact: dict[str, Handler] = exact
        self.prefixes: dict[str, Handler] = prefixes
        self.derp: bool = derp

    def respond(self, request: Request) -> Response | Awaitable[Response]:
        """Answer a request that is not an upgrade."""
        if request.method == "CONNECT":
            return pages.refuse_connect(request)
        handler = self.exact.get(request.path)
        if handler is None and self.prefixes:
            matching = [prefix for prefix in self.prefixes if request.path.startswith(prefix)]
            handler = self.prefixes[max(matching, key=len)] if matching else None
        return (handler or self.fallback)(request)


def _states(site: Site) -> dict[str, Handler]:
    """Return the handlers for supervisors and load balancers."""
    return {"/healthz": pages.healthy, "/readyz": partial(pages.ready, site)}


def relay_routes(site: Site, debug: DebugPages | None = None) -> Routes:
    """Return the table of the main listener (PROTOCOL §9.2), without debug pages for None."""
    return Routes(
        fallback=partial(pages.home, site),
        derp=site.derp,
        exact={
            "/derp": pages.upgrade_required if site.derp else pages.derp_disabled,
            "/derp/probe": partial(pages.probe, site),
            "/derp/latency-check": partial(pages.probe, site),
            "/generate_204": pages.generate_204,
            "/robots.txt": pages.robots,
            STYLE_PATH: pages.stylesheet,
            "/debug": pages.to_debug if debug else not_found,
            **_states(site),
            # Scrapers ask for it; the home page's 200 would claim that it exists.
            "/metrics": debug.scrape if debug else not_found,
        },
        prefixes={"/debug/": debug.respond if debug else not_found},
    )


def http_port_routes(site: Site, relay: Routes) -> Routes:
    """Return the table of the plain port beside a TLS one. PROTOCOL §9.5.

    It has the captive-portal check, the states and the debug pages with their style, and redirects
    other paths to https.
    """
    return Routes(
        fallback=partial(pages.to_https, site),
        exact={
            "/generate_204": pages.generate_204,
            STYLE_PATH: pages.stylesheet,
            **_states(site),
            "/metrics": relay.respond,
        },
        prefixes={"/debug": relay.respond},
    )


def debug_routes(site: Site, debug: DebugPages) -> Routes:
    """Return the table of a listener for metrics, debug pages and the states, without DERP."""
    return Routes(
        fallback=not_found,
        exact={
            "/": pages.to_debug,
            "/debug": pages.to_debug,
            "/metrics": debug.scrape,
            STYLE_PATH: pages.stylesheet,
            **_states(site),
        },
        prefixes={"/debug/": debug.respond},
    )
