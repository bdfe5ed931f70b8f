"""The relay's pages, one handler each: probes, captive-portal check, redirects and the home page.

PROTOCOL §9.2, §9.4, §9.5.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from fastderp.server.http.document import STYLE, document
from fastderp.server.http.message import (
    SECURITY_HEADERS,
    Request,
    Response,
    not_found,
    redirect,
    text_error,
)
from fastderp.util.text import html_text

DRAINING = "the relay is stopping"

NO_CACHE = ("Cache-Control", "no-cache, no-store, must-revalidate, no-transform, max-age=0")

_CHALLENGE = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_VENDOR_HOST = re.compile(r"derp[^.]*\.tailscale\.com\.?")

_ABUSE = """
<p>If you suspect abuse, please write to
<a href="mailto:security@tailscale.com">security@tailscale.com</a>.</p>
<p><a href="https://tailscale.com/security-policies">Security policies</a>,
<a href="https://tailscale.com/tailscale-aup">acceptable use</a>.</p>"""


class Site:
    """The operator's settings of the pages.

    Args:
        hostname: the name of this relay, "" when unknown.
        derp: False for a decommissioned relay: `/derp` answers with an error, other paths work.
        home: "" for our page, "blank", or an http(s) URL to redirect to.
        debug_allowed: whether a request may get the debug pages.
        unready: why the relay must get no new clients; nothing while it is ready.
    """

    def __init__(
        self,
        hostname: str = "",
        derp: bool = True,
        home: str = "",
        debug_allowed: Callable[[Request], bool] = lambda request: False,
        unready: Callable[[], list[str]] = list,
    ) -> None:
        if home not in ("", "blank") and not home.startswith(("http://", "https://")):
            raise ValueError(f'unknown --home value "{home}"')
        self.hostname: str = hostname
        self.derp: bool = derp
        self.home: str = home
        self.debug_allowed: Callable[[Request], bool] = debug_allowed
        self.unready: Callable[[], list[str]] = unready


def upgrade_required(request: Request) -> Response:
    """Answer a request for /derp without an upgrade to DERP."""
    return text_error(426, "DERP requires connection upgrade")


def derp_disabled(request: Request) -> Response:
    """Answer a request for /derp on a decommissioned relay."""
    return text_error(404, "derp server disabled")


def probe(site: Site, request: Request) -> Response:
    """Answer the latency probes of clients and browsers."""
    if request.method not in ("GET", "HEAD"):
        return text_error(405, "bogus probe method")
    if DRAINING in site.unready():
        return text_error(503, DRAINING)
    return Response(headers=(("Access-Control-Allow-Origin", "*"),))


def healthy(request: Request) -> Response:
    """Tell a supervisor that the process serves requests."""
    return _state(200, ["ok"])


def ready(site: Site, request: Request) -> Response:
    """Answer a load balancer's readiness check; the body gives the reasons if not ready."""
    reasons = site.unready()
    return _state(503 if reasons else 200, reasons or ["ready"])


def _state(status: int, lines: list[str]) -> Response:
    body = "".join(f"{line}\n" for line in lines).encode()
    return Response(status, body, "text/plain; charset=utf-8", (NO_CACHE,))


def generate_204(request: Request) -> Response:
    """Answer a captive-portal check.

    The echoed challenge proves that a relay answered (PROTOCOL §9.4).
    """
    challenge = request.header("x-tailscale-challenge")
    headers = [NO_CACHE]
    if _CHALLENGE.fullmatch(challenge):
        headers.append(("X-Tailscale-Response", f"response {challenge}"))
    return Response(204, headers=tuple(headers))


def robots(request: Request) -> Response:
    """Return a robots.txt that excludes all crawlers."""
    return Response(
        200, b"User-agent: *\nDisallow: /\n", "text/plain; charset=utf-8", SECURITY_HEADERS
    )


def to_debug(request: Request) -> Response:
    """Redirect to the debug pages with the query, which may hold the debug key. PROTOCOL §9.7."""
    location = f"{request.prefix}/debug/"
    return redirect(request, 307, f"{location}?{request.query}" if request.query else location)


def stylesheet(request: Request) -> Response:
    """Answer with the style sheet of all documents."""
    return Response(200, STYLE, "text/css; charset=utf-8", SECURITY_HEADERS)


def home(site: Site, request: Request) -> Response:
    """Answer every path that no other handler serves."""
    if site.home == "blank":
        return Response(200, b"", "text/html; charset=utf-8", SECURITY_HEADERS)
    if site.home:
        moved = redirect(request, 302, site.home)
        return Response(
            moved.status, moved.body, moved.content_type, SECURITY_HEADERS + moved.headers
        )
    body = _home_page(
        site.hostname,
        request.prefix,
        disabled=not site.derp,
        debug=site.debug_allowed(request),
    )
    return Response(200, body, "text/html; charset=utf-8", SECURITY_HEADERS)


def to_https(site: Site, request: Request) -> Response:
    """Redirect from the plain port to the same page over TLS."""
    if request.method not in ("GET", "HEAD"):
        return text_error(400, "Use HTTPS")
    host = request.header("host") or site.hostname
    if not host:
        return text_error(400, "Use HTTPS")
    location = request.location
    if location == "/" and site.debug_allowed(request):
        location = "/debug/"
    return redirect(request, 302, f"https://{host}{location}")


def refuse_connect(request: Request) -> Response:
    """Refuse to be a forward proxy (PROTOCOL §9.8)."""
    return text_error(403, "CONNECT not enabled") if request.secure else not_found(request)


def _home_page(hostname: str, prefix: str, *, disabled: bool, debug: bool) -> bytes:
    """Return the home page.

    Args:
        hostname: shown under the title; the page of a vendor's relay has the contact for abuse.
        prefix: the beginning of links, "" or "/x".
        disabled: show that this relay is decommissioned.
        debug: the page links the debug pages.
    """
    host = (
        f"\n<p class=host>{html_text(hostname)}</p>"
        if hostname
        else "\n<p class=host>A relay for tailscale networks</p>"
    )
    status = "\n<p class=status>Status: disabled</p>" if disabled else ""
    abuse = _ABUSE if _VENDOR_HOST.fullmatch(hostname) else ""
    link = f'\n<p><a href="{prefix}/debug/">Debug pages</a></p>' if debug else ""
    body = f"""<h1>DERP</h1>{host}{status}
<p>When two devices of a <a href="https://tailscale.com/">tailscale</a> network cannot reach each
other directly, this relay passes their packets on. They are encrypted from end to end: the relay
sees who talks to whom, never what is said.</p>
<p>It also tells devices their public address (STUN), so that most of them need no relay at
all.</p>{abuse}{link}
<footer>fastderp, a DERP relay.
<a href="https://tailscale.com/kb/1232/derp-servers">What is DERP?</a></footer>"""
    return document("DERP", body, prefix)
