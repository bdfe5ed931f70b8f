"""The login, both sides (PROTOCOL section 3 and the vectors of section 20)."""

import json

import pytest

from fastderp.errors import LoginError, ProtocolError
from fastderp.wire import login
from fastderp.wire.keys import MeshKey, NodePrivate, NodePublic
from fastderp.wire.login import ClientInfo, ServerInfo
from fastderp.wire.protocol import MAGIC, FrameType, frame
from tests.wire import vectors

SERVER = NodePrivate(vectors.SERVER_PRIVATE)
CLIENT = NodePrivate(vectors.CLIENT_PRIVATE)
BOX = CLIENT.box(SERVER.public_key)
MESH_KEY = MeshKey.from_text("ab" * 32)


def client_info_payload(text: bytes) -> bytes:
    return CLIENT.public_key.raw + BOX.seal(text)


def test_server_key_frame_is_the_vector() -> None:
    assert login.server_key_frame(SERVER.public_key) == vectors.SERVER_KEY_FRAME
    assert login.parse_server_key(0x01, vectors.SERVER_KEY_FRAME[5:]) == SERVER.public_key


def test_client_info_frame_is_the_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.urandom", lambda size: vectors.NONCE)
    sent = login.client_info_frame(CLIENT.public_key, BOX, ClientInfo(can_ack_pings=True))
    assert sent == vectors.CLIENT_INFO_FRAME


def test_server_info_frame_is_the_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = login.open_client_info(SERVER, vectors.CLIENT_INFO_FRAME[5:])
    monkeypatch.setattr("os.urandom", lambda size: vectors.NONCE)
    assert opened.server_info_frame() == vectors.SERVER_INFO_FRAME


def test_relay_opens_the_vector() -> None:
    opened = login.open_client_info(SERVER, vectors.CLIENT_INFO_FRAME[5:])
    assert opened.public == CLIENT.public_key
    assert opened.info == ClientInfo(version=2, can_ack_pings=True)


def test_client_opens_the_vector() -> None:
    assert login.open_server_info(BOX, vectors.SERVER_INFO_FRAME[5:]) == ServerInfo(version=2)


@pytest.mark.parametrize(
    ("info", "text"),
    [
        (ClientInfo(), b'{"version":2,"CanAckPings":false}'),
        (
            ClientInfo(2, True, True, MESH_KEY, "probe"),
            b'{"meshKey":"' + b"ab" * 32 + b'","version":2,"CanAckPings":true,"IsProber":true,'
            b'"AppName":"probe"}',
        ),
        (ClientInfo(version=0), b'{"CanAckPings":false}'),
    ],
)
def test_client_info_is_written_like_the_reference_does(info: ClientInfo, text: bytes) -> None:
    assert info.to_json() == text
    assert login.parse_client_info(text) == info


DIGITS = "ab" * 32


@pytest.mark.parametrize(
    ("text", "info"),
    [
        ("{}", ClientInfo(version=0)),
        ("null", ClientInfo(version=0)),
        (" \t\r\n{ } \n", ClientInfo(version=0)),
        ('{"Version":2}', ClientInfo()),
        ('{"VERSION":2,"canackpings":true}', ClientInfo(can_ack_pings=True)),
        ('{"ver\u017fion":2,"i\u017fprober":true}', ClientInfo(is_prober=True)),
        ('{"version":1,"version":2}', ClientInfo()),
        ('{"version":2,"Version":null}', ClientInfo()),
        ('{"version":-9223372036854775808}', ClientInfo(version=-(2**63))),
        ('{"version":2,"later":{"version":"x"},"list":[{"a":1}],"n":1.5}', ClientInfo()),
        ('{"CanAckPings":null,"IsProber":null,"AppName":null}', ClientInfo(version=0)),
        ('{"IsProber":false,"AppName":"a\\u0062 ~"}', ClientInfo(version=0, app_name="ab ~")),
        (f'{{"meshKey":"{DIGITS}"}}', ClientInfo(version=0, mesh_key=MESH_KEY)),
        (f'{{"MeshKey":"{DIGITS.upper()}"}}', ClientInfo(version=0, mesh_key=MESH_KEY)),
        (f'{{"meshKey":"{"0" * 64}"}}', ClientInfo(version=0)),
    ],
)
def test_client_info_is_read_as_leniently_as_the_reference(text: str, info: ClientInfo) -> None:
    assert login.parse_client_info(text.encode()) == info


def test_bytes_that_are_not_utf8_are_allowed_inside_strings_only() -> None:
    assert login.parse_client_info(b'{"version":2,"later":"\xff"}') == ClientInfo()
    with pytest.raises(LoginError):
        login.parse_client_info(b'{"version":2}\xff')


@pytest.mark.parametrize("name", ["", "tailscaled", " ~", "x" * 32])
def test_an_app_name_of_up_to_32_printable_ascii_characters_is_taken(name: str) -> None:
    text = json.dumps({"AppName": name}).encode()
    assert login.parse_client_info(text).app_name == name


@pytest.mark.parametrize(
    "text",
    [
        b'{"AppName":"' + b"x" * 33 + b'"}',
        b'{"AppName":"a\\u00e9"}',
        b'{"AppName":"\\ud800"}',
        b'{"AppName":"\\n"}',
        b'{"AppName":"\\u001f"}',
        b'{"AppName":"\x7f"}',
        b'{"AppName":"\xff"}',
    ],
)
def test_an_app_name_that_is_long_or_not_printable_is_refused(text: bytes) -> None:
    with pytest.raises(LoginError) as caught:
        login.parse_client_info(text)
    assert caught.value.reason == "app_name"
    assert "32 printable ASCII characters" in str(caught.value)


def test_only_app_names_of_the_list_are_disallowed() -> None:
    disallowed = ("noisy", " spaced ")
    for name in ("", "noisy2", "NOISY", "spaced"):
        login.check_app_name_allowed(ClientInfo(app_name=name), disallowed)
    for name in disallowed:
        with pytest.raises(LoginError, match=f'"{name}" is not allowed') as caught:
            login.check_app_name_allowed(ClientInfo(app_name=name), disallowed)
        assert caught.value.reason in login.REASONS


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "[]",
        '"version"',
        "2",
        "true",
        "{",
        "{}{}",
        "{} x",
        "{'version':2}",
        '{"version":2,}',
        '\ufeff{"version":2}',
        '{"version":"2"}',
        '{"version":2.5}',
        '{"version":2.0}',
        '{"version":2e0}',
        '{"version":true}',
        '{"version":{}}',
        '{"version":"2","version":2}',
        '{"version":9223372036854775808}',
        '{"version":' + "9" * 5000 + "}",
        '{"CanAckPings":1}',
        '{"CanAckPings":"true"}',
        '{"IsProber":[]}',
        '{"AppName":5}',
        '{"n":NaN}',
        '{"n":-Infinity}',
        '{"AppName":"\n"}',
        '{"a":' * 50_000,
        "[" * 200_000,
    ],
    ids=lambda text: text[:24],
)
def test_client_info_is_read_as_strictly_as_the_reference(text: str) -> None:
    with pytest.raises(LoginError) as caught:
        login.parse_client_info(text.encode())
    assert caught.value.reason == "json"


@pytest.mark.parametrize(
    "value",
    [
        '""',
        "null",
        "5",
        "{}",
        "true",
        f'"{DIGITS}a"',
        f'"{DIGITS[1:]}"',
        f'"{DIGITS[2:]}zz"',
        f'" {DIGITS[1:]}"',
    ],
)
def test_malformed_mesh_key_is_refused_without_being_quoted(value: str) -> None:
    with pytest.raises(LoginError) as caught:
        login.parse_client_info(b'{"version":2,"meshKey":' + value.encode() + b"}")
    assert caught.value.reason == "mesh_key"
    assert "abab" not in str(caught.value)


def test_a_good_mesh_key_after_a_bad_one_does_not_help() -> None:
    with pytest.raises(LoginError):
        login.parse_client_info(f'{{"meshKey":"","meshKey":"{DIGITS}"}}'.encode())


@pytest.mark.parametrize(
    ("frame_type", "length", "reason"),
    [
        (FrameType.SEND_PACKET, 104, "frame_type"),
        (0xFF, 0, "frame_type"),
        (FrameType.CLIENT_INFO, 55, "frame_size"),
        (FrameType.CLIENT_INFO, 262145, "frame_size"),
        (FrameType.CLIENT_INFO, 0xFFFFFFFF, "frame_size"),
    ],
)
def test_first_frame_is_judged_by_its_header(frame_type: int, length: int, reason: str) -> None:
    with pytest.raises(LoginError) as caught:
        login.check_client_info_header(frame_type, length)
    assert caught.value.reason == reason


def test_smallest_and_largest_client_info_pass_the_header_check() -> None:
    login.check_client_info_header(FrameType.CLIENT_INFO, 56)
    login.check_client_info_header(FrameType.CLIENT_INFO, 262144)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (bytes(55), "frame_size"),
        (bytes(32) + bytes(72), "client_key"),
        (b"\1" + bytes(103), "client_key"),
        (vectors.CLIENT_PUBLIC + bytes(24), "box"),
        (vectors.CLIENT_PUBLIC + bytes(72), "box"),
        (vectors.CLIENT_INFO_FRAME[5:-1] + b"\0", "box"),
        (NodePrivate.generate().public_key.raw + vectors.CLIENT_INFO_FRAME[37:], "box"),
        (client_info_payload(b""), "json"),
        (client_info_payload(b'{"meshKey":""}'), "mesh_key"),
    ],
)
def test_refused_logins_have_a_reason(payload: bytes, reason: str) -> None:
    with pytest.raises(LoginError) as caught:
        login.open_client_info(SERVER, payload)
    assert caught.value.reason == reason
    assert reason in login.REASONS


@pytest.mark.parametrize(
    ("frame_type", "payload"),
    [
        (FrameType.KEEP_ALIVE, vectors.SERVER_KEY_FRAME[5:]),
        (FrameType.SERVER_KEY, vectors.SERVER_KEY_FRAME[5:-1]),
        (FrameType.SERVER_KEY, vectors.SERVER_KEY_FRAME[5:] + bytes(985)),
        (FrameType.SERVER_KEY, b"HTTP/1.1" + bytes(32)),
        (FrameType.SERVER_KEY, MAGIC + bytes(32)),
    ],
)
def test_client_refuses_a_malformed_server_key(frame_type: int, payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        login.parse_server_key(frame_type, payload)


def test_server_key_may_carry_future_bytes() -> None:
    payload = vectors.SERVER_KEY_FRAME[5:] + bytes(984)
    assert login.parse_server_key(FrameType.SERVER_KEY, payload) == SERVER.public_key


def test_server_info_contains_a_send_rate() -> None:
    info = ServerInfo(2, 1000, 70000)
    opened = login.open_client_info(SERVER, vectors.CLIENT_INFO_FRAME[5:])
    sent = opened.server_info_frame(info)
    assert login.open_server_info(BOX, sent[5:]) == info
    assert json.loads(login.server_info_json(info)) == {
        "version": 2,
        "TokenBucketBytesPerSecond": 1000,
        "TokenBucketBytesBurst": 70000,
    }


@pytest.mark.parametrize(
    "payload",
    [
        bytes(23),
        bytes(24),
        bytes(24 + (1 << 20) + 1),
        vectors.SERVER_INFO_FRAME[5:-1] + b"\0",
        BOX.seal(b""),
        BOX.seal(b"[]"),
        BOX.seal(b'{"TokenBucketBytesPerSecond":"fast"}'),
    ],
    ids=lambda payload: str(len(payload)),
)
def test_client_refuses_a_server_info_it_cannot_read(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        login.open_server_info(BOX, payload)


def test_both_sides_understand_each_other_with_fresh_keys() -> None:
    relay, node = NodePrivate.generate(), NodePrivate.generate()
    key = login.parse_server_key(0x01, login.server_key_frame(relay.public_key)[5:])
    box = node.box(key)
    info = ClientInfo(can_ack_pings=True, mesh_key=MESH_KEY, app_name="test")
    opened = login.open_client_info(relay, login.client_info_frame(node.public_key, box, info)[5:])
    assert opened.public == NodePublic(node.public_key.raw)
    assert opened.info == info
    assert opened.server_info_frame()[:5] == frame(FrameType.SERVER_INFO, bytes(53))[:5]
    assert login.open_server_info(box, opened.server_info_frame()[5:]) == ServerInfo()


def test_common_client_infos_are_cached_but_no_mesh_key() -> None:
    secret = MeshKey.generate()
    for _ in range(2):
        assert login.parse_client_info(b'{"version":2,"CanAckPings":true}') == ClientInfo(2, True)
    n_remembered = login._short_client_info.cache_info().currsize
    assert n_remembered > 0
    assert login.parse_client_info(json.dumps({"meshKey": secret.text}).encode()).mesh_key == secret
    assert login._short_client_info.cache_info().currsize == n_remembered
