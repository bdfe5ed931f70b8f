"""The commit that results name says whether the measured code differs from it."""

import subprocess
from pathlib import Path

import pytest

from bench import release
from bench.goals import KEPT, commit

ROOT = Path(__file__).parents[3]
SOURCE = "fastderp/relay.py"
WRITTEN_BY_BENCHES = [
    KEPT,
    KEPT.with_name("cost.svg"),
    release.RELEASES / "0.1.0.json",
    release.PAGES / "0.1.0.md",
    ROOT / "README.md",
    ROOT / "docs" / "benchmarks.md",
]


def git(*arguments: str, at: Path) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    done = subprocess.run(
        ["git", *author, *arguments], cwd=at, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git("init", "-q", at=tmp_path)
    for path in (ROOT / SOURCE, *WRITTEN_BY_BENCHES):
        write(tmp_path / path.relative_to(ROOT), "committed")
    git("add", ".", at=tmp_path)
    git("commit", "-q", "-m", "one", at=tmp_path)
    return tmp_path


def test_a_clean_tree_is_its_commit(checkout: Path) -> None:
    assert commit(checkout / "bench") == git("rev-parse", "HEAD", at=checkout)[:12]


@pytest.mark.parametrize("path", WRITTEN_BY_BENCHES, ids=lambda path: path.name)
def test_what_the_benches_write_changes_no_measured_code(checkout: Path, path: Path) -> None:
    write(checkout / path.relative_to(ROOT), "written by a bench")
    write(checkout / "bench/results/another.json", "new")
    git("add", ".", at=checkout)
    assert commit(checkout / "bench") == git("rev-parse", "HEAD", at=checkout)[:12]


@pytest.mark.parametrize("is_staged", [False, True], ids=["in the tree", "staged"])
def test_a_changed_source_is_said_also_beside_results(checkout: Path, is_staged: bool) -> None:
    write(checkout / SOURCE, "changed")
    write(checkout / "bench/results/goals.json", "written by a bench")
    if is_staged:
        git("add", ".", at=checkout)
    assert commit(checkout / "bench") == git("rev-parse", "HEAD", at=checkout)[:12] + ", changed"


def test_without_a_checkout_no_commit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "bench").mkdir()
    assert commit(tmp_path / "bench") == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(tmp_path / "bench") == ""
