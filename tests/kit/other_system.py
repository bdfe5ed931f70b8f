"""Runs Python as on macOS or Windows: `python -m tests.kit.other_system darwin|win32 PROGRAM`.

It names another platform, hides what that platform lacks (compiled modules of ours, modules and
functions of POSIX), and then runs the program. The standard library and the dependencies stay
those of this machine. Differences of the real systems below Python are not simulated.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.abc
import os
import signal
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]

# imported before the platform changes, because they read it at their import
_REAL = (
    "asyncio", "ssl", "json", "http.client", "tempfile", "subprocess", "platform", "shutil",
    "nacl.bindings", "cryptography.x509", "cryptography.hazmat.bindings._rust", "logging",
    "importlib.metadata", "websockets.client", "email.parser",
)  # fmt: skip
_LINUX_MODULES = ("uvloop",)
_POSIX_MODULES = ("fcntl", "grp", "pwd", "resource", "termios")
_POSIX_NAMES = {
    os: ("O_CLOEXEC", "O_DIRECTORY", "O_NONBLOCK", "fchmod", "geteuid", "sched_getaffinity"),
    signal: ("SIGHUP", "pthread_sigmask"),
}


class _HideCompiled(importlib.abc.MetaPathFinder):
    """Reports modules of ours that have no Python source as missing."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.startswith("fastderp."):
            base = ROOT.joinpath(*name.split("."))
            compiled = any(Path(f"{base}{suffix}").exists() for suffix in EXTENSION_SUFFIXES)
            if compiled and not base.with_suffix(".py").exists():
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def become(system: str) -> None:
    """Make this process look like one of `system`: darwin or win32."""
    for name in _REAL:
        importlib.import_module(name)
    asyncio.new_event_loop().close()  # asyncio looks at the platform at its first loop
    hidden = _LINUX_MODULES if system == "darwin" else (*_LINUX_MODULES, *_POSIX_MODULES)
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    if system == "win32":
        for module, names in _POSIX_NAMES.items():
            for name in names:
                delattr(module, name)
    sys.meta_path.insert(0, _HideCompiled())
    sys.platform = system


if __name__ == "__main__":
    become(sys.argv[1])
    exec(compile(sys.argv[2], "program", "exec"), {"__name__": "__main__"})
