"""The printed units are the shipped ones, with the path of the installed command."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from fastderp.cli.gen import unit


def exec_start(text: str) -> str:
    [line] = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    return line.removeprefix("ExecStart=")


def shipped(kind: str) -> str:
    return (unit.FOLDER / f"fastderp-relay.{kind}").read_text()


def test_only_the_path_of_the_command_differs_from_the_shipped_unit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/fastderp/bin/fastderp-relay", "gen"])
    lines, own = unit.unit("service").splitlines(), shipped("service").splitlines()
    assert len(lines) == len(own)
    [(line, before)] = [pair for pair in zip(lines, own, strict=True) if pair[0] != pair[1]]
    assert line == before.replace("/usr/bin/env fastderp", "/opt/fastderp/bin/fastderp")
    assert line.startswith("ExecStart=/opt/fastderp/bin/fastderp-relay -c ${STATE_DIRECTORY}/")


def test_the_unit_of_the_sockets_is_the_shipped_one() -> None:
    assert unit.unit("socket") == shipped("socket")


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/opt/fastderp/bin/fastderp-relay", "/opt/fastderp/bin/fastderp-relay"),
        ("/opt/my relay/fastderp-relay", '"/opt/my relay/fastderp-relay"'),
        ("/opt/50%/fastderp-relay", "/opt/50%%/fastderp-relay"),
        ('/opt/"a\\b/fastderp-relay', '"/opt/\\"a\\\\b/fastderp-relay"'),
    ],
)
def test_paths_are_quoted_as_systemd_reads_them(path: str, word: str) -> None:
    assert unit.quoted(path) == word


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bin/fastderp-relay", "gen"])
    assert unit.command_path() == f"{tmp_path}/bin/fastderp-relay"


def test_a_name_is_found_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fastderp-relay", "gen"])
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/local/bin/{name}")
    assert unit.command_path() == "/usr/local/bin/fastderp-relay"


def test_the_command_of_a_module_run_by_python_is_the_one_beside_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/fastderp/cli/relay.py", "gen"])
    monkeypatch.setattr(sys, "executable", "/opt/fastderp/bin/python")
    assert unit.command_path() == "/opt/fastderp/bin/fastderp-relay"


@pytest.mark.parametrize("place", ["/home/ann/venv", "/root/venv", "/tmp/venv"])
def test_a_command_that_the_service_cannot_see_is_reported(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{place}/bin/fastderp-relay", "gen"])
    assert exec_start(unit.unit("service")).startswith(place)
    assert f"cannot see {place}/bin/fastderp-relay: " in capsys.readouterr().err


def test_an_interpreter_that_the_service_cannot_see_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/fastderp/bin/fastderp-relay", "gen"])
    monkeypatch.setattr(sys, "base_prefix", "/root/.local/share/uv/python/cpython-3.13")
    monkeypatch.setattr(sys, "prefix", "/opt/fastderp")
    unit.unit("service")
    assert "cannot see /root/.local/share/uv" in capsys.readouterr().err


@pytest.mark.skipif(
    str(unit.FOLDER).startswith(unit.HIDDEN), reason="the service cannot see this checkout"
)
def test_a_command_of_the_system_is_not_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/fastderp-relay", "gen"])
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.setattr(sys, "prefix", "/usr")
    unit.unit("service")
    assert capsys.readouterr().err == ""
