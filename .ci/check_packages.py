"""Check the files of the source distribution and of the wheels, against the checkout they were built from."""

import fnmatch
import os
import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGE = Path("fastderp")
CRYPTO = "fastderp/tls/_crypto.so"
NEVER = ("*.c", "*.cpp", "*.o", "*.pyc", "*__pycache__*", "*.orig", "*~")


def tracked(*suffixes: str) -> set[str]:
    """Return the package's files with these suffixes, as paths from the checkout."""
    return {
        str(path)
        for path in PACKAGE.rglob("*")
        if path.suffix in suffixes and "__pycache__" not in path.parts
    }


def share() -> set[str]:
    return {str(path) for path in (PACKAGE / "share").rglob("*") if path.is_file()}


def missing_and_unwanted(names: set[str], wanted: set[str], never: tuple[str, ...]) -> list[str]:
    problems = [f"missing {name}" for name in sorted(wanted - names)]
    return problems + [
        f"unwanted {name}"
        for name in sorted(names)
        for pattern in never
        if fnmatch.fnmatch(name, pattern)
    ]


def check_wheel(path: str) -> list[str]:
    names = set(zipfile.ZipFile(path).namelist())
    wanted = tracked(".py", ".pyi", ".pxd") | share() | {"fastderp/py.typed"}
    problems = missing_and_unwanted(names, wanted, (*NEVER, "*.pyx", "tests/*", "bench/*"))
    for source in sorted(tracked(".pyx")):
        compiled = source.removesuffix(".pyx") + ".*.so"
        if not fnmatch.filter(names, compiled):
            problems.append(f"missing {compiled}")
    if not fnmatch.filter(names, "*.dist-info/licenses/LICENSE"):
        problems.append("missing LICENSE")
    if not fnmatch.filter(names, "*.dist-info/licenses/*LICENSE.aws-lc"):
        problems.append("missing LICENSE.aws-lc")
    if (CRYPTO in names) is not bool(os.environ.get("FASTDERP_CRYPTO_SOURCE")):
        problems.append(f"{'unwanted' if CRYPTO in names else 'missing'} {CRYPTO}")
    return problems


def check_portable(path: str) -> list[str]:
    """Check the wheel for macOS and Windows, which has no compiled modules."""
    names = set(zipfile.ZipFile(path).namelist())
    problems = missing_and_unwanted(names, tracked(".py", ".pyi"), (*NEVER, "*.pyx", "*.so"))
    for tag in ("macosx_", "win_amd64", "win_arm64"):
        if tag not in path:
            problems.append(f"missing the platform {tag}")
    return problems


def check_source(path: str) -> list[str]:
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    top = {"LICENSE", "README.md", "CHANGELOG.md", "MANIFEST.in", "pyproject.toml", "setup.py"}
    crypto = {
        f"crypto/{name}"
        for name in ("Cargo.toml", "LICENSE.aws-lc", "README.md", "awslc.c", "build_crypto.py")
    }
    tests = {str(path) for path in Path("tests").rglob("*.py") if "__pycache__" not in path.parts}
    wanted = (
        top
        | tests
        | crypto
        | share()
        | tracked(".py", ".pyx", ".pxd", ".pxi", ".pyi")
        | {"fastderp/py.typed"}
    )
    never = tuple(f"fastderp/{pattern}" for pattern in NEVER) + ("*.so", "*.pyc", "build/*")
    return missing_and_unwanted(names, wanted, never)


def main(source: str, wheel: str, portable: str) -> int:
    problems = [f"sdist: {text}" for text in check_source(source)]
    problems += [f"wheel: {text}" for text in check_wheel(wheel)]
    problems += [f"portable wheel: {text}" for text in check_portable(portable)]
    print("\n".join(problems) or "packages hold what they should")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
