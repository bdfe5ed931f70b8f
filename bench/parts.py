"""The parts of a relay's process, by the file that code or memory comes from."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import fastderp

ANONYMOUS = "anonymous"
OURS = Path(fastderp.__file__).resolve().parent
INTERPRETER = Path(sys.executable).resolve()
# Folders whose entries are installed packages, and the library that one of them contains.
PACKAGES = {"site-packages", "dist-packages"}
CONTAINED = {"nacl": "libsodium"}
# libcrypto.so.3, libc-2.31.so
LIBRARY = re.compile(r"(lib[^.]*?)(?:-[\d.]+)?\.so\b")


def part_of(mapped: str) -> str:
    """Return the part that a mapping belongs to, by its name in /proc/PID/smaps or of callgrind.

    The relay has to run with this Python and this fastderp.
    """
    if not mapped or mapped.startswith("[anon"):
        return ANONYMOUS
    if mapped == "???":  # callgrind knows no file
        return "unknown"
    if mapped.startswith("["):  # [heap], [stack], [vdso]
        return mapped.strip("[]")
    path = Path(mapped.removesuffix(" (deleted)"))
    if path.is_relative_to(OURS):
        return "crypto library (bundled)" if path.name.startswith("_crypto") else "fastderp"
    if path == INTERPRETER or "lib-dynload" in path.parts or path.name.startswith("libpython"):
        return "Python"
    for folder, name in zip(path.parts, path.parts[1:], strict=False):
        if folder in PACKAGES:
            package = name.partition(".")[0]
            return CONTAINED.get(package, package)
    library = LIBRARY.match(path.name)
    if library:
        return library[1]
    return "ld.so" if path.name.startswith("ld-") else path.name
