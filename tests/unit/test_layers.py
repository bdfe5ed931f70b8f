"""Imports go down only, and the fences of the layout hold."""

import re
from pathlib import Path

import pytest

import fastderp

ROOT = Path(fastderp.__file__).parent
IMPORT = re.compile(
    r"^\s*(?:from (fastderp\.[\w.]+) c?import\b|c?import (fastderp\.[\w.]+)|from (fastderp) c?import (\w+))",
    re.MULTILINE,
)

# What the modules under a name may import of ours, besides modules under the same name.
BOTTOM = {
    "fastderp.wire.protocol",
    "fastderp.wire.keys",
    "fastderp.wire.login",
    "fastderp.errors",
    "fastderp.util.files",
}
BELOW_PLANES = BOTTOM | {"fastderp.dataplane", "fastderp.tls"}
ALLOWED = {
    "fastderp.wire.protocol": set(),
    "fastderp.errors": set(),
    "fastderp.util.files": set(),
    "fastderp.wire.keys": {"fastderp.wire.protocol", "fastderp.errors", "fastderp.util.files"},
    "fastderp.wire.login": {"fastderp.wire.protocol", "fastderp.errors", "fastderp.wire.keys"},
    "fastderp.tls": {"fastderp.errors", "fastderp.tls.record"},
    "fastderp.dataplane": {
        "fastderp.wire.protocol",
        "fastderp.wire.keys",
        "fastderp.errors",
        "fastderp.tls",
    },
    "fastderp.client": BELOW_PLANES,
    "fastderp.server": BELOW_PLANES | {"fastderp.client"},
    "fastderp.loadgen": BELOW_PLANES | {"fastderp.client"},
    "fastderp.cli": BELOW_PLANES | {"fastderp.client", "fastderp.server", "fastderp.loadgen"},
}
SOURCES = [
    path
    for path in sorted(ROOT.rglob("*.py*"))
    if path.suffix in (".py", ".pyx", ".pxd") and path.name not in ("__main__.py", "__init__.py")
]


def is_under(module: str, names: set[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_what_is_below_it(path: Path) -> None:
    module = "fastderp." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
    [layer] = [name for name in ALLOWED if is_under(module, {name})]
    imported = {".".join(filter(None, names)) for names in IMPORT.findall(path.read_text())}
    outside = {name for name in imported if not is_under(name, ALLOWED[layer] | {layer})}
    assert not outside


def test_system_headers_are_named_in_their_fences_only() -> None:
    fences = {"dataplane/sys.pxd", "loadgen/sys.pxd"}
    named = {str(path.relative_to(ROOT)) for path in SOURCES if 'extern from "' in path.read_text()}
    assert named <= fences
