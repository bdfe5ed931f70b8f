"""The metadata of packages names the licenses of what they contain, and their texts."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWN = ("BSD-3-Clause", ["LICENSE"])
WITH_CRYPTO = (
    "BSD-3-Clause AND ISC AND (Apache-2.0 OR ISC) AND Apache-2.0 AND MIT AND BSD-3-Clause"
    " AND (Apache-2.0 OR ISC OR MIT) AND (Apache-2.0 OR ISC OR MIT-0)",
    ["LICENSE", "crypto/LICENSE.aws-lc"],
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that a build reads before it compiles."""
    folder = tmp_path / "checkout"
    leave_out = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("fastderp", "crypto"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave_out)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def setup(checkout: Path, *command: str, **variables: str) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *command],
        cwd=checkout, env=os.environ | variables, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def licenses(metadata: bytes) -> tuple[str, list[str]]:
    declared = email.message_from_bytes(metadata)
    return declared["License-Expression"], declared.get_all("License-File", [])


@pytest.mark.parametrize(
    ("variables", "declared"),
    [
        ({"FASTDERP_CRYPTO_SOURCE": ""}, OWN),
        ({"FASTDERP_CRYPTO_SOURCE": "_crypto.so"}, WITH_CRYPTO),
        ({"FASTDERP_CRYPTO_SOURCE": "_crypto.so", "FASTDERP_EXTENSIONS": "none"}, OWN),
    ],
    ids=["without a library", "with one", "not compiled"],
)
def test_a_wheel_names_the_licenses_of_the_library_that_it_brings(
    checkout: Path, variables: dict[str, str], declared: tuple[str, list[str]]
) -> None:
    setup(checkout, "dist_info", "--output-dir", str(checkout), **variables)
    [info] = checkout.glob("*.dist-info")
    assert licenses((info / "METADATA").read_bytes()) == declared
    for name in declared[1]:
        assert (info / "licenses" / name).read_bytes() == (ROOT / name).read_bytes()


def test_the_source_distribution_keeps_its_own_license(checkout: Path) -> None:
    setup(checkout, "sdist", "--dist-dir", str(checkout), FASTDERP_CRYPTO_SOURCE="_crypto.so")
    [path] = checkout.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        [member] = (
            m for m in archive.getmembers() if m.name.count("/") == 1 and "PKG-INFO" in m.name
        )
        metadata = archive.extractfile(member)
        assert metadata is not None
        assert licenses(metadata.read()) == OWN


def library(folder: Path, name: str, metadata: str, **texts: str) -> None:
    """Install a library as pip does."""
    info = f"{name}-1.0.dist-info"
    files = {"METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{metadata}"}
    files |= {f"licenses/{text}": content for text, content in texts.items()}
    for path, content in files.items():
        (folder / info / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / info / path).write_text(content)
    (folder / info / "RECORD").write_text("".join(f"{info}/{path},,\n" for path in files))


def test_the_debian_package_has_the_texts_of_all_that_it_contains(tmp_path: Path) -> None:
    library(tmp_path, "aiosomething", "License: MIT\n", LICENSE="the other text")
    library(tmp_path, "fastderp", "License-Expression: A AND B\n", LICENSE="one", AWSLC="two")
    command = [sys.executable, str(ROOT / "deploy/deb/copyright"), str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line for line in printed.splitlines() if line.strip("=") and line[0] != "-"]
    assert lines == [
        *("fastderp 1.0: A AND B", "two", "one"),
        *("aiosomething 1.0: MIT", "the other text"),
    ]
    library(tmp_path, "bare", "License: MIT\n")
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "bare 1.0 has no text of its license\n")
