"""The file that `fastderp-relay gen config` prints is accepted, with its settings or without."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from fastderp.cli.config import relay_settings
from fastderp.cli.flag_table import SECTIONS, flag_table
from fastderp.cli.gen.sample import COLUMNS, sample
from fastderp.cli.sources import Settings, read_settings

ENVIRONMENTS = [{}, {"HOME": "/root"}, {"HOME": '/home/"é\\ \t😀'}]


def with_settings(text: str) -> str:
    """Remove the # before each key."""
    return re.sub(r"^#(?! )", "", text, flags=re.M)


def read(folder: Path, text: str, environment: dict[str, str]) -> Settings:
    path = folder / "relay.toml"
    path.write_text(text, encoding="utf-8")
    return read_settings(["-config", str(path)], environment)


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=repr)
def test_the_file_changes_no_setting(tmp_path: Path, environment: dict[str, str]) -> None:
    found = read(tmp_path, sample(flag_table(environment)), environment)
    assert found.given == {"config"}


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=repr)
def test_every_key_can_be_set_to_its_default(tmp_path: Path, environment: dict[str, str]) -> None:
    text = with_settings(sample(flag_table(environment)))
    found = read(tmp_path, text, environment)
    settable = {flag.name for flag in flag_table(environment) if flag.section}
    assert found.given == settable | {"config"}
    default = read_settings([], environment)
    assert {name: found.values[name] for name in settable} == {
        name: default.values[name] for name in settable
    }
    if "HOME" in environment:
        settings = relay_settings(found.values, found.given, environment=environment, is_root=True)
        assert settings.listen.port == 443


def test_every_key_has_its_help_type_and_default_above_it() -> None:
    text = sample(flag_table({}))
    blocks = text.split("\n\n")
    for flag in flag_table({}):
        if flag.section:
            [block] = [block for block in blocks if f"\n#{flag.name} = " in block]
            said = " ".join(line.removeprefix("# ") for line in block.splitlines())
            assert flag.help[1:] in said
            assert "Type: " in said and " Default: " in said
            assert flag.bounds is None or f", {flag.bounds}. Default: " in said
            assert all(f'"{choice}"' in said for choice in flag.choices)


def test_the_sections_are_those_of_the_configuration() -> None:
    text = sample(flag_table({}))
    assert re.findall(r"^\[(\w+)\]$", text, re.M) == list(SECTIONS)
    table = tomllib.loads(with_settings(text))
    for flag in flag_table({}):
        assert not flag.section or flag.name in table[flag.section]


def test_the_text_fits_a_terminal() -> None:
    text = [line for line in sample(flag_table({})).splitlines() if line.startswith("# ")]
    assert [line for line in text if len(line) > COLUMNS] == []
