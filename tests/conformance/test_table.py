"""The table of promises is complete, and the tests and names in it exist."""

from __future__ import annotations

import ast
from functools import cache
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import pytest

from tests.conformance.api_rows import API
from tests.conformance.protocol_rows import PROTOCOL

TESTS = Path(__file__).parents[1]
N_LINES = 60
ROWS = {**PROTOCOL, **API}


@cache
def names_in(module: str) -> frozenset[str]:
    """Return the names of a module's test functions, without `test_`."""
    folder, _, name = module.rpartition("/")
    tree = ast.parse((TESTS / folder / f"test_{name}.py").read_text())
    functions = (
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return frozenset(name.removeprefix("test_") for name in functions if name.startswith("test_"))


def test_every_numbered_line_has_a_row() -> None:
    assert [name for name in PROTOCOL if name.isdigit()] == [str(n) for n in range(1, N_LINES + 1)]
    assert not PROTOCOL.keys() & API.keys()


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_shown_by_tests_that_exist(name: str) -> None:
    row = ROWS[name]
    absent = [
        test
        for test in row.tests
        if test.partition("::")[2] not in names_in(test.partition("::")[0])
    ]
    assert not absent, f"{name}, {row.promise}: no such test"


@pytest.mark.parametrize("name", [name for name, row in API.items() if row.names])
def test_the_names_of_a_row_exist(name: str) -> None:
    for path in ROWS[name].names:
        module, _, attribute = path.partition(":")
        assert attrgetter(attribute)(import_module(module)) is not None


def test_no_row_is_without_a_test() -> None:
    assert not [name for name, row in ROWS.items() if not row.tests and not row.not_applicable]


def test_only_lines_about_go_itself_are_not_applicable() -> None:
    excused = {name: row for name, row in ROWS.items() if row.not_applicable}
    assert excused.keys() == {"2", "38"}
    assert not any(row.tests for row in excused.values())
