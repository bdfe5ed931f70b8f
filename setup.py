"""Build the compiled modules. Everything else about the package is in pyproject.toml.

FASTDERP_CHECKED=address|thread|1 builds the checked variant for tests: Cython's own
checks on, and with `address` (plus undefined behaviour) or `thread` the sanitizer of that name.
FASTDERP_BUILD_JOBS=N limits how many modules are translated and compiled at once.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

EVERYWHERE = {"language_level": 3, "freethreading_compatible": True}
# The packet path: every index is proved by the code beside it, and the checked build tests that.
PACKET_PATH = {
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
}

# Wing -> modules compiled with PACKET_PATH, modules compiled with Cython's own checks.
MODULES = {
    "tls": ("aead record", "context handshake openssl"),
    "dataplane": (
        "arena backlog cardinality events fair_queue frame output peer_gone routes session timer_wheel worker",
        "plane reports",
    ),
    "loadgen": ("engine hello histogram load logins payload", ""),
}

CHECKED = os.environ.get("FASTDERP_CHECKED", "")
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}
# The two variants never share an object file.
BUILD_BASE = os.path.join("build", "checked" if CHECKED else "release")
JOBS = int(os.environ.get("FASTDERP_BUILD_JOBS", 0)) or len(os.sched_getaffinity(0))

WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter"]
compile_args = ["-O2", *WARNINGS, "-fvisibility=hidden", "-pthread"]
link_args = ["-pthread"]
if CHECKED:
    sanitizer = SANITIZERS.get(CHECKED, [])
    compile_args += ["-O1", "-g", "-fno-omit-frame-pointer", *sanitizer]
    link_args += sanitizer


def extension(wing, name):
    return Extension(
        f"fastderp.{wing}.{name}",
        [str(Path("fastderp", wing, f"{name}.pyx"))],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )


def translated(column, directives):
    """Return the extensions of one column of MODULES, translated to C in parallel."""
    return cythonize(
        [extension(wing, name) for wing, row in MODULES.items() for name in row[column].split()],
        compiler_directives=EVERYWHERE | directives,
        build_dir=os.path.join(BUILD_BASE, "cython"),
        nthreads=JOBS,
    )


# `pip install` imports this file; the worker processes of cythonize do as well, where they are
# spawned instead of forked.
if __name__ == "__main__":
    setup(
        ext_modules=translated(0, {} if CHECKED else PACKET_PATH) + translated(1, {}),
        options={"build": {"build_base": BUILD_BASE}, "build_ext": {"parallel": JOBS}},
    )
