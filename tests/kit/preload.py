"""C functions in place of the C library's, for the process of a test."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from bench.relays import c_compiler


def preloading(source: str, directory: Path) -> dict[str, str]:
    """Compile C functions into `directory`; return the environment of a process that uses them."""
    file, library = directory / "preload.c", directory / "preload.so"
    file.write_text(source)
    command = [*c_compiler(), "-shared", "-fPIC", "-O1", "-o", str(library), str(file), "-ldl"]
    subprocess.run(command, check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}
