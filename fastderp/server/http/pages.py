"""The relay's home page: what a person sees who opens its address in a browser. PROTOCOL §9.2.

The security policy of the relay allows no inline style, so the stylesheet is a resource of its own.
"""

from __future__ import annotations

import re
from html import escape

STYLE_PATH = "/derp.css"

STYLE = b"""\
:root { color-scheme: light dark; --ink: #1d2430; --dim: #5c6675; --paper: #fbfbf9; --line: #dfe2e6; --mark: #2a6f5e }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ec; --dim: #97a1b0; --paper: #14171c; --line: #2c323b; --mark: #6cc3ab }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 17px/1.6 system-ui, sans-serif }
main { max-width: 34rem; margin: 14vh auto 4rem; padding: 0 1.5rem }
h1 { margin: 0 0 .2em; font-size: 2.6rem; letter-spacing: .06em; color: var(--mark) }
.host { margin: 0 0 2rem; padding-bottom: 1.2rem; border-bottom: 1px solid var(--line); color: var(--dim) }
.status { font-weight: 600 }
a { color: var(--mark) }
footer { margin-top: 2.5rem; font-size: .85rem; color: var(--dim) }
"""

_VENDOR_HOST = re.compile(r"derp[^.]*\.tailscale\.com\.?")

_ABUSE = """
<p>If you suspect abuse, please write to <a href="mailto:security@tailscale.com">security@tailscale.com</a>.</p>
<p><a href="https://tailscale.com/security-policies">Security policies</a>,
<a href="https://tailscale.com/tailscale-aup">acceptable use</a>.</p>"""


def home(hostname: str, *, disabled: bool, debug: bool) -> bytes:
    """Build the home page.

    Args:
        hostname: shown under the title; a name of the vendor's own relays adds where to report abuse.
        disabled: say that this relay is decommissioned.
        debug: link the debug pages.
    """
    host = (
        f"\n<p class=host>{escape(hostname)}</p>"
        if hostname
        else "\n<p class=host>A relay for tailscale networks</p>"
    )
    status = "\n<p class=status>Status: disabled</p>" if disabled else ""
    abuse = _ABUSE if _VENDOR_HOST.fullmatch(hostname) else ""
    link = '\n<p><a href="/debug/">Debug pages</a></p>' if debug else ""
    return f"""<!doctype html>
<html lang=en>
<head>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<title>DERP</title>
<link rel=stylesheet href={STYLE_PATH}>
</head>
<body>
<main>
<h1>DERP</h1>{host}{status}
<p>When two devices of a <a href="https://tailscale.com/">tailscale</a> network cannot reach each other directly, this relay passes
their packets on. They are encrypted from end to end: the relay sees who talks to whom, never what is said.</p>
<p>It also tells devices their public address (STUN), so that most of them need no relay at all.</p>{abuse}{link}
<footer>fastderp, a DERP relay. <a href="https://tailscale.com/kb/1232/derp-servers">What is DERP?</a></footer>
</main>
</body>
</html>
""".encode()
