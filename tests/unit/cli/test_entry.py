"""The entry points of the commands: in an interpreter without the GIL, and without a dependency."""

import subprocess
import sys

import pytest

# What a free-threaded interpreter does when it loads a module that does not declare itself safe without the GIL.
WITHOUT_GIL = """
import sys
sys._is_gil_enabled = lambda: False

class TurnsOnGil:
    def find_spec(self, name, path, target=None):
        if name in ("uvloop", "fastderp.tls.openssl"):
            import warnings
            warnings.warn(
                f"The global interpreter lock (GIL) has been enabled to load module {name!r}, which has not "
                "declared that it can run safely without the GIL.", RuntimeWarning
            )

sys.meta_path.insert(0, TurnsOnGil())
"""
COMMANDS = {
    "fastderp-relay": "from fastderp.cli.entry import relay; sys.argv[1:] = ['-version']; relay()",
    "fastderp-bench": "from fastderp.cli.entry import bench; sys.argv[1:] = ['--help']; bench()",
    "python -m fastderp": "from fastderp.__main__ import main; main()",
}


def run(program: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-c", WITHOUT_GIL + program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_does_not_log_that_it_turns_the_gil_on(command: str) -> None:
    assert run(f"{COMMANDS[command]}; import uvloop, fastderp.tls.openssl").stderr == ""


def test_a_program_is_warned_that_the_library_turns_the_gil_on() -> None:
    shown = run("import fastderp.tls.openssl")
    assert "(GIL) has been enabled to load module 'fastderp.tls.openssl'" in shown.stderr


def test_the_users_own_filters_have_precedence() -> None:
    command = COMMANDS["python -m fastderp"]
    shown = run(command, "-W", "always::RuntimeWarning")
    assert "(GIL) has been enabled to load module 'uvloop'" in shown.stderr


@pytest.mark.parametrize(
    ("name", "arguments"), [("relay", ["-dev"]), ("bench", ["http://127.0.0.1:1"])]
)
def test_a_missing_dependency_is_one_line_with_the_command_that_repairs_it(
    name: str, arguments: list[str]
) -> None:
    program = f"""
import sys, types
nacl = sys.modules["nacl"] = types.ModuleType("nacl")
nacl.__path__ = []
sys.argv[1:] = {arguments}
from fastderp.cli.entry import {name}
sys.exit({name}())
"""
    shown = run(program)
    assert (shown.returncode, shown.stdout) == (69, "")
    [line] = shown.stderr.splitlines()
    assert line.startswith(f"fastderp-{name}: ") and "nacl._sodium" in line
    assert line.endswith(": repair the installation: pip install --force-reinstall fastderp")
