"""A stub declares what its compiled module has: names, members, fields of named tuples."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastderp
from tests.unit.dataplane import shims

ROOT = Path(fastderp.__file__).parent
STUBS = sorted(path for path in ROOT.rglob("*.pyi") if path.with_suffix(".pyx").exists())


def declared(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Yield the names that a stub's module or class declares, without those that it imports."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            bases = {ast.unparse(base) for base in getattr(node, "bases", [])}
            if not bases & {"Protocol", "TypedDict"}:  # for types only
                yield node.name, node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node


@pytest.mark.parametrize("path", STUBS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_stub_declares_what_its_module_has(path: Path) -> None:
    name = ".".join(("fastderp", *path.relative_to(ROOT).with_suffix("").parts))
    assert missing_in(importlib.import_module(name), path) == []


@pytest.mark.parametrize("path", sorted(shims.HERE.glob("*.pyi")), ids=lambda path: path.stem)
def test_a_stub_of_a_shim_declares_what_it_has(path: Path) -> None:
    assert missing_in(shims.Shim(path.stem), path) == []


def missing_in(module: object, path: Path) -> list[str]:
    """Return the names in a stub that its module lacks."""
    missing = []
    for name, node in declared(ast.parse(path.read_text()).body):
        found = getattr(module, name, None)
        if found is None:
            missing.append(name)
        elif isinstance(node, ast.ClassDef):
            members = list(declared(node.body))
            missing += [f"{name}.{member}" for member, _ in members if not hasattr(found, member)]
            if hasattr(found, "_fields"):
                fields = [member for member, node in members if isinstance(node, ast.AnnAssign)]
                assert tuple(fields) == found._fields, name
    return missing
