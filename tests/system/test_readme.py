"""The documents and `python -m fastderp` are true: programs, flags, exit codes."""

import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import fastderp.errors
from fastderp.cli.command import SUBCOMMANDS
from fastderp.cli.config import relay_settings
from fastderp.cli.sources import read_settings
from fastderp.client import DerpMap
from fastderp.server.admission.limit_file import load_limits
from tests.kit.command import relay

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()


def blocks(language: str, document: str = README) -> list[str]:
    """Return the blocks of a language; a command that goes on is one line."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", document, re.M | re.S)
    return [re.sub(r" *\\\n *", " ", block) for block in found]


def output_of(program: str, tmp_path: Path) -> str:
    """Run a program beside a relay and return its output."""
    with relay("-a", "127.0.0.1:0", "-stun=false", "-c", str(tmp_path / "k")) as running:
        program = program.replace("127.0.0.1:3340", f"127.0.0.1:{running.port}")
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=30
        )
    assert done.stderr == ""
    return done.stdout


def test_the_program_prints_the_sent_packet(tmp_path: Path) -> None:
    [program] = blocks("python")
    assert re.fullmatch(r"\[\S{5}\] b'hello'\n", output_of(program, tmp_path))


def test_the_first_program_prints_the_sent_packet(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "fastderp"], capture_output=True, text=True, timeout=30
    ).stdout
    program = textwrap.dedent(shown.partition("from Python:\n")[2].partition("\nEvery flag")[0])
    assert re.fullmatch(r"ReceivedPacket\(.*b'hello'.*\)\n", output_of(program, tmp_path))


def test_the_relay_accepts_the_documented_commands() -> None:
    commands = [
        line
        for document in (README, OPERATIONS)
        for block in blocks("sh", document)
        for line in block.splitlines()
    ]
    relays = [
        command.partition("fastderp-relay ")[2]
        for command in commands
        if "fastderp-relay " in command and command.split()[1] not in SUBCOMMANDS
    ]
    assert len(relays) == 4
    for arguments in relays:
        read = read_settings(shlex.split(arguments), {})
        relay_settings(read.values, read.given, environment={}, is_root=True)


def test_the_two_commands_come_first() -> None:
    assert blocks("sh")[:2] == [
        "pip install . && fastderp-relay --dev\n",
        "pip install -e '.[test]' && pytest\n",
    ]


def test_the_derp_map_is_valid() -> None:
    [text] = [text for text in blocks("json", OPERATIONS) if "derpMap" in text]
    derp_map = DerpMap.from_json(text)
    assert derp_map.regions[900].nodes[0].host_name == "203.0.113.7"
    [text] = blocks("json")
    derp_map = DerpMap.from_json(text)
    assert derp_map.regions[900].nodes[0].host_name == "derp.example.com"


def test_the_file_of_limits_is_valid(tmp_path: Path) -> None:
    [text] = [text for text in blocks("json", OPERATIONS) if "PerClientRate" in text]
    (tmp_path / "limits.json").write_text(text.replace("…", "5" * 64))
    assert load_limits(tmp_path / "limits.json").classes


def test_the_exit_codes_are_those_of_the_errors() -> None:
    known = {value for name, value in vars(fastderp.errors).items() if name.startswith("EX_")}
    shown = {int(code) for code in re.findall(r"^\| (\d+) \|", OPERATIONS, re.M)}
    assert shown and shown <= known
