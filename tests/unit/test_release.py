"""What a release says of itself: one version, a change log in the form of Keep a Changelog."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import fastderp

ROOT = Path(fastderp.__file__).parents[1]
CHANGES = (ROOT / "CHANGELOG.md").read_text()
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_chart_has_the_version_of_the_package() -> None:
    chart = (ROOT / "deploy" / "chart" / "Chart.yaml").read_text()
    versions = re.findall(r'^(?:version|appVersion): "?([^"\n]+)"?$', chart, re.M)
    assert versions == [fastderp.__version__] * 2


def test_the_change_log_has_the_version_of_the_package() -> None:
    releases = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", CHANGES, re.M)
    assert releases[0] == ("Unreleased", "")
    assert fastderp.__version__ in [version for version, _ in releases]
    assert all(date for _, date in releases[1:])
    links = re.findall(r"^\[(.+?)\]: https://", CHANGES, re.M)
    assert links == [version for version, _ in releases]


def test_the_change_log_sorts_changes_by_kind() -> None:
    kinds = re.findall(r"^### (.*)$", CHANGES, re.M)
    assert kinds and set(kinds) <= KINDS


def test_links_of_the_readme_work_on_the_package_index() -> None:
    setup = runpy.run_path(str(ROOT / "setup.py"))
    targets = re.findall(r"\]\(([^)]+)\)", setup["description"]())
    assert len(targets) > 10
    assert all(target.startswith(("https://", "#")) for target in targets)
