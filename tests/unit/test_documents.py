"""The documents hold together: every link, citation and named file exists."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "bench/README.md"])
SOURCES = sorted(
    path
    for folder in ("fastderp", "tests", "bench", "docs")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".pyx", ".pxd", ".pxi", ".pyi", ".md", ".go"}
)
# the cited names, and the documents with their sections
CITED = {"PROTOCOL": "docs/protocol.md", "ARCHITECTURE": "docs/architecture.md"}
CITATION = re.compile(r"\b(PROTOCOL|ARCHITECTURE) ((?:,? ?(?:to|and|–)? ?§\d+[a-z]?(?:\.\d+)?)+)")
# made from the code by the build of the site (docs/conf.py)
GENERATED = {ROOT / "docs" / f"{name}.md" for name in ("api", "bench", "flags", "metrics")}
LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s]+)\)")


@cache
def sections(document: str) -> frozenset[str]:
    """Return the numbers of the headings of a document."""
    text = (ROOT / document).read_text()
    return frozenset(re.findall(r"^#{2,4} (\d+[a-z]?(?:\.\d+)?)\.? ", text, re.M))


def slug(heading: str) -> str:
    """Return the anchor that Markdown renderers give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_section_that_is_cited_exists(path: Path) -> None:
    missing = {
        f"{name} §{number}"
        for name, numbers in CITATION.findall(path.read_text())
        for number in re.findall(r"§(\d+[a-z]?(?:\.\d+)?)", numbers)
        if number not in sections(CITED[name])
    }
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_has_a_target(document: Path) -> None:
    for target in LINK.findall(document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = document if not name else (document.parent / name)
        assert path.exists() or path in GENERATED, target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            assert anchor in {slug(heading) for heading in headings}, target


def test_no_source_cites_a_document_that_is_not_in_the_repository() -> None:
    foreign = re.compile(r"\b(?:DESIGN|HOUSE|OPERATORS|STYLE) (?:§|\d)")
    citing = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path != Path(__file__) and foreign.search(path.read_text())
    }
    assert not citing


def test_every_fault_names_existing_tests_or_none() -> None:
    table = (ROOT / "docs/reliability.md").read_text()
    shown = re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", table, re.M)
    assert [int(number) for number, _ in shown] == list(range(1, len(shown) + 1))
    for number, cell in shown:
        files = re.findall(r"`([^`]+\.py)`", cell)
        assert files or cell == "–", f"F{number}"
        assert all((ROOT / "tests" / name).is_file() for name in files), f"F{number}"


@pytest.mark.parametrize(
    ("section", "folder"),
    [("2. The path of a login", "server/accept"), ("3. The path of a packet", "dataplane")],
)
def test_the_architecture_lists_the_modules_of_each_path(section: str, folder: str) -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    text = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]+) \|", text, re.M)
    listed = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    listed += re.findall(r"^[ └├]*(\w+) {3,}", text, re.M)
    paths = (ROOT / "fastderp" / folder).glob("*.p[yx]*")
    modules = {path.stem for path in paths if path.suffix in {".py", ".pyx", ".pxd", ".pxi"}}
    assert sorted(listed) == sorted(modules - {"__init__"})
