"""The parsers of the wire return a value or their own error for any bytes."""

import asyncio
import json
import string

from hypothesis import given
from hypothesis import strategies as st

from fastderp.client import DerpMap
from fastderp.errors import ConnectionClosed, DerpMapError, LoginError, ProtocolError
from fastderp.net.stream import Stream
from fastderp.wire import login
from fastderp.wire.keys import MeshKey, NodePrivate, NodePublic
from fastderp.wire.login import ClientInfo, ServerInfo
from fastderp.wire.messages import parse_message
from fastderp.wire.protocol import frame

ALICE, BOB = NodePrivate.generate(), NodePrivate.generate()
BOX = ALICE.box(BOB.public_key)

keys = st.binary(min_size=32, max_size=32)
frame_types = st.integers(0, 255)
frames = st.lists(st.tuples(frame_types, st.binary(max_size=100)), max_size=10)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
member_names = st.sampled_from(
    ["meshKey", "version", "CanAckPings", "IsProber", "AppName", "MESHKEY", "Version", "later"]
)
client_infos = st.builds(
    ClientInfo,
    version=st.integers(-(2**63), 2**63 - 1),
    can_ack_pings=st.booleans(),
    is_prober=st.booleans(),
    mesh_key=st.builds(MeshKey, keys),
    app_name=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=32),
)


class Pieces:
    """A reader that hands out bytes in the given pieces, and a writer that does nothing."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self._data = data
        self._sizes = sizes

    async def read(self, n: int, /) -> bytes:
        size = min(n, self._sizes.pop() if self._sizes else n)
        data, self._data = self._data[:size], self._data[size:]
        return data

    def write(self, data: bytes, /) -> None: ...
    async def drain(self) -> None: ...
    def close(self) -> None: ...
    async def wait_closed(self) -> None: ...
    def get_extra_info(self, name: str, /) -> None: ...


async def all_frames(data: bytes, sizes: list[int], limit: int) -> list[tuple[int, bytes]]:
    stream = Stream.of(Pieces(data, sizes))
    seen = []
    try:
        while True:
            seen.append(await stream.read_frame(limit, 10))
    except (ConnectionClosed, ProtocolError):
        return seen


@given(sent=frames, sizes=st.lists(st.integers(1, 40)), cut=st.integers(0, 20))
def test_frames_in_any_pieces_are_read_and_a_cut_off_end_loses_only_the_last(
    sent: list[tuple[int, bytes]], sizes: list[int], cut: int
) -> None:
    data = b"".join(frame(*one) for one in sent)
    whole = len(data) - cut
    seen = asyncio.run(all_frames(data[: max(0, whole)], sizes, 1000))
    assert seen == sent[: len(seen)]
    left = b"".join(frame(*one) for one in sent[: len(seen) + 1])
    assert len(left) > whole or len(seen) == len(sent)


@given(data=st.binary(max_size=200), sizes=st.lists(st.integers(1, 40)))
def test_random_bytes_give_frames_or_an_end(data: bytes, sizes: list[int]) -> None:
    for frame_type, payload in asyncio.run(all_frames(data, sizes, 100)):
        assert frame(frame_type, payload) in data


@given(frame_type=frame_types, payload=st.binary(max_size=100))
def test_any_frame_is_a_message_or_skipped(frame_type: int, payload: bytes) -> None:
    parse_message(frame_type, payload)


@given(raw=keys)
def test_public_keys_round_trip(raw: bytes) -> None:
    key = NodePublic(raw)
    assert NodePublic.from_text(key.text) == NodePublic.from_hex(key.hex) == key


@given(text=st.text(st.sampled_from(string.hexdigits + "nodekey: \n\0ß"), max_size=80))
def test_any_text_is_a_key_or_a_value_error(text: str) -> None:
    for parse in (
        NodePublic.from_text,
        NodePublic.from_hex,
        NodePrivate.from_text,
        MeshKey.from_text,
    ):
        try:
            parse(text)
        except ValueError:
            pass


@given(info=client_infos)
def test_client_info_round_trips_through_its_box(info: ClientInfo) -> None:
    sent = login.client_info_frame(ALICE.public_key, BOX, info)
    opened = login.open_client_info(BOB, sent[5:])
    assert opened.public == ALICE.public_key
    assert opened.info == info


@given(
    rate=st.integers(0, 2**63 - 1), burst=st.integers(0, 2**63 - 1), version=st.integers(1, 2**31)
)
def test_server_info_round_trips(rate: int, burst: int, version: int) -> None:
    info = ServerInfo(version, rate, burst)
    assert login.parse_server_info(login.server_info_json(info)) == info


@given(text=st.binary(max_size=100))
def test_random_client_info_is_accepted_or_refused(text: bytes) -> None:
    try:
        login.parse_client_info(text)
    except LoginError as error:
        assert error.reason in login.REASONS


@given(members=st.lists(st.tuples(member_names, json_values), max_size=5))
def test_client_info_is_refused_only_for_wrong_types_and_names(
    members: list[tuple[str, object]],
) -> None:
    text = (
        "{" + ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in members) + "}"
    )
    try:
        info = login.parse_client_info(text.encode())
    except LoginError as error:
        assert error.reason in ("json", "mesh_key", "app_name")
        return
    assert type(info.version) is int
    assert type(info.can_ack_pings) is type(info.is_prober) is bool
    assert info.app_name.encode() is not None


@given(payload=st.binary(max_size=200))
def test_random_logins_are_refused(payload: bytes) -> None:
    try:
        login.open_client_info(BOB, payload)
    except LoginError as error:
        assert error.reason in login.REASONS
    else:
        raise AssertionError("a random box opened")


@given(
    document=st.dictionaries(
        st.sampled_from(["Regions", "HomeParams", "omitDefaultRegions"]), json_values
    )
)
def test_any_json_is_a_derp_map_or_an_error_with_the_place(document: dict[str, object]) -> None:
    try:
        DerpMap.from_json(json.dumps(document))
    except DerpMapError:
        pass
