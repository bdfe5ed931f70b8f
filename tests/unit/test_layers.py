"""Imports go down only: the order of the wings, no circles, the fences of the layout.

Cython's `cimport` and `include`, stubs, imports inside functions and those under `TYPE_CHECKING`
count like every other import.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import fastderp

ROOT = Path(fastderp.__file__).parent
IMPORT = re.compile(
    r"^\s*(?:from (fastderp[\w.]*) c?import (\([^)]*\)|[^\n#]*)|c?import (fastderp[\w.]+))", re.M
)

# from the ground up; a wing imports only from itself and from the floors below it; wings on
# one floor do not import each other
FLOORS = [
    ["errors", "_version", "server"],  # of `server` only the package itself
    ["util"],
    ["wire"],
    ["tls"],
    ["net", "dataplane"],
    ["client"],
    ["server.observe"],
    ["server.net"],
    ["server.http", "server.stun"],
    ["server.certificates", "server.admission", "server.mesh"],
    ["server.settings"],
    ["server.accept"],
    ["server.server"],
    ["server.components"],
    ["server.app"],
    ["server.process"],
    ["loadgen", "probing", "top"],
    ["cli"],
]
FLOOR_OF = {wing: number for number, wings in enumerate(FLOORS) for wing in wings}
# the top modules of the package, which import lazily from all wings
DOORS = {"fastderp", "fastderp.__main__", "fastderp.testing"}
# the only declarations of system headers
FENCES = {
    "dataplane/sys.pxd",
    "loadgen/sys.pxd",
    "server/net/sys.pxd",
    "server/stun/sys.pxd",
    "tls/sys.pxd",
}

SOURCES = sorted(
    path for path in ROOT.rglob("*.p*") if path.suffix in (".py", ".pyx", ".pxd", ".pxi", ".pyi")
)


def module_of(path: Path) -> str:
    """Return the dotted name of a source; stubs and declarations have their module's name."""
    parts = ["fastderp", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in SOURCES}


def wing_of(module: str) -> str:
    """Return the longest name of a wing that a module lies under."""
    parts = module.split(".")[1:]
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next(name for name in names if name in FLOOR_OF)


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Return the modules of ours that a source imports."""
    found: set[str] = set()
    for package, names, module in IMPORT.findall(path.read_text()):
        if module:
            found.add(module)
            continue
        members = [name.split()[0] for name in names.strip("()").split(",") if name.strip()]
        submodules = {f"{package}.{name}" for name in members} & MODULES
        found |= submodules
        if len(submodules) < len(members):
            found.add(package)
    return frozenset(found)


def inner_sources() -> Iterator[Path]:
    for path in SOURCES:
        module = module_of(path)
        if module not in DOORS and not (path.name == "__init__.py" and not imports_of(path)):
            yield path


@pytest.mark.parametrize(
    "path", list(inner_sources()), ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_module_imports_only_from_the_floors_below(path: Path) -> None:
    wing = wing_of(module_of(path))
    upwards = {
        target
        for target in imports_of(path) - DOORS
        if (other := wing_of(target)) != wing and FLOOR_OF[other] >= FLOOR_OF[wing]
    }
    assert not upwards


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Return the modules that `start` needs, directly or through others."""
    found: set[str] = set()
    todo = [start]
    while todo:
        new = graph[todo.pop()] - found
        found |= new
        todo += new
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: set[str]() for module in MODULES}
    for path in SOURCES:
        graph[module_of(path)] |= imports_of(path) - {module_of(path)} - DOORS
    needs = {module: reachable(graph, module) for module in MODULES}
    circles = {
        frozenset(other for other in needs[module] if module in needs[other])
        for module in MODULES
        if module in needs[module]
    }
    assert not circles


def test_system_headers_are_declared_in_their_fences_only() -> None:
    declaring = {
        str(path.relative_to(ROOT)) for path in SOURCES if 'extern from "' in path.read_text()
    }
    assert declaring <= FENCES


def test_no_file_is_longer_than_a_reader_can_survey() -> None:
    tree = ROOT.parent
    sources = [*SOURCES, *(tree / "tests").rglob("*.p[yx]*"), *(tree / "bench").rglob("*.py")]
    long = {
        str(path.relative_to(tree)): n
        for path in sources
        if path.suffix != ".pyc" and (n := len(path.read_text().splitlines())) > 600
    }
    assert not long
