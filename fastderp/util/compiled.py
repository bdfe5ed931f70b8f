"""Explains an import of fastderp from a source folder that is not compiled."""

from __future__ import annotations

import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES


def check_compiled(package: str, module: str) -> None:
    """Raise ImportError with the command to run unless `module` of `package` is compiled."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if _is_compiled(here, package, module):
        return
    from shlex import quote

    hidden = [path for path in sys.path if path and _is_compiled(path, package, module)]
    cure = f"compile it once: pip install -e {quote(here)}"
    if hidden:
        raise ImportError(
            f"fastderp in {here} is not compiled, and it hides the one installed in {hidden[0]}: "
            f"work in another folder, or {cure}"
        )
    raise ImportError(f"fastderp in {here} is not compiled: {cure}")


def _is_compiled(folder: str, package: str, module: str) -> bool:
    path = os.path.join(folder, "fastderp", package, module)
    return any(os.path.exists(path + suffix) for suffix in EXTENSION_SUFFIXES)
