"""The page of a release: written from its kept results."""

import copy
import json
from pathlib import Path

import pytest

from bench import release
from tests.unit.bench.test_table import document, kept, with_capacity


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(release, "RELEASES", tmp_path / "results")
    monkeypatch.setattr(release, "PAGES", tmp_path / "pages")
    return tmp_path


def test_a_release_has_its_results_and_a_page_of_machine_commit_and_tables(folders: Path) -> None:
    value = with_capacity()
    assert release.main([kept(folders, value)]) == 0
    assert json.loads((folders / "results/2.json").read_text()) == value
    text = (folders / "pages/2.md").read_text()
    assert text.startswith("# Benchmarks of fastderp 2\n")
    for line in (
        "| machine | A CPU, 4 cores, Linux 6.1 |",
        "| commit | abc |",
        "| relays | derper 1, fastderp 2 with OpenSSL 3 |",
        "| command | `python -m bench.goals` |",
        "There is no earlier release with results to compare with.",
        "All goals are reached.",
        "| 1 | pairs-10 | derper | 2 | 5.00 | 1,000 | 10 | 50 | 0.00% |",
    ):
        assert line in text.splitlines()
    assert "| plain, 10 pairs | derper 1 |" in text


def test_results_that_are_not_there_name_the_command_that_makes_them(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release.main([str(folders / "none.json")]) == 1
    assert "run python -m bench.goals first" in capsys.readouterr().err


def test_a_goal_that_is_not_reached_is_listed() -> None:
    value = document()
    value["rows"]["pairs-10"]["findings"][0]["goal"] = 20.0
    assert "| 1 | derper ÷ fastderp | ≥ 20.00 | 10.00 (8.00–12.00) |" in release.page(value, None)


def test_numbers_whose_rounds_do_not_overlap_with_the_earlier_ones_are_changes() -> None:
    before = document()
    finding = before["rows"]["pairs-10"]["findings"][0]
    cost = finding | {"what": "cost", "sense": "<=", "values": [2.0, 3.0]}
    once = finding | {"what": "once", "sense": "<=", "values": [1.00]}
    before["rows"]["pairs-10"]["findings"] += [cost, once]
    now = copy.deepcopy(before)
    now["environment"]["fastderp"] = "3"
    for number, values in enumerate(([6.0, 7.0], [1.0, 1.5], [1.09])):
        now["rows"]["pairs-10"]["findings"][number]["values"] = values
    text = release.page(now, before)
    assert "**1 number got worse**:\n\n- row 1, derper ÷ fastderp: 6.50, before 10.00\n" in text
    assert "**1 number got better**:\n\n- row 1, cost: 1.25, before 2.50\n" in text
    assert "another machine" not in text


def test_another_machine_is_said() -> None:
    now = document()
    now["environment"]["cpu"] = "Another CPU"
    assert "measured on another machine (A CPU, Linux 6.1)" in release.page(now, document())


def test_releases_are_compared_in_the_order_of_their_numbers(folders: Path) -> None:
    for version in ("0.9.0", "0.10.0"):
        value = document()
        value["environment"]["fastderp"] = version
        assert release.main([kept(folders, value)]) == 0
    assert "Beside 0.9.0," in (folders / "pages/0.10.0.md").read_text()
    assert "no earlier release" in (folders / "pages/0.9.0.md").read_text()


def test_each_kept_release_has_its_page_in_the_documents() -> None:
    found = dict(release.pages())
    assert found
    for path, text in found.items():
        assert path.read_text() == text
    assert sorted(found) == sorted(release.PAGES.glob("*.md"))
