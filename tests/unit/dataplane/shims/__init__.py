"""The data plane's C functions as Python calls: one .pyx per tested module, compiled on first use.

`from tests.unit.dataplane.shims import wheels` imports one; its .pyi has the types.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bench.micro.pieces import piece
from tests.kit.compiler import has_c_compiler

HERE = Path(__file__).parent
BUILD = HERE.parents[3] / "build" / "shims"


class Shim:
    """The interface of one .pyx in this folder.

    A test that uses it is skipped where there is no C compiler.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if not has_c_compiler():
            pytest.skip("no C compiler")
        return getattr(piece(self._name, HERE, BUILD), name)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Shim:
        if not (HERE / f"{name}.pyx").exists():
            raise AttributeError(f"there is no {name}.pyx in {HERE}")
        return Shim(name)
