"""Count the figures in docs/style.md about the shape of the code.

`python docs/count_house.py [TREE]` reads the sources as text and prints one row per figure. It
needs nothing but Python.
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

SOURCE_SUFFIXES = {".py", ".pyx", ".pxd", ".pxi", ".pyi"}
IMPORT = re.compile(
    r"^\s*(?:from (fastderp[\w.]*) c?import (\([^)]*\)|[^\n#]*)|c?import (fastderp[\w.]+))", re.M
)
CITATION = re.compile(r"\b(?:PROTOCOL|ARCHITECTURE) §")


def sources(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.suffix in SOURCE_SUFFIXES and p.is_file())


def module_of(path: Path, tree: Path) -> str:
    parts = path.relative_to(tree).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def graph_of(tree: Path) -> dict[str, set[str]]:
    """Return which modules of the package each module imports."""
    paths = sources(tree / "fastderp")
    modules = {module_of(path, tree) for path in paths}
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for path in paths:
        found = graph[module_of(path, tree)]
        for package, names, module in IMPORT.findall(path.read_text()):
            members = [name.split()[0] for name in names.strip("()").split(",") if name.strip()]
            found |= {f"{package}.{name}" for name in members} & modules
            found |= {package, module} & modules
        found.discard(module_of(path, tree))
    return graph


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    todo = [start]
    while todo:
        new = graph[todo.pop()] - found
        found |= new
        todo += new
    return found


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    needs = {module: reachable(graph, module) for module in graph}
    return {
        frozenset(other for other in needs[module] if module in needs[other])
        for module in graph
        if module in needs[module]
    }


def functions(paths: Iterable[Path]) -> Iterator[int]:
    """Yield the lines of every Python function."""
    for path in paths:
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                yield node.end_lineno - node.lineno + 1


def percentile(values: list[int], share: float) -> int:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def main(tree: Path) -> None:
    graph = graph_of(tree)
    package = sources(tree / "fastderp")
    tests = sources(tree / "tests") + sources(tree / "bench")
    server = {module for module in graph if module.startswith("fastderp.server.")}
    halls: dict[str, int] = {}
    for module in server:
        hall = module.rpartition(".")[0]
        halls[hall] = halls.get(hall, 0) + 1
    arrows = sum(len(graph[module] & server) for module in server)
    widths = {
        suffix: [len(line) for p in package if p.suffix == suffix for line in p.open()]
        for suffix in (".pyx", ".py")
    }
    long_files = [p for p in package + tests if len(p.read_text().splitlines()) > 600]
    lengths = list(functions(package))
    rows = {
        "modules in the largest wing of server/": max(halls.values()),
        "wings of server/": len(halls),
        "import arrows inside server/": arrows,
        "circles of modules": len(circles(graph)),
        "p99 width of .pyx": percentile(widths[".pyx"], 0.99) - 1,
        "p99 width of .py": percentile(widths[".py"], 0.99) - 1,
        "widest line": max(max(values) for values in widths.values()) - 1,
        "files over 600 lines": ", ".join(str(p.relative_to(tree)) for p in long_files) or "none",
        "function lines, median / p90": f"{statistics.median(lengths):.0f} / {percentile(lengths, 0.9)}",
        "functions over 60 lines": f"{sum(n > 60 for n in lengths)} of {len(lengths)}",
        "citations of docs/": sum(len(CITATION.findall(p.read_text())) for p in package + tests),
    }
    for name, value in rows.items():
        print(f"{name:42} {value}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1])
