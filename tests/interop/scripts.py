"""The conversations for the comparison of derper and fastderp, in tables by subject.

Each entry is a name and a function that writes the script. The expected answer is not
written here: derper gives it.
"""

from __future__ import annotations

from fastderp.wire.keys import NodePrivate
from fastderp.wire.protocol import KEY_SIZE, FrameType, frame

from .conversation import MESH, MESH_KEY_TEXT, ORDINARY, UPGRADE, Conversation
from .oracle import DISCO_MAGIC, Script

ROLES = {"ordinary": ORDINARY, "mesh": MESH}
WATCH = frame(FrameType.WATCH_CONNS)
HOME = frame(FrameType.NOTE_PREFERRED, b"\x01")

# the limits of the rules of PROTOCOL 5, and the sizes next to them
EDGES: dict[int, tuple[int, ...]] = {
    FrameType.SEND_PACKET: (0, 31, 32, 33, 64, 65568, 65569),
    FrameType.FORWARD_PACKET: (0, 32, 63, 64, 65, 65600, 65601),
    FrameType.NOTE_PREFERRED: (0, 1, 2),
    FrameType.WATCH_CONNS: (0, 1),
    FrameType.CLOSE_PEER: (0, 31, 32, 33),
    FrameType.PING: (0, 7, 8, 9, 1000, 1001),
}
# sizes of frames that a relay reads and drops; the last exceeds all other limits
DRAINED = (0, 8, 33, 70_000)


def disco(size: int) -> bytes:
    """Return data of this size that begins like a disco message."""
    return DISCO_MAGIC + bytes(size - len(DISCO_MAGIC))


def send_packet(c: Conversation, to: str, data: bytes) -> bytes:
    """Return a SendPacket frame."""
    return frame(FrameType.SEND_PACKET, c.public(to).raw, data)


def forward_packet(c: Conversation, source: str, to: str, data: bytes) -> bytes:
    """Return a ForwardPacket frame."""
    return frame(FrameType.FORWARD_PACKET, c.public(source).raw, c.public(to).raw, data)


def close_peer(c: Conversation, peer: str) -> bytes:
    """Return a ClosePeer frame."""
    return frame(FrameType.CLOSE_PEER, c.public(peer).raw)


def one_frame(frame_type: int, size: int, info: bytes) -> Script:
    """Return a script in which one of three sends a frame with another's repeated key."""

    def script(c: Conversation) -> None:
        payload = (c.public("b").raw * (size // KEY_SIZE + 1))[:size]
        c.login("b").login("w", MESH).send("w", WATCH)
        c.login("a", info).send("a", frame(frame_type, payload))

    return script


def frames_of_every_type() -> dict[str, Script]:
    """Return type × role × size class for all 256 types."""
    known = {int(frame_type) for frame_type in FrameType}
    return {
        f"frame {frame_type:#04x} of {size} bytes from {role}": one_frame(frame_type, size, info)
        for frame_type in range(256)
        for role, info in ROLES.items()
        for size in EDGES.get(frame_type, DRAINED if frame_type in known else (33,))
    }


# ClientInfo texts that are accepted or refused (PROTOCOL 3.1)
INFOS = [
    b"{}",
    b"null",
    b" \t\r\n{} \n",
    b"",
    b" ",
    b"[]",
    b'"x"',
    b"7",
    b"true",
    b"{",
    b"{}{}",
    b"{} x",
    b"{,}",
    b"\xff",
    b'{"a":"\xff"}',
    b'{"unknown":[1,{"deep":null}]}',
    b'{"version":2}',
    b'{"Version":2}',
    b'{"VERSION":2}',
    b'{"version":0}',
    b'{"version":-1}',
    b'{"version":9223372036854775807}',
    b'{"version":9223372036854775808}',
    b'{"version":2.0}',
    b'{"version":2.5}',
    b'{"version":2e0}',
    b'{"version":"2"}',
    b'{"version":true}',
    b'{"version":null}',
    b'{"version":[2]}',
    b'{"version":"2","version":2}',
    b'{"version":2,"version":"2"}',
    b'{"CanAckPings":1}',
    b'{"CanAckPings":"true"}',
    b'{"CanAckPings":null}',
    b'{"canackpings":true}',
    b'{"IsProber":true}',
    b'{"isprober":true}',
    b'{"IsProber":true,"isprober":false}',
    b'{"IsProber":null}',
    b'{"AppName":"x"}',
    b'{"meshKey":""}',
    b'{"meshKey":null}',
    b'{"meshKey":7}',
    b'{"meshKey":{}}',
    b'{"meshKey":"%s"}' % (b"0" * 64),
    b'{"meshKey":"%s"}' % (b"0" * 63),
    b'{"meshKey":"%s"}' % (b"0" * 65),
    b'{"meshKey":"%s"}' % (b"g" * 64),
    b'{"meshKey":" %s"}' % (b"0" * 63),
    b'{"meshKey":"%s"}' % MESH_KEY_TEXT.encode(),
    b'{"meshKey":"%s"}' % MESH_KEY_TEXT.upper().encode(),
    b'{"MESHKEY":"%s"}' % MESH_KEY_TEXT.encode(),
    b'{"mesh\\u004bey":"%s"}' % MESH_KEY_TEXT.encode(),
    b'{"meshKey":"%s","meshKey":"%s"}' % (b"0" * 64, MESH_KEY_TEXT.encode()),
    b'{"meshKey":"%s","meshKey":"%s"}' % (MESH_KEY_TEXT.encode(), b"0" * 64),
    b'{"meshKey":"%s"}' % MESH_KEY_TEXT.replace("a", "b").encode(),
]


def login_with(info: bytes) -> Script:
    """Return a script that shows whether a ClientInfo is accepted, and in which role."""
    return lambda c: c.login("w", MESH).send("w", WATCH).login("a", info).send("a", WATCH)


def login_with_first_frame(first: bytes) -> Script:
    """Return a script that sends another frame instead of a ClientInfo."""
    return lambda c: c.login("a", first=first, silent=True)


def client_info_size(size: int) -> Script:
    """Return a script whose ClientInfo payload has exactly this size, with spaces in the JSON."""
    overhead = KEY_SIZE + 24 + 16
    return login_with(b"{}".ljust(size - overhead))


def logins() -> dict[str, Script]:
    """Return all scripts of logins, valid or not."""
    zero_key, low_order_key, any_key = (
        bytes(32),
        b"\x01" + bytes(31),
        NodePrivate.generate().public_key.raw,
    )
    firsts = {
        "an all-zero key": frame(FrameType.CLIENT_INFO, zero_key, bytes(100)),
        "a low-order key": frame(FrameType.CLIENT_INFO, low_order_key, bytes(100)),
        "a box that does not open": frame(FrameType.CLIENT_INFO, any_key, bytes(100)),
        "a payload of 55 bytes": frame(FrameType.CLIENT_INFO, bytes(55)),
        "a payload of 56 bytes": frame(FrameType.CLIENT_INFO, any_key, bytes(24)),
        "the header of a payload of 262145 bytes": bytes((FrameType.CLIENT_INFO,))
        + (262145).to_bytes(4),
        "an empty ClientInfo": frame(FrameType.CLIENT_INFO),
        "a SendPacket first": frame(FrameType.SEND_PACKET, any_key),
        "a Ping first": frame(FrameType.PING, bytes(8)),
        "a ServerKey first": frame(FrameType.SERVER_KEY, bytes(40)),
        "an unknown frame first": frame(0x7F),
    }
    table = {f"login with {info.decode('latin-1')}": login_with(info) for info in INFOS}
    table |= {f"login with {what}": login_with_first_frame(first) for what, first in firsts.items()}
    table |= {
        f"login with a payload of {size} bytes": client_info_size(size)
        for size in (74, 262143, 262144)
    }
    return table


def request(*lines: str) -> bytes:
    """Return a request head of these lines."""
    return "".join(line + "\r\n" for line in (*lines, "")).encode("latin-1")


# Requests for the upgrade, granted or not (PROTOCOL 9.3).
HEADS = {
    "in capitals": request(
        "GET /derp HTTP/1.1", "Host: relay", "CONNECTION: UPGRADE", "UPGRADE: DERP"
    ),
    "in small letters": request(
        "GET /derp HTTP/1.1", "host: relay", "connection: upgrade", "upgrade: derp"
    ),
    "without Connection": request("GET /derp HTTP/1.1", "Host: relay", "Upgrade: DERP"),
    "with Connection: close": request(
        "GET /derp HTTP/1.1", "Host: relay", "Connection: close", "Upgrade: DERP"
    ),
    "by POST": request(
        "POST /derp HTTP/1.1", "Host: relay", "Connection: Upgrade", "Upgrade: DERP"
    ),
    "by POST without a body": request(
        "POST /derp HTTP/1.1", "Host: relay", "Content-Length: 0", "Upgrade: DERP"
    ),
    "by POST with a body": request(
        "POST /derp HTTP/1.1", "Host: relay", "Content-Length: 5", "Upgrade: DERP"
    ),
    "by POST in chunks": request(
        "POST /derp HTTP/1.1", "Host: relay", "Transfer-Encoding: chunked", "Upgrade: DERP"
    ),
    "expecting 100": request(
        "POST /derp HTTP/1.1", "Host: relay", "Expect: 100-continue", "Upgrade: DERP"
    ),
    "by HTTP/1.0": request("GET /derp HTTP/1.0", "Upgrade: DERP"),
    "with a query": request("GET /derp?region=1 HTTP/1.1", "Host: relay", "Upgrade: DERP"),
    "by absolute URL": request("GET http://relay/derp HTTP/1.1", "Host: relay", "Upgrade: DERP"),
    "to WebSocket without a subprotocol": request(
        "GET /derp HTTP/1.1", "Host: relay", "Upgrade: WebSocket"
    ),
    "with two Upgrade lines, derp first": request(
        "GET /derp HTTP/1.1", "Host: relay", "Upgrade: DERP", "Upgrade: x"
    ),
    "with two Upgrade lines, derp last": request(
        "GET /derp HTTP/1.1", "Host: relay", "Upgrade: x", "Upgrade: DERP"
    ),
    "to a list": request("GET /derp HTTP/1.1", "Host: relay", "Upgrade: DERP, websocket"),
    "to spaces around derp": request("GET /derp HTTP/1.1", "Host: relay", "Upgrade:   DERP  "),
    "to something else": request(
        "GET /derp HTTP/1.1", "Host: relay", "Connection: Upgrade", "Upgrade: h2c"
    ),
    "to nothing": request("GET /derp HTTP/1.1", "Host: relay", "Upgrade: "),
    "not asked for": request("GET /derp HTTP/1.1", "Host: relay"),
    "of another path": request("GET /derp/ HTTP/1.1", "Host: relay", "Upgrade: DERP"),
    "of the home page": request("GET / HTTP/1.1", "Host: relay", "Upgrade: DERP"),
    "of the probe path": request("GET /derp/probe HTTP/1.1", "Host: relay", "Upgrade: DERP"),
    "of a path in capitals": request("GET /DERP HTTP/1.1", "Host: relay", "Upgrade: DERP"),
    "with an escaped path": request("GET /%64erp HTTP/1.1", "Host: relay", "Upgrade: DERP"),
    "with a doubled slash": request("GET //derp HTTP/1.1", "Host: relay", "Upgrade: DERP"),
    "fast start 1": request(
        "GET /derp HTTP/1.1", "Host: relay", "Upgrade: DERP", "Derp-Fast-Start: 1"
    ),
    "fast start 0": request(
        "GET /derp HTTP/1.1", "Host: relay", "Upgrade: DERP", "Derp-Fast-Start: 0"
    ),
    "fast start true": request(
        "GET /derp HTTP/1.1", "Host: relay", "Upgrade: DERP", "Derp-Fast-Start: true"
    ),
    "with an ideal node": request(
        "GET /derp HTTP/1.1", "Host: relay", "Upgrade: DERP", "Ideal-Node: 9a"
    ),
    "with an empty ideal node": request(
        "GET /derp HTTP/1.1", "Host: relay", "Upgrade: DERP", "Ideal-Node: "
    ),
    "without Host": request("GET /derp HTTP/1.1", "Upgrade: DERP"),
    "with two Hosts": request("GET /derp HTTP/1.1", "Host: a", "Host: b", "Upgrade: DERP"),
    "by HTTP/3.0": request("GET /derp HTTP/3.0", "Host: relay", "Upgrade: DERP"),
    "with a space before a colon": request("GET /derp HTTP/1.1", "Host: relay", "Upgrade : DERP"),
    "with a line that is no header": request(
        "GET /derp HTTP/1.1", "Host: relay", "nonsense", "Upgrade: DERP"
    ),
    "with a length that is no number": request(
        "POST /derp HTTP/1.1", "Host: relay", "Content-Length: x"
    ),
}


def upgrade_by(head: bytes) -> Script:
    """Return a script with its own upgrade request; a watcher shows whether it succeeds."""
    return lambda c: c.login("w", MESH).send("w", WATCH).login("a", head=head)


def at_once(head: bytes) -> Script:
    """Return a script whose request, login and first packets arrive in one segment."""

    def script(c: Conversation) -> None:
        c.login("b").login("w", MESH).send("w", WATCH)
        c.login("a", head=head, then=HOME + send_packet(c, "b", b"early"), at_once=True)

    return script


def upgrades() -> dict[str, Script]:
    """Return all scripts of upgrade requests."""
    table = {f"upgrade {how}": upgrade_by(head) for how, head in HEADS.items()}
    table["request, login and packets in one segment"] = at_once(UPGRADE)
    table["POST, login and packets in one segment"] = at_once(HEADS["by POST with a body"])
    table["fast start, login and packets in one segment"] = at_once(HEADS["fast start 1"])
    return table


def packets_to_oneself(c: Conversation) -> None:
    c.login("a").send(
        "a", send_packet(c, "a", b"note"), send_packet(c, "a", b""), send_packet(c, "a", disco(62))
    )


def packets_to_an_absent_key(c: Conversation) -> None:
    c.login("a")
    for data in (b"", b"x" * 100, disco(61), disco(62), disco(1400)):
        c.send("a", send_packet(c, "ghost", data))


def a_burst_of_disco_to_an_absent_key(c: Conversation) -> None:
    c.login("a").send("a", *(send_packet(c, f"ghost {i}", disco(100)) for i in range(6)))


def each_sender_has_its_own_not_here_limit(c: Conversation) -> None:
    burst = [send_packet(c, f"ghost {i}", disco(100)) for i in range(5)]
    c.login("a").login("b").send("a", *burst).send("b", *burst)


def interleaved_packets_to_two(c: Conversation) -> None:
    c.login("a").login("b").login("c")
    c.send("a", *(send_packet(c, "bc"[i % 2], b"packet %d" % i) for i in range(40)))


def sizes_up_to_the_largest(c: Conversation) -> None:
    c.login("a").login("b")
    for size in (0, 1, 16_383, 16_384, 16_385, 65_535, 65_536):
        c.send("a", send_packet(c, "b", bytes(size)))


def a_frame_in_pieces(c: Conversation) -> None:
    whole = send_packet(c, "b", b"in pieces")
    c.login("b").login("a", silent=True)
    for start in range(0, len(whole), 7):
        c.send("a", whole[start : start + 7])


def half_a_frame_and_a_close(c: Conversation) -> None:
    c.login("b").login("w", MESH).send("w", WATCH).login("a", silent=True)
    c.send("a", send_packet(c, "b", b"whole") + send_packet(c, "b", bytes(1000))[:500]).leave("a")


def a_long_unknown_frame_between_packets(c: Conversation) -> None:
    c.login("b").login("a")
    c.send(
        "a",
        send_packet(c, "b", b"before"),
        frame(0x77, bytes(65_568)),
        send_packet(c, "b", b"behind"),
    )


def an_unknown_frame_that_is_too_long(c: Conversation) -> None:
    # in two steps, as derper closes before or after it has recorded the receiver
    c.login("b").login("a").send("a", send_packet(c, "b", b"before"))
    c.send("a", frame(0x77, bytes(65_569)), send_packet(c, "b", b"behind"))


def a_departure_is_told_to_receivers_only(c: Conversation) -> None:
    c.login("a").login("b").login("c").login("d")
    c.send(
        "a", send_packet(c, "b", b"1"), send_packet(c, "b", b"2"), send_packet(c, "c", disco(62))
    )
    c.send("d", send_packet(c, "a", b"3")).leave("a")


def a_departure_after_both_spoke(c: Conversation) -> None:
    c.login("a").login("b").send("a", send_packet(c, "b", b"1")).send(
        "b", send_packet(c, "a", b"2")
    )
    c.leave("a").send("b", send_packet(c, "a", disco(62)))


def a_peer_that_comes_back_is_reachable(c: Conversation) -> None:
    c.login("a").login("b").send("a", send_packet(c, "b", b"1")).leave("b")
    c.send("a", send_packet(c, "b", disco(62))).login("b again", key="b").send(
        "a", send_packet(c, "b", b"2")
    )


def a_second_departure(c: Conversation) -> None:
    c.login("b")
    for name in ("a", "a again"):
        c.login(name, key="a").send(name, send_packet(c, "b", b"1")).leave(name)


def a_departure_with_a_duplicate_left(c: Conversation) -> None:
    c.login("b").login("w", MESH).send("w", WATCH).login("a1", key="a").login("a2", key="a")
    c.send("a1", send_packet(c, "b", b"1")).leave("a1").leave("a2")


def the_newest_duplicate_is_active_until_another_speaks(c: Conversation) -> None:
    c.login("s").login("d1", key="d", silent=True).login("d2", key="d", silent=True)
    c.send("s", send_packet(c, "d", b"to the newest"))
    for talk in (frame(FrameType.PONG, bytes(8)), frame(0x7F), HOME, send_packet(c, "ghost", b"")):
        c.send("d1", talk).send("s", send_packet(c, "d", b"to the first"))
        c.send("d2", talk).send("s", send_packet(c, "d", b"to the second"))


def the_last_speaker_but_one_follows_a_departed_duplicate(c: Conversation) -> None:
    c.login("s")
    for name in ("d1", "d2", "d3", "d4"):
        c.login(name, key="d", silent=True)
    for name in ("d1", "d3", "d2", "d1"):
        c.send(name, frame(FrameType.PONG, bytes(8)))
    for name in ("d1", "d2", "d3"):
        c.leave(name).send("s", send_packet(c, "d", b"after " + name.encode()))


def duplicates_that_never_speak_come_and_go(c: Conversation) -> None:
    names = ("d1", "d2", "d3", "d4", "d5", "d6", "d7")
    leavers = {"d4": ("d4", "d3"), "d5": ("d5", "d1"), "d7": ("d7", "d6", "d2")}
    c.login("s")
    for name in names:
        c.login(name, key="d", silent=True)
        for leaver in leavers.get(name, ()):
            c.leave(leaver).send("s", send_packet(c, "d", b"after " + leaver.encode()))


def the_second_of_two_duplicates_is_remembered_once_it_speaks(c: Conversation) -> None:
    c.login("s").login("d1", key="d", silent=True).login("d2", key="d", silent=True)
    c.send("d2", frame(FrameType.PONG, bytes(8))).login("d3", key="d", silent=True)
    for name in ("d3", "d2"):
        c.leave(name).send("s", send_packet(c, "d", b"after " + name.encode()))


def a_duplicate_that_never_spoke_leaves(c: Conversation) -> None:
    c.login("s").login("d1", key="d", silent=True).login("d2", key="d", silent=True).leave("d2")
    c.send("s", send_packet(c, "d", b"to the one left"))


def only_the_duplicate_that_received_is_told_of_a_departure(c: Conversation) -> None:
    c.login("s").login("d1", key="d", silent=True).login("d2", key="d", silent=True)
    c.send("s", send_packet(c, "d", b"to the newest")).leave("s")


def a_watcher_sees_all_logins_and_departures(c: Conversation) -> None:
    c.login("a").login("w", MESH).send("w", WATCH).login("b").login("m", MESH)
    c.login("p", b'{"IsProber":true}').leave("a").leave("m").leave("p").leave("b")


def a_watcher_sees_every_duplicate_and_the_last_departure(c: Conversation) -> None:
    c.login("w", MESH).send("w", WATCH)
    c.login("a1", key="a").login("a2", key="a").login("a3", key="a")
    c.leave("a2").leave("a1").leave("a3").login("a4", key="a")


def a_watcher_that_asks_twice_is_told_twice(c: Conversation) -> None:
    c.login("a").login("w", MESH).send("w", WATCH).send("w", WATCH).login("b").send(
        "w", WATCH, WATCH
    )


def a_watcher_that_repeats_its_request(c: Conversation) -> None:
    c.login("w", MESH).send("w", *[WATCH] * 30)


def two_watchers(c: Conversation) -> None:
    c.login("w1", MESH).login("w2", MESH).send("w1", WATCH).send("w2", WATCH).login("a").leave(
        "w1"
    ).leave("a")


def flags_of_every_kind(c: Conversation) -> None:
    not_ideal = HEADS["with an ideal node"]
    probing_mesh = MESH[:-1] + b',"IsProber":true}'
    c.login("w", MESH).send("w", WATCH)
    infos = {
        "regular": ORDINARY,
        "prober": b'{"IsProber":true}',
        "mesh": MESH,
        "probing mesh": probing_mesh,
    }
    for kind, info in infos.items():
        c.login(kind, info).login(f"{kind}, not ideal", info, head=not_ideal)


def a_mesh_peer_closes_others(c: Conversation) -> None:
    c.login("a1", key="a").login("a2", key="a").login("b").login("w", MESH).send("w", WATCH).login(
        "m", MESH
    )
    c.send("m", close_peer(c, "ghost")).send("m", close_peer(c, "a")).send("m", close_peer(c, "b"))


def a_mesh_peer_closes_itself(c: Conversation) -> None:
    c.login("w", MESH).send("w", WATCH).login("m", MESH).send("m", close_peer(c, "m"))


def forwarding(c: Conversation) -> None:
    c.login("a").login("m", MESH)
    c.send("m", forward_packet(c, "remote", "a", b"1"), forward_packet(c, "remote", "a", disco(62)))
    c.send("m", forward_packet(c, "a", "a", b""), forward_packet(c, "m", "a", b"2"))
    c.send("m", forward_packet(c, "remote", "ghost", b"3")).send(
        "m", forward_packet(c, "remote", "ghost", disco(62))
    )


def forwarding_from_the_zero_key(c: Conversation) -> None:
    zero = frame(FrameType.FORWARD_PACKET, bytes(KEY_SIZE), c.public("a").raw, b"old form" * 8)
    c.login("a").login("m", MESH).send("m", zero)


def a_burst_of_forwarded_disco_to_an_absent_key(c: Conversation) -> None:
    c.login("m", MESH).send(
        "m", *(forward_packet(c, "remote", f"ghost {i}", disco(62)) for i in range(6))
    )


def a_forwarded_source_that_comes_and_goes(c: Conversation) -> None:
    c.login("a").login("m", MESH).send("m", forward_packet(c, "x", "a", b"1")).login("x").leave("x")


def packets_to_the_zero_key(c: Conversation) -> None:
    c.login("a").send("a", frame(FrameType.SEND_PACKET, bytes(KEY_SIZE), b"1"))
    c.send("a", frame(FrameType.SEND_PACKET, bytes(KEY_SIZE), disco(62)))


def home_and_away(c: Conversation) -> None:
    away = frame(FrameType.NOTE_PREFERRED, b"\x00")
    c.login("a").send("a", HOME, HOME, away, away, frame(FrameType.NOTE_PREFERRED, b"\x02"))


def pings_and_packets_mixed(c: Conversation) -> None:
    c.login("a").login("b")
    for i in range(4):
        ping = frame(FrameType.PING, b"ping %03d" % i)
        c.send("a", send_packet(c, "b", b"before"), ping, send_packet(c, "b", b"behind"))


BEHAVIOURS: list[Script] = [
    packets_to_oneself,
    packets_to_an_absent_key,
    a_burst_of_disco_to_an_absent_key,
    each_sender_has_its_own_not_here_limit,
    interleaved_packets_to_two,
    sizes_up_to_the_largest,
    a_frame_in_pieces,
    half_a_frame_and_a_close,
    a_long_unknown_frame_between_packets,
    an_unknown_frame_that_is_too_long,
    a_departure_is_told_to_receivers_only,
    a_departure_after_both_spoke,
    a_peer_that_comes_back_is_reachable,
    a_second_departure,
    a_departure_with_a_duplicate_left,
    the_newest_duplicate_is_active_until_another_speaks,
    the_last_speaker_but_one_follows_a_departed_duplicate,
    duplicates_that_never_speak_come_and_go,
    the_second_of_two_duplicates_is_remembered_once_it_speaks,
    a_duplicate_that_never_spoke_leaves,
    only_the_duplicate_that_received_is_told_of_a_departure,
    a_watcher_sees_all_logins_and_departures,
    a_watcher_sees_every_duplicate_and_the_last_departure,
    a_watcher_that_asks_twice_is_told_twice,
    a_watcher_that_repeats_its_request,
    two_watchers,
    flags_of_every_kind,
    a_mesh_peer_closes_others,
    a_mesh_peer_closes_itself,
    forwarding,
    forwarding_from_the_zero_key,
    a_burst_of_forwarded_disco_to_an_absent_key,
    a_forwarded_source_that_comes_and_goes,
    packets_to_the_zero_key,
    home_and_away,
    pings_and_packets_mixed,
]


def behaviours() -> dict[str, Script]:
    """Return the conversations about behaviour beyond single frames."""
    return {script.__name__.replace("_", " "): script for script in BEHAVIOURS}
