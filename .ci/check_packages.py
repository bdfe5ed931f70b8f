"""Check the files of the source distribution and of the wheels, against the checkout they were built from."""

import email
import fnmatch
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGE = Path("fastderp")
CRYPTO = "fastderp/tls/_crypto.so"
OWN_LICENSE = "BSD-3-Clause"
MADE = {"PKG-INFO", "setup.cfg"}  # by setuptools, in a source distribution
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
    if (CRYPTO in names) is not bool(os.environ.get("FASTDERP_CRYPTO_SOURCE")):
        problems.append(f"{'unwanted' if CRYPTO in names else 'missing'} {CRYPTO}")
    return problems + check_licenses(path, CRYPTO in names)


def check_licenses(path: str, has_crypto: bool) -> list[str]:
    """Check that a wheel names the licenses of what it contains, and has their texts."""
    with zipfile.ZipFile(path) as wheel:
        [metadata] = fnmatch.filter(wheel.namelist(), "*.dist-info/METADATA")
        declared = email.message_from_bytes(wheel.read(metadata))
        texts = {name.partition("/licenses/")[2] for name in wheel.namelist()} - {""}
    wanted = {"LICENSE", "crypto/LICENSE.aws-lc"} if has_crypto else {"LICENSE"}
    problems = []
    if {*declared.get_all("License-File", [])} != wanted or texts != wanted:
        problems.append(f"texts of licenses: {sorted(texts)} instead of {sorted(wanted)}")
    if (declared["License-Expression"] == OWN_LICENSE) is has_crypto:
        problems.append(f"the license {declared['License-Expression']}")
    return problems


def check_portable(path: str) -> list[str]:
    """Check the wheel for macOS and Windows, which has no compiled modules."""
    names = set(zipfile.ZipFile(path).namelist())
    problems = missing_and_unwanted(names, tracked(".py", ".pyi"), (*NEVER, "*.pyx", "*.so"))
    problems += check_licenses(path, has_crypto=False)
    for tag in ("macosx_", "win_amd64", "win_arm64"):
        if tag not in path:
            problems.append(f"missing the platform {tag}")
    return problems


def check_source(path: str) -> list[str]:
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    wanted = set(subprocess.check_output(["git", "ls-files", "-z"], text=True).split("\0")) - {""}
    made = {name for name in names if name in MADE or name.startswith("fastderp.egg-info/")}
    problems = [f"missing {name}" for name in sorted(wanted - names)]
    return problems + [f"unwanted {name}" for name in sorted(names - wanted - made)]


def main(source: str, wheel: str, portable: str) -> int:
    problems = [f"sdist: {text}" for text in check_source(source)]
    problems += [f"wheel: {text}" for text in check_wheel(wheel)]
    problems += [f"portable wheel: {text}" for text in check_portable(portable)]
    print("\n".join(problems) or "packages hold what they should")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
