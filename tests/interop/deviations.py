"""Where fastderp answers otherwise than derper, on purpose, and why: the only such list, and every comparison takes its part from here.

What is compared is held to its part: a deviation that is none any more fails the comparison, as one that is not listed does.
"""

from dataclasses import dataclass

from fastderp.wire.protocol import FrameType

# Conversations by their names in scripts.py.
DEVIATIONS = {
    "a second departure": "PROTOCOL 21: derper tells a receiver of a peer's first departure only",
    "upgrade with a doubled slash": "derper redirects //derp to /derp with 307, a habit of Go's request router; "
    "no client asks for it, and here it is an unknown path like any other",
    "upgrade by HTTP/3.0": "refused by both; our parser knows no such version and answers 400, derper 505",
}
MESH_DEVIATIONS = {
    **DEVIATIONS,
    "a watcher that asks ever again": "PROTOCOL 21 says to list everybody anew each time; real watchers ask once, and the answer is a "
    "thousand times as long as the question, so of one that asks more than 10 times a second some questions are not answered",
}

# Frames left out of every transcript.
HIDDEN_FRAMES = {
    FrameType.HEALTH: "derper never sends one; here the holders of one key are told of each other (PROTOCOL 6.3)",
}

RATE_LIMIT = (
    "with -rate-config clients are told their limit in ServerInfo (PROTOCOL 3.2), at login and when it changes: Go's client "
    "then keeps to it by itself; derper leaves it to TCP"
)

# Answers of an admission URL and of tailscaled by their names in test_admission_with_derper.py: derper lets the client in, we do not.
ADMISSION_DEVIATIONS = {
    "not HTTP": "whoever can make the service stumble must not get in by it, also when failing open",
    "head of garbage": "as what is no HTTP at all",
    "redirect": "a redirect is not followed, and an answer is an answer: failing open is for a service that cannot be reached",
}
TAILSCALED_DEVIATIONS = {
    "null": "no tailscaled answers so; derper takes it for a yes",
}


@dataclass(frozen=True)
class Pages:
    """Requests whose answers differ: `requests` is a pattern of their names in test_http_pages.py, `parts` what differs, () for all."""

    requests: str
    parts: tuple[str, ...]
    reason: str


HTTP_DEVIATIONS = (
    Pages(
        r"GET (//.*|/derp//probe|/\./derp|/derp/\.\./nope|/a/\.\.|/nope/\.|http://other\.example)",
        (),
        "derper redirects an unclean path to the clean one with 307, a habit of Go's request router; no client asks for one, and here "
        "it is an unknown path like any other",
    ),
    Pages(
        r"GET /(healthz|readyz|metrics)",
        (),
        "derper shows its home page; load balancers and scrapers would take the 200 for an answer",
    ),
    Pages(
        r"GET http://other\.example/nope\?q",
        ("Location",),
        "derper's plain port puts the whole of an absolute target behind the host; here the redirect leads to the page that was meant",
    ),
    Pages(
        r"POST .* \| hello",
        ("Connection", "then"),
        "no page here takes a body: none is ever read, so a connection ends with the answer to a request that has one",
    ),
    Pages(
        r"GET /debug/check",
        ("Connection", "then"),
        "a page that takes its time to be made ends its connection; who looks at it opens another",
    ),
    Pages(
        r"GET /debug/(pprof/|gc|set-mutex-profile-fraction)",
        (),
        "pages about Go's runtime (PROTOCOL 9.7: provide equivalents or omit)",
    ),
    Pages(
        r"GET /derp \| Upgrade: foo\x01 \| Connection: Upgrade",
        ("body",),
        "a head that is refused is told what is wrong with it",
    ),
    Pages(
        r"GET /debug/ \| X-Forwarded-For: +\| X-Forwarded-For: 192\.0\.2\.1",
        (),
        "derper looks at the first X-Forwarded-For only, so an empty one in front of a proxy's own opens the debug pages; here all count",
    ),
)

# Values on a plain port that derper takes.
REFUSED_FLAGS = {
    "-certmode=bogus": "PROTOCOL 9.1: derper does not look at -certmode where there is no TLS; a mistyped flag is told at once here",
}

# Metrics that only one of the two can have, by patterns of their names.
THEIR_METRICS = {
    r"go_.*|goamd64_.*|goroutines|memstats_.*": "the Go runtime's own numbers",
    r"process_network_.*|process_virtual_memory_max_bytes": "of the machine's network interfaces and of limits that Go's client library "
    "reads; nothing about a relay",
}
OUR_METRICS = {
    r"fastderp_.*|process_threads": "what derper has no counterpart for",
}

# Seen by no comparison; tests of our own show these.
ELSEWHERE = {
    "WebSocket messages": "PROTOCOL 21: those over 32768 bytes are taken; derper closes",
    "the accept limiter": "PROTOCOL 21: who comes too fast is closed; derper ends",
    "STUN over a socket for both families": "PROTOCOL 21: an IPv4 client is answered with family 1; derper answers with a mapped address",
    "a STUN port that is taken": "PROTOCOL 21: told, and the relay does not start; derper says nothing",
    "/debug/check with duplicates": "PROTOCOL 21: two connections with one key are no inconsistency; derper says they are",
    "SIGTERM": "PROTOCOL 6.11: clients are told with Restarting when to come back, each at a time of its own; derper just goes",
    "the status of a mesh link": "derper logs its number of peers every 10 s while they change; here it is a line once the link is up, "
    "and the metric fastderp_mesh_keys ever after (a log of a busy region would be nothing else)",
    "a first start that meets another": "PROTOCOL 21: both go on with one key",
}
