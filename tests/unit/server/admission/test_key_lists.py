"""Files of allowed and denied keys, and their changes. RELIABILITY F30."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastderp.errors import ConfigError
from fastderp.server.admission.key_lists import KeyList, KeyLists
from fastderp.wire.keys import NodePrivate
from tests.kit.shortage import no_descriptors

ANN, BOB, EVE = (NodePrivate.generate().public_key for _ in range(3))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def reload(found: KeyList, *, force: bool = False) -> bool:
    """Read a list and put it in force; return whether its keys have changed."""
    return found.apply(found.read(force=force))


def test_a_list_is_keys_comments_and_empty_lines(file: Path) -> None:
    file.write_text(
        f"# staff\n\n  {ANN.text}  # Ann's laptop\r\n{BOB.text.replace(BOB.hex, BOB.hex.upper())}\n"
    )
    assert KeyList.load(file, required=True).keys == {ANN.raw, BOB.raw}


def test_a_byte_order_mark_in_front_of_a_list_is_skipped(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + ANN.text.encode())
    assert KeyList.load(file, required=True).keys == {ANN.raw}


@pytest.mark.parametrize(
    "line",
    [
        "nodekey:123",
        "privkey:" + "0" * 64,
        ANN.hex,
        ANN.text + " Ann",
        ANN.text + "," + BOB.text,
        "\udcff",
    ],
)
def test_a_malformed_line_is_named_and_not_quoted(file: Path, line: str) -> None:
    file.write_bytes(f"# first\n{line}\n".encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=f"key list {file}, line 2: ") as error:
        KeyList.load(file, required=False)
    assert ANN.hex not in str(error.value)


def test_a_file_that_cannot_be_read_is_refused_at_the_start(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(ConfigError, match=f"key list {path}: cannot read it: "):
            KeyList.load(path, required=False)


def test_an_empty_allow_list_is_an_error_and_an_empty_deny_list_is_not(file: Path) -> None:
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="no keys in it"):
        KeyLists.load(file, None)
    assert KeyLists.load(None, file).judge(ANN).allowed


def test_a_key_on_both_lists_is_denied(tmp_path: Path) -> None:
    (tmp_path / "allow").write_text(f"{ANN.text}\n{EVE.text}\n")
    (tmp_path / "deny").write_text(EVE.text)
    lists = KeyLists.load(tmp_path / "allow", tmp_path / "deny")
    assert [lists.judge(key).allowed for key in (ANN, BOB, EVE)] == [True, False, False]
    assert lists.judge(BOB).detail == "not on the allow list"
    assert lists.judge(EVE).detail == "on the deny list"


def test_without_lists_every_key_passes() -> None:
    assert KeyLists().judge(ANN).allowed
    assert not KeyLists().reload()


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(file: Path) -> None:
    file.write_text(ANN.text)
    found = KeyList.load(file, required=True)
    assert not reload(found)
    file.write_text(f"{ANN.text}\n{BOB.text}")
    assert reload(found)
    assert found.keys == {ANN.raw, BOB.raw}
    assert not reload(found) and not reload(found, force=True)


def test_a_file_put_in_its_place_counts_as_changed_even_with_the_same_size_and_time(
    file: Path,
) -> None:
    file.write_text(ANN.text)
    found = KeyList.load(file, required=True)
    before = file.stat()
    other = file.with_name("new")
    other.write_text(BOB.text)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(file)
    assert reload(found)
    assert found.keys == {BOB.raw}


@pytest.mark.parametrize("broken", ["", "  \n", "nodekey:zz", "# only a comment", None])
@pytest.mark.parametrize("required", [True, False])
def test_an_empty_or_broken_file_keeps_the_last_good_list_and_is_logged_once(
    file: Path, broken: str | None, required: bool, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(ANN.text)
    found = KeyList.load(file, required=required)
    if broken is None:
        file.unlink()
    else:
        file.write_text(broken)
    if broken == "# only a comment" and not required:
        assert reload(found) and found.keys == frozenset()
        return
    assert [reload(found) for _ in range(3)] == [False] * 3
    assert found.keys == {ANN.raw}
    assert found.n_refused == 1
    [line] = [record.getMessage() for record in caplog.records]
    assert str(file) in line and "the previous 1 keys stay in force" in line
    file.write_text(BOB.text)
    assert reload(found) and found.keys == {BOB.raw}


def age(file: Path) -> None:
    """Age a file's time stamp, so that a later change has another one."""
    os.utime(file, ns=(0, 0))


def test_a_list_that_changes_without_free_descriptors_is_read_later(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(ANN.text)
    found = KeyList.load(file, required=True)
    file.write_text(f"{ANN.text}\n{BOB.text}")
    age(file)
    with no_descriptors():
        assert [reload(found) for _ in range(3)] == [False] * 3
    assert found.keys == {ANN.raw}
    assert found.n_refused == 0, "nothing is wrong with the file"
    [line] = [record.getMessage() for record in caplog.records]
    assert "Too many open files" in line
    assert reload(found)
    assert found.keys == {ANN.raw, BOB.raw}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_list_that_becomes_readable_again_is_read(file: Path) -> None:
    file.write_text(ANN.text)
    found = KeyList.load(file, required=True)
    file.write_text(BOB.text)
    file.chmod(0)
    assert not reload(found)
    file.chmod(0o600)
    assert reload(found)


def test_two_changes_within_one_time_stamp_are_both_seen(file: Path) -> None:
    file.write_text(ANN.text)
    found = KeyList.load(file, required=True)
    status = file.stat()
    file.write_text(BOB.text)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert reload(found)
    assert found.keys == {BOB.raw}


def test_a_read_list_takes_effect_when_it_is_applied(file: Path) -> None:
    file.write_text(ANN.text)
    lists = KeyLists.load(file, None)
    file.write_text(BOB.text)
    readings = lists.read()
    assert lists.judge(ANN).allowed and not lists.judge(BOB).allowed
    assert lists.read() == readings, "a reading that was lost is repeated"
    assert lists.apply(readings)
    assert lists.judge(BOB).allowed and not lists.judge(ANN).allowed


def test_a_pipe_is_refused_as_list_at_once(file: Path) -> None:
    os.mkfifo(file)
    with pytest.raises(ConfigError, match="not a regular file"):
        KeyList.load(file, required=True)
