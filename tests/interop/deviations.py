"""Intended differences between fastderp and derper, with their reasons.

This is the only such list, and each comparison holds the relays to its part: it fails for a
difference that is not listed, and for a listed difference that does not occur.
"""

from dataclasses import dataclass

from fastderp.wire.protocol import FrameType

# by conversation name in scripts.py
DEVIATIONS = {
    "a second departure": "PROTOCOL 21: derper tells a receiver of a peer's first departure only",
    "upgrade with a doubled slash": "derper redirects //derp to /derp with 307, a habit of Go's "
    "request router; no client requests it, and here it is an unknown path like any other",
    "upgrade by HTTP/3.0": "refused by both; our parser knows no such version and answers 400, "
    "derper 505",
}
MESH_DEVIATIONS = {
    **DEVIATIONS,
    "a watcher that repeats its request": "PROTOCOL 21 requires a new list for each request; real "
    "watchers send one. The answer is a thousand times longer than the request, so of more than "
    "10 requests per second some are not answered",
}

# Frames left out of every transcript.
HIDDEN_FRAMES = {
    FrameType.HEALTH: "derper never sends one; here the holders of one key are told of each other "
    "(PROTOCOL 6.3)",
}

RATE_LIMIT = (
    "with -rate-config clients are told their limit in ServerInfo (PROTOCOL 3.2), at login and "
    "when it changes: Go's client then keeps to it by itself; derper leaves it to TCP"
)

# Answers of an admission URL and of tailscaled, by their names in test_admission_with_derper.py,
# that admit a client at derper and refuse it here.
ADMISSION_DEVIATIONS = {
    "not HTTP": "an attacker who breaks the service must not get in by it, also when failing open",
    "head of garbage": "the same as an answer that is not HTTP",
    "redirect": "a redirect is an answer and is not followed: failing open is for a service that "
    "cannot be reached",
}
TAILSCALED_DEVIATIONS = {
    "null": "no tailscaled answers so; derper treats it as a yes",
}


@dataclass(frozen=True)
class Pages:
    """Requests with different answers.

    Args:
        requests: pattern of their names in test_http_pages.py.
        parts: the parts of the answers that differ; () for all.
        reason: why.
    """

    requests: str
    parts: tuple[str, ...]
    reason: str


HTTP_DEVIATIONS = (
    Pages(
        r"GET (//.*|/derp//probe|/\./derp|/derp/\.\./nope|/a/\.\.|/nope/\.|http://other\.example)",
        (),
        "derper redirects an unclean path to the clean one with 307, a habit of Go's request "
        "router; no client requests one, and here it is an unknown path like any other",
    ),
    Pages(
        r"GET /(healthz|readyz|metrics)",
        (),
        "derper shows its home page; here the first two tell the state of the relay, and the third "
        "has the metrics for requests that get the debug pages",
    ),
    Pages(
        r"GET http://other\.example/nope\?q",
        ("Location",),
        "derper's plain port puts the whole of an absolute target behind the host; here the "
        "redirect leads to the requested page",
    ),
    Pages(
        r"POST .* \| hello",
        ("Connection", "then"),
        "no page here reads a body, so a connection ends with the answer to a request that has one",
    ),
    Pages(
        r"GET /debug/check",
        ("Connection", "then"),
        "a page that takes time to make ends its connection; its reader opens another",
    ),
    Pages(
        r"GET /debug/(pprof/|gc|set-mutex-profile-fraction)",
        (),
        "pages about Go's runtime (PROTOCOL 9.7: provide equivalents or omit)",
    ),
    Pages(
        r"GET /derp \| Upgrade: foo\x01 \| Connection: Upgrade",
        ("body",),
        "the answer to a refused head names the error",
    ),
    Pages(
        r"GET /debug/ \| X-Forwarded-For: +\| X-Forwarded-For: 192\.0\.2\.1",
        (),
        "derper reads the first X-Forwarded-For only, so an empty one in front of a proxy's own "
        "opens the debug pages; here all count",
    ),
)

# values on a plain port that derper accepts
REFUSED_FLAGS = {
    "-certmode=bogus": "PROTOCOL 9.1: derper ignores -certmode where there is no TLS; here a "
    "mistyped flag is an error at once",
}

# metrics, and variables of /debug/vars, that only one of the relays has, by patterns of their names
THEIR_METRICS = {
    r"go_.*|goamd64_.*|goroutines|memstats_.*": "the Go runtime's own numbers",
    r"process_network_.*|process_virtual_memory_max_bytes": "numbers of the machine's network "
    "interfaces and of limits that Go's client library reads; nothing about a relay",
}
THEIR_VARIABLES = {
    r"cmdline|memstats(\..*)?|go_.*|gauge_(goroutines|goamd64_.*)": "the Go runtime's own numbers, and "
    "the command line, which may have a password in a URL",
}
OUR_METRICS = {
    r"fastderp_.*|process_threads": "metrics without a counterpart in derper",
}

# Differences outside every comparison; separate tests show these.
ELSEWHERE = {
    "WebSocket messages": "PROTOCOL 21: messages over 32768 bytes are accepted; derper closes",
    "the accept limiter": "PROTOCOL 21: connections that come too fast are closed; derper ends",
    "STUN over a socket for both families": "PROTOCOL 21: an IPv4 client is answered with family "
    "1; derper answers with a mapped address",
    "a STUN port that is taken": "PROTOCOL 21: an error, and the relay does not start; derper logs "
    "nothing",
    "/debug/check with duplicates": "PROTOCOL 21: two connections with one key are consistent; "
    "derper reports an inconsistency",
    "SIGTERM": "PROTOCOL 6.11: Restarting tells each client its own time to reconnect; derper just "
    "ends",
    "the status of a mesh link": "derper logs its number of peers every 10 s while they change; "
    "here it is one line once the link is up, and then the metric fastderp_mesh_keys (a log of a "
    "busy region would have no other lines)",
    "a first start that meets another": "PROTOCOL 21: both continue with one key",
}
