"""How the comparison builds and starts relays."""

from pathlib import Path

import pytest

from bench import relays
from bench.relays import RelayError, c_compiler


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("ccache gcc", ["ccache", "gcc"]),
        ("'/opt/my tools/gcc' -m64", ["/opt/my tools/gcc", "-m64"]),
        ("", ["cc"]),
    ],
)
def test_the_compilers_command_may_have_arguments(
    monkeypatch: pytest.MonkeyPatch, variable: str, words: list[str]
) -> None:
    monkeypatch.setenv("CC", variable)
    assert c_compiler() == words


def test_the_floor_is_built_with_a_compiler_that_has_arguments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setenv("CC", "ccache gcc")
    monkeypatch.setattr(relays, "_output", commands.append)
    relays.build_floor(tmp_path)
    [command] = commands
    assert command[:3] == ["ccache", "gcc", "-O2"]


@pytest.mark.parametrize("text", ["'gcc", "x='a {port}"])
def test_a_command_without_its_closing_quote_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("CC", text)
    with pytest.raises(RelayError, match="is not a command line: no closing quotation"):
        if "=" in text:
            relays.other(text)
        else:
            c_compiler()
