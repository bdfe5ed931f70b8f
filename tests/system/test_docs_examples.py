"""Programs in docs/library.md run and print the documented output; the tests it names exist."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.command import relay

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "library.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", GUIDE, re.M | re.S)
TESTS = re.findall(r"`([\w/]+\.py)::(test_\w+)`", GUIDE)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Run a relay; return its addresses by those where the programs expect it."""
    key = tmp_path_factory.mktemp("relay") / "key"
    with relay("-a", "127.0.0.1:0", "-stun-port", "0", "-c", str(key)) as running:
        yield {
            "127.0.0.1:3340": f"127.0.0.1:{running.port}",
            '"127.0.0.1", 3478': f'"127.0.0.1", {running.stun_port}',
        }


@pytest.mark.parametrize(
    ("program", "printed"), PROGRAMS, ids=[f"program {n}" for n in range(1, len(PROGRAMS) + 1)]
)
def test_a_program_of_the_guide_prints_its_documented_output(
    program: str, printed: str, places: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "test_program.py"
    runs_itself = "def test_" not in program
    for expected, place in places.items():
        program = program.replace(expected, place)
    path.write_text(program)
    command = [
        sys.executable,
        *([] if runs_itself else ["-m", "pytest", "-q", "-o", "asyncio_mode=auto"]),
        str(path),
    ]
    # The options of the pytest that runs this are not the program's.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=inherited | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if runs_itself:
        assert (done.stdout, done.stderr) == (printed, "")
    else:
        assert "1 passed" in done.stdout


@pytest.mark.timeout(600)
def test_the_types_of_the_programs_are_right(tmp_path: Path) -> None:
    paths = [tmp_path / f"program_{number}.py" for number in range(len(PROGRAMS))]
    for path, (program, _) in zip(paths, PROGRAMS, strict=True):
        path.write_text(program)
    mypy = [sys.executable, "-m", "mypy", "--check-untyped-defs", "--cache-dir", os.devnull]
    done = subprocess.run(
        [*mypy, *map(str, paths)],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout


def test_every_program_of_the_guide_has_its_output_documented() -> None:
    assert len(PROGRAMS) >= 8
    assert all(printed for program, printed in PROGRAMS if "asyncio.run(" in program)


@pytest.mark.parametrize(("file", "test"), TESTS, ids=[test for _, test in TESTS])
def test_the_tests_that_the_guide_names_exist(file: str, test: str) -> None:
    source = (ROOT / "tests" / file).read_text()
    assert re.search(rf"^(async )?def {test}\(", source, re.M)
