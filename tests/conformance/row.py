"""The shape of a row in the table of promises; `test_table.py` checks every row."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One promise.

    Args:
        promise: in short; the documents have the details.
        tests: `folder/module::function` below tests/, without `test_` in both names.
        names: our public names that the row is about, as `module:attribute.path`.
        not_applicable: why the row has no test; only for lines about Go itself.
    """

    promise: str
    tests: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    not_applicable: str = ""


def row(promise: str, *tests: str, names: tuple[str, ...] = (), not_applicable: str = "") -> Row:
    """Build a row."""
    return Row(promise, tests, names, not_applicable)
