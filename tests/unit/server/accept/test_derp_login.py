"""The login without a socket: it reads bytes and returns bytes and steps."""

from __future__ import annotations

import pytest

from fastderp.server.accept.derp_login import DerpLogin, LoginTerms, Step
from fastderp.util.net import address_bytes
from fastderp.wire import login
from fastderp.wire.keys import MeshKey, NodePrivate
from fastderp.wire.login import ClientInfo, ServerInfo
from fastderp.wire.protocol import HEADER, HEADER_SIZE, FrameType

SERVER = NodePrivate.generate()
CLIENT = NodePrivate.generate()
BOX = CLIENT.box(SERVER.public_key)
SERVER_KEY = login.server_key_frame(SERVER.public_key)
MESH_KEY = MeshKey.from_text("ab" * 32)
LIMITS = ServerInfo(token_bucket_bytes_per_second=1000, token_bucket_bytes_burst=5000)


def limits_of(key: bytes, app_name: str, addr: bytes) -> ServerInfo:
    assert (key, addr) == (CLIENT.public_key.raw, address_bytes("192.0.2.7"))
    return LIMITS


def make(
    *,
    fast_start: bool = True,
    asks_admission: bool = False,
    disallowed_app_names: tuple[str, ...] = (),
) -> DerpLogin:
    terms = LoginTerms(
        SERVER, lambda info: info.mesh_key == MESH_KEY, limits_of, disallowed_app_names
    )
    terms.asks_admission = asks_admission
    return DerpLogin(terms, "192.0.2.7", fast_start=fast_start)


def client_info(info: ClientInfo | None = None) -> bytes:
    return login.client_info_frame(CLIENT.public_key, BOX, info or ClientInfo())


def opened_server_info(sent: bytes) -> ServerInfo:
    frame_type, length = HEADER.unpack(sent[:HEADER_SIZE])
    assert frame_type == FrameType.SERVER_INFO
    assert len(sent) == HEADER_SIZE + length
    return login.open_server_info(BOX, sent[HEADER_SIZE:])


def test_the_relay_sends_first() -> None:
    fast, slow = make(), make(fast_start=False)
    assert fast.step() is slow.step() is Step.READ
    assert fast.take_output() == SERVER_KEY
    answer = slow.take_output()
    assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert answer.endswith(b"\r\n\r\n" + SERVER_KEY)
    assert fast.take_output() == slow.take_output() == b""


def test_a_login_may_come_byte_by_byte() -> None:
    one = make()
    assert one.step() is Step.READ
    one.take_output()
    sent = client_info()
    for index in range(len(sent) - 1):
        one.feed(sent[index : index + 1])
        assert one.step() is Step.READ
    one.feed(sent[-1:])
    assert one.step() is Step.ADMIT
    assert one.client.public == CLIENT.public_key
    assert opened_server_info(one.take_output()) == LIMITS
    assert one.rest == b""


def test_a_pipelined_login_is_answered_in_one_piece_and_its_packets_are_kept() -> None:
    one = make()
    one.feed(client_info() + b"packets")
    assert one.step() is Step.ADMIT
    answer = one.take_output()
    assert answer.startswith(SERVER_KEY)
    opened_server_info(answer[len(SERVER_KEY) :])
    assert one.rest == b"packets"


def test_a_disallowed_app_name_is_refused_before_admission_is_asked_and_mesh_peers_are_exempt() -> (
    None
):
    for info, step in (
        (ClientInfo(app_name="noisy"), Step.REFUSE),
        (ClientInfo(app_name="quiet"), Step.ASK),
        (ClientInfo(), Step.ASK),
        (ClientInfo(app_name="noisy", mesh_key=MESH_KEY), Step.ADMIT),
    ):
        one = make(asks_admission=True, disallowed_app_names=("noisy",))
        one.feed(client_info(info))
        assert one.step() is step, info
        if step is Step.REFUSE:
            assert one.reason == "app_name_disallowed" and '"noisy"' in one.detail


def test_a_denial_by_admission_ends_the_login() -> None:
    allowed, refused = make(asks_admission=True), make(asks_admission=True)
    for one in (allowed, refused):
        one.feed(client_info())
        assert one.step() is Step.ASK
    assert allowed.judge("") is Step.ADMIT
    assert refused.judge("not this one") is Step.REFUSE
    assert (refused.reason, refused.detail) == ("denied", "not this one")
    assert refused.take_output() == SERVER_KEY


def test_a_mesh_peer_is_admitted_without_a_verdict_and_without_limits() -> None:
    one = make(asks_admission=True)
    one.feed(client_info(ClientInfo(mesh_key=MESH_KEY)))
    assert one.step() is Step.ADMIT
    assert one.is_mesh_peer
    assert opened_server_info(one.take_output()[len(SERVER_KEY) :]) == ServerInfo()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (HEADER.pack(FrameType.PING, 8), "frame_type"),
        (HEADER.pack(FrameType.CLIENT_INFO, 1 << 30), "frame_size"),
        (client_info()[:-1] + b"\0", "box"),
    ],
)
def test_a_malformed_login_is_refused_with_the_reason(sent: bytes, reason: str) -> None:
    one = make()
    one.feed(sent)
    assert one.step() is Step.REFUSE
    assert one.reason == reason
