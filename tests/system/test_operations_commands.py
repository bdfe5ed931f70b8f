"""The operators' guide is true: its commands run, its configuration and its flags are known."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fastderp.cli import probe, top
from fastderp.cli.flag_table import flag_table
from fastderp.cli.sources import read_settings
from fastderp.wire.keys import load_or_create_server_key
from tests.kit.command import relay
from tests.kit.sandbox import needs_root
from tests.system.test_readme import OPERATIONS, blocks

# of other programs: Docker's, pip's
FOREIGN = {"-m", "-v"}


@needs_root
@pytest.mark.root
def test_the_commands_that_take_over_from_derper_keep_its_key(tmp_path: Path) -> None:
    [commands] = [block for block in blocks("sh", OPERATIONS) if "derper.key" in block]
    key = load_or_create_server_key(tmp_path / "derper.key")
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs" / "derp.example.com.crt").write_text("a certificate")
    script = f"""
        set -e
        mount -t tmpfs tmpfs /var/lib
        cp -r {tmp_path} /var/lib/derper
        sudo() {{ "$@"; }}
        {commands}
        cp -r /var/lib/fastderp {tmp_path}/taken
    """
    subprocess.run(["unshare", "--mount", "/bin/sh", "-c", script], check=True, timeout=60)
    assert (tmp_path / "taken" / "certs" / "derp.example.com.crt").exists()
    taken = tmp_path / "taken" / "relay.key"
    with relay("-a", "127.0.0.1:0", "-stun=false", "-http-port=-1", "-c", str(taken)) as running:
        assert key.public_key.raw.hex() in running.said


def test_the_configuration_is_accepted(tmp_path: Path) -> None:
    [text] = blocks("toml", OPERATIONS)
    path = tmp_path / "relay.toml"
    path.write_text(text)
    read = read_settings(["-config", str(path)], {})
    assert read.values["hostname"] == "derp.example.com"
    assert read.values["certmode"] == "manual"


def test_every_flag_of_the_guide_exists() -> None:
    known = {f"-{flag.name}" for flag in flag_table({})}
    for subcommand in (probe, top):
        known.update(re.findall(r"^ +(-[a-z][a-z0-9-]*)", subcommand.help_text(), re.M))
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", OPERATIONS, flags=re.M | re.S))
    named = {
        match
        for span in spans
        if not span.startswith(("pip", "apt", "openssl", "tailscale", "systemctl", "ss ", "nstat "))
        for match in re.findall(r"(?:^| )(-[a-z][a-z0-9-]*)", span)
    }
    assert len(named) > 30
    assert named - FOREIGN <= known


@pytest.mark.parametrize("name", [flag.name for flag in flag_table({}) if flag.group])
def test_the_guide_names_every_flag(name: str) -> None:
    assert re.search(rf"(?<![\w-])-{name}(?![\w-])", OPERATIONS)


def test_the_programs_of_the_commands_are_known() -> None:
    programs = {"sudo", "python3", "ln", "install", "cp", "fastderp-relay", "systemctl", "helm"}
    for block in blocks("sh", OPERATIONS):
        for line in block.splitlines():
            first = line.split()[0]
            assert first in programs or shutil.which(first), line


def test_the_guide_explains_every_flag_and_step_of_the_probe() -> None:
    section = OPERATIONS.partition("## Probe a relay\n")[2].partition("\n## ")[0]
    flags = re.findall(r"^ +(-[a-z0-9][a-z0-9-]*)", probe.help_text(), re.M)
    assert len(flags) > 8
    assert [flag for flag in flags if flag != "-h" and f"`{flag}" not in section] == []
    shown = {line.split()[1] for line in blocks("console", section)[0].splitlines()[:-1]}
    assert {name for name in shown if f"`{name}`" not in section} == set()


def test_the_guide_explains_every_flag_of_the_live_view() -> None:
    section = OPERATIONS.partition("## A live view\n")[2].partition("\n## ")[0]
    flags = re.findall(r"^ +(-[a-z0-9][a-z0-9-]*)", top.help_text(), re.M)
    assert len(flags) > 6
    assert [flag for flag in flags if flag != "-h" and f"`{flag}" not in section] == []
