"""A folder with uncompiled sources: its messages on import, and its files after a build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastderp

ROOT = Path(fastderp.__file__).parents[1]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A checkout in which nothing is compiled."""
    folder = tmp_path / "my checkout"
    leave_out = shutil.ignore_patterns("*.so", "__pycache__", "build")
    for name in ("fastderp", "bench"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave_out)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def run(sources: Path, *arguments: str, installed: Path | None = ROOT) -> tuple[int, str]:
    """Run Python in the folder, with or without another fastderp installed."""
    path = ":".join(path for path in sys.path if path and not Path(path, "fastderp").is_dir())
    env = os.environ | {"PYTHONPATH": f"{sources}:{path}" + (f":{installed}" if installed else "")}
    command = [sys.executable, "-S", *arguments]
    done = subprocess.run(command, cwd=sources, env=env, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("-m", "fastderp"), ("-m", "pydoc", "fastderp.HTTPClient"),
        ("-c", "from fastderp import Server"), ("-m", "bench.compare", "--help"),
    ],
    ids=["python -m fastderp", "pydoc", "import", "python -m bench.compare"],
)  # fmt: skip
def test_sources_that_hide_an_installed_fastderp_name_the_cause_and_the_command(
    sources: Path, arguments: tuple[str, ...]
) -> None:
    _, said = run(sources, *arguments)
    assert (
        f"fastderp in {sources} is not compiled, and it hides the one installed in {ROOT}" in said
    )
    assert f"work in another folder, or compile it once: pip install -e '{sources}'" in said


@pytest.mark.parametrize("name", ["relay", "bench"])
def test_sources_alone_name_the_command_that_installs(sources: Path, name: str) -> None:
    script = f"import sys; sys.argv[1:] = ['-dev']; from fastderp.cli.entry import {name}; sys.exit({name}())"
    code, said = run(sources, "-c", script, installed=None)
    assert code == 69
    assert said == (
        f"fastderp-{name}: fastderp in {sources} is not compiled: "
        f"compile it once: pip install -e '{sources}'\n"
    )


def test_each_public_name_of_sources_alone_names_the_command(sources: Path) -> None:
    script = """
import fastderp
for name in fastderp.__all__:
    try:
        getattr(fastderp, name)
    except ImportError as error:
        assert "is not compiled: compile it once: pip install -e" in str(error), (name, error)
"""
    code, said = run(sources, "-c", script, installed=None)
    assert code == 0, said


@pytest.mark.parametrize("command", ["egg_info", "dist_info"])
def test_reading_the_packages_name_leaves_no_files_in_the_folder(
    sources: Path, command: str
) -> None:
    before = set(sources.rglob("*"))
    output = ("--output-dir", str(sources.parent)) if command == "dist_info" else ()
    code, said = run(sources, "setup.py", "-q", command, *output)
    assert code == 0, said
    assert {path for path in sources.rglob("*") if "__pycache__" not in path.parts} <= before


def test_uncompiled_sources_have_a_version(sources: Path) -> None:
    code, said = run(sources, "-m", "fastderp.cli.relay", "-version", installed=None)
    version, crypto = said.splitlines()
    assert (code, version) == (0, f"fastderp-relay {fastderp.__version__}")
    assert crypto.startswith(f"crypto missing: fastderp in {sources} is not compiled")
