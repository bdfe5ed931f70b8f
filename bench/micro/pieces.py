"""The data plane's C functions as Python calls, for benches and for tests of the C level.

Each .pyx is compiled on first use against the imported fastderp; the package exports nothing for
them.
"""

from __future__ import annotations

import fcntl
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import fastderp

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "micro"
# the options of the packet path in setup.py, where such calls are inlined
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "freethreading_compatible": True,
}


@cache
def piece(name: str, folder: Path = HERE, build: Path = BUILD) -> ModuleType:
    """Compile and import `folder/name.pyx`; what the compiler makes stays in `build`."""
    path = _compiled(name, folder, build)
    spec = importlib.util.spec_from_file_location(f"micro_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compiled(name: str, folder: Path, build: Path) -> Path:
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension  # type: ignore[import-untyped]
    from setuptools.command.build_ext import build_ext  # type: ignore[import-untyped]

    root = str(Path(fastderp.__file__).parents[1])
    build.mkdir(parents=True, exist_ok=True)
    with open(build / "lock", "w") as lock:  # another run may compile the same module
        fcntl.flock(lock, fcntl.LOCK_EX)
        [extension] = cythonize(  # type: ignore[no-untyped-call]
            [Extension(f"micro_{name}", [str(folder / f"{name}.pyx")], extra_compile_args=["-O2"])],
            compiler_directives=DIRECTIVES,
            include_path=[root],
            build_dir=str(build),
            quiet=True,
        )
        command = build_ext(Distribution({"ext_modules": [extension]}))
        command.build_lib = command.build_temp = str(build)
        command.finalize_options()
        command.run()
    return Path(command.get_ext_fullpath(extension.name))
