"""Keys, boxes and the key file (PROTOCOL sections 1 and 12)."""

import json
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from fastderp.errors import BoxError, KeyFileError
from fastderp.wire.keys import (
    Box,
    MeshKey,
    NodePrivate,
    NodePublic,
    load_mesh_keys,
    load_or_create_server_key,
)
from tests.wire import vectors

SERVER = NodePrivate(vectors.SERVER_PRIVATE)
CLIENT = NodePrivate(vectors.CLIENT_PRIVATE)

# Points of small order and their non-canonical forms: a client that sends one as its key knows the
# secret that it shares with any other key.
LOW_ORDER = [
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


def test_public_keys_follow_from_the_private_ones() -> None:
    assert SERVER.public_key == NodePublic(vectors.SERVER_PUBLIC)
    assert CLIENT.public_key == NodePublic(vectors.CLIENT_PUBLIC)


@pytest.mark.parametrize("kind", [NodePublic, NodePrivate, MeshKey])
def test_a_key_is_made_from_each_type_of_bytes_and_its_annotation_says_so(kind: Any) -> None:
    raw = bytes(range(32))
    assert kind(bytearray(raw)) == kind(memoryview(raw)) == kind(raw)
    assert get_type_hints(kind.__init__)["raw"] == bytes | bytearray | memoryview


@pytest.mark.parametrize("kind", [NodePublic, NodePrivate, MeshKey])
def test_a_key_made_from_a_text_or_another_type_says_what_is_wanted(kind: Any) -> None:
    secret = "11" * 16  # as long as a key has bytes
    with pytest.raises(TypeError, match=r"made from bytes, not from str; from_text") as caught:
        kind(secret)
    assert secret not in str(caught.value)
    with pytest.raises(TypeError, match="made from bytes, not from int$"):
        kind(32)
    for wrong in (b"nodekey:", None):
        with pytest.raises(TypeError, match="the text of a key is a str, not"):
            kind.from_text(wrong)


def test_new_private_keys_are_clamped_and_differ() -> None:
    one, other = NodePrivate.generate(), NodePrivate.generate()
    assert one != other
    for raw in (one.raw, other.raw):
        assert raw[0] & 7 == 0
        assert raw[31] & 0xC0 == 0x40


def test_private_key_text_round_trips_in_either_case() -> None:
    text = SERVER.text
    assert text == "privkey:" + vectors.SERVER_PRIVATE.hex()
    assert NodePrivate.from_text(text) == SERVER
    assert NodePrivate.from_text("privkey:" + vectors.SERVER_PRIVATE.hex().upper()) == SERVER


@pytest.mark.parametrize(
    "text", ["", "nodekey:" + "ab" * 32, "privkey:" + "ab" * 31, "privkey:" + "abxy" * 16]
)
def test_malformed_private_key_text_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="key") as caught:
        NodePrivate.from_text(text)
    assert "ab" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_zero_and_short_private_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="all zeros"):
        NodePrivate(bytes(32))
    with pytest.raises(ValueError, match="32 bytes"):
        NodePrivate(bytes(31))


def test_secrets_stay_out_of_reprs_and_hashes() -> None:
    mesh = MeshKey.from_text("ab" * 32)
    shown = f"{SERVER!r} {SERVER} {mesh!r} {mesh} {CLIENT.box(SERVER.public_key)!r}"
    assert vectors.SERVER_PRIVATE.hex()[:8] not in shown
    assert "abab" not in shown
    for secret in (SERVER, mesh):
        with pytest.raises(TypeError, match="unhashable"):
            hash(secret)


def test_public_keys_survive_pickling() -> None:
    assert pickle.loads(pickle.dumps(SERVER.public_key)) == SERVER.public_key


def test_sealed_message_is_nonce_and_box() -> None:
    sealed = CLIENT.box(SERVER.public_key).seal(vectors.CLIENT_INFO_JSON, vectors.NONCE)
    assert sealed == vectors.CLIENT_INFO_FRAME[5 + 32 :]


def test_only_the_two_parties_open_a_box() -> None:
    sealed = CLIENT.seal_to(SERVER.public_key, b"hello")
    assert SERVER.open_from(CLIENT.public_key, sealed) == b"hello"
    assert CLIENT.open_from(SERVER.public_key, sealed) == b"hello"
    with pytest.raises(BoxError):
        NodePrivate.generate().open_from(CLIENT.public_key, sealed)
    with pytest.raises(BoxError):
        SERVER.open_from(NodePrivate.generate().public_key, sealed)


def test_every_changed_or_missing_byte_keeps_a_box_shut() -> None:
    box = CLIENT.box(SERVER.public_key)
    sealed = box.seal(b"hello")
    for at in range(len(sealed)):
        with pytest.raises(BoxError):
            box.open(sealed[:at] + bytes((sealed[at] ^ 1,)) + sealed[at + 1 :])
        with pytest.raises(BoxError):
            box.open(sealed[:at])


def test_sealing_twice_uses_two_nonces() -> None:
    box = CLIENT.box(SERVER.public_key)
    assert box.seal(b"same")[:24] != box.seal(b"same")[:24]


@pytest.mark.parametrize("raw", LOW_ORDER, ids=lambda raw: raw.hex()[:8])
def test_no_box_exists_for_a_low_order_key(raw: bytes) -> None:
    with pytest.raises(BoxError, match="low order"):
        Box(SERVER, NodePublic(raw))


def test_mesh_key_is_read_with_space_around_and_in_either_case() -> None:
    key = MeshKey.from_text(" \t" + "AB" * 32 + "\r\n")
    assert key == MeshKey.from_text("ab" * 32) == MeshKey(b"\xab" * 32)
    assert key.text == "ab" * 32
    assert key and not key.is_zero


@pytest.mark.parametrize(
    "text", ["", "ab" * 8, "ab" * 32 + "a", "ab" * 31 + "zz", "meshkey:" + "ab" * 32]
)
def test_malformed_mesh_key_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="key") as caught:
        MeshKey.from_text(text)
    assert "ab" not in str(caught.value)


def test_zero_mesh_keys_are_equal_and_mean_none() -> None:
    assert MeshKey() == MeshKey.from_text("00" * 32)
    assert not MeshKey()
    assert MeshKey() != MeshKey.from_text("ab" * 32)


def test_first_start_creates_a_key_file_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "derper.key"
    key = load_or_create_server_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == '{\n\t"PrivateKey": "' + key.text + '"\n}'
    assert [entry.name for entry in path.parent.iterdir()] == ["derper.key"]
    assert load_or_create_server_key(path) == key


def test_a_wide_open_umask_does_not_open_the_key_file(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        load_or_create_server_key(tmp_path / "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_existing_key_file_of_the_reference_is_used_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "derper.key"
    text = json.dumps({"Later": [1], "privatekey": SERVER.text})
    path.write_text(text)
    assert load_or_create_server_key(path) == SERVER
    assert path.read_text() == text


SECRET = "privkey:" + "5e" * 32


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (f'{{"PrivateKey": "{SECRET}"'.encode(), "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (f'["{SECRET}"]'.encode(), "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{}", 'no "PrivateKey"'),
        (b'{"PrivateKey": 5}', 'no "PrivateKey"'),
        (b'{"PrivateKey": ""}', "starts with 'privkey:'"),
        (f'{{"PrivateKey": "{SECRET}5e"}}'.encode(), "64 hex digits, not 66"),
        (f'{{"PrivateKey": "{SECRET[:-1]}g"}}'.encode(), "hex digits only"),
        (f'{{"PrivateKey": "privkey:{"0" * 64}"}}'.encode(), "all zeros"),
        (b"\xff\xfe", "not a text file"),
    ],
)
def test_malformed_key_file_is_one_clear_error_and_stays(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "derper.key"
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match=reason) as caught:
        load_or_create_server_key(path)
    assert str(path) in str(caught.value)
    assert "5e5e" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert path.read_bytes() == content


def test_unusable_paths_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyFileError, match="Is a directory"):
        load_or_create_server_key(tmp_path)
    with pytest.raises(KeyFileError, match="Not a directory"):
        load_or_create_server_key(tmp_path / "file" / "key")
    with pytest.raises(KeyFileError, match="cannot create it"):
        load_or_create_server_key("/proc/no/such/key")


def test_a_dangling_link_is_a_clear_error_instead_of_a_new_key_each_start(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError, match=str(tmp_path / "key")):
        load_or_create_server_key(tmp_path / "key")


RACER = """
import sys
from fastderp.wire.keys import load_or_create_server_key
print("ready", flush=True)
sys.stdin.readline()
print(load_or_create_server_key(sys.argv[1]).public_key, flush=True)
"""


def test_processes_that_start_together_get_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "derper.key"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("\n")
        racer.stdin.flush()
    answers = {racer.communicate(timeout=30)[0] for racer in racers}
    assert answers == {f"{load_or_create_server_key(path).public_key}\n"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["derper.key"]


def test_the_loser_of_a_race_takes_the_winners_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "derper.key"
    link = os.link

    def winner_was_faster(source: Path, target: Path) -> None:
        path.write_text(json.dumps({"PrivateKey": SERVER.text}))
        link(source, target)

    monkeypatch.setattr(os, "link", winner_was_faster)
    assert load_or_create_server_key(path) == SERVER
    assert [entry.name for entry in tmp_path.iterdir()] == ["derper.key"]


def test_a_byte_order_mark_in_front_of_a_key_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "derper.key"
    key = load_or_create_server_key(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_or_create_server_key(path) == key
    path.write_bytes(b"\xef\xbb\xbf" + b"ab" * 32 + b"\r\n")
    assert load_mesh_keys(path) == [MeshKey.from_text("ab" * 32)]
