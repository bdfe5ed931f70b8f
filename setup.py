"""Build the compiled modules. Everything else about the package is in pyproject.toml.

FASTDERP_CHECKED=address|thread|1 builds the checked variant for tests: Cython's own
checks on, and with `address` (plus undefined behaviour) or `thread` the sanitizer of that name.
FASTDERP_FREE_THREADING=1 declares the modules safe without the GIL. Wheels do not declare it until
the whole suite has passed on a free-threaded interpreter: such an interpreter then turns the GIL on.
FASTDERP_EXTENSIONS=none builds, on Linux, the wheel for macOS and Windows: the client library in
Python. On these systems nothing is ever compiled.
FASTDERP_BUILD_JOBS=N limits how many modules are translated and compiled at once.
FASTDERP_CRYPTO_SOURCE=FILE puts a crypto library beside the modules, as wheels bring it: FILE is the
crate that crypto/Cargo.toml pins, or the _crypto.so that crypto/build_crypto.py has built of it.
"""

import atexit
import os
import re
import runpy
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

IS_COMPILED = sys.platform == "linux" and os.environ.get("FASTDERP_EXTENSIONS") != "none"
REPOSITORY = "https://github.com/fastderp/fastderp"
# The platforms of the wheel without compiled modules. Not "any": on Linux pip is to compile instead.
PORTABLE_PLATFORMS = "macosx_10_13_universal2.win32.win_amd64.win_arm64"

EVERYWHERE = {
    "language_level": 3,
    # Functions like those of other C extensions: Cython's own kind can be inspected, for which 0.3 MiB
    # of code and objects stay in every process. The .pyi files have the signatures.
    "binding": False,
    "freethreading_compatible": bool(os.environ.get("FASTDERP_FREE_THREADING")),
}
# The packet path: every index is proved by the code beside it, and the checked build tests that.
PACKET_PATH = {
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
}

# Wing -> modules compiled with PACKET_PATH, modules compiled with Cython's own checks.
MODULES = {
    "wire": ("", "message_reader sodium"),
    "tls": (
        "aead hkdf key_exchange key_schedule record",
        "agreement context handshake openssl x509",
    ),
    "dataplane": (
        "arena backlog cardinality events fair_queue frame output peer_gone routes session stash timer_wheel worker",
        "plane reports",
    ),
    "server/net": ("", "stream"),
    "server/stun": ("responder", ""),
    "cli": ("", "process_1"),
    "loadgen": ("engine hello histogram load logins payload", ""),
}

CHECKED = os.environ.get("FASTDERP_CHECKED", "")
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}
JOBS = int(os.environ.get("FASTDERP_BUILD_JOBS", 0)) or (
    len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
)

CRYPTO_SOURCE = os.environ.get("FASTDERP_CRYPTO_SOURCE", "")
CRYPTO_LIBRARY = Path("fastderp", "tls", "_crypto.so")
BRINGS_CRYPTO = IS_COMPILED and CRYPTO_SOURCE and "sdist" not in sys.argv

WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter"]
# No debug information: it would name the build's folder, and two builds would differ.
compile_args = ["-g0", *WARNINGS, "-fvisibility=hidden", "-pthread"]
# Code and constants share pages: of 25 small modules, each would be padded to more of them.
link_args = ["-pthread", "-Wl,-z,noseparate-code"]
# Modules on the packet path are built for speed, those behind Python calls for size.
OPTIMIZATION = ("-O2", "-Os")
# Of the latter, what runs for each packet of a client or of a load, or for each session of a page, is
# built for speed, too.
FOR_SPEED = {"message_reader", "reports", *MODULES["loadgen"][1].split()}
if CHECKED:
    sanitizer = SANITIZERS.get(CHECKED, [])
    # -g1: functions and lines for reports; the types of all variables would take longer to compile.
    compile_args += ["-g1", "-fno-omit-frame-pointer", *sanitizer]
    OPTIMIZATION = ("-O1", "-O1")
    link_args += sanitizer


def extension(wing, name, optimization):
    return Extension(
        f"fastderp.{wing.replace('/', '.')}.{name}",
        [str(Path("fastderp", wing, f"{name}.pyx"))],
        extra_compile_args=[optimization, *compile_args],
        extra_link_args=link_args,
    )


def extensions(column):
    """Return the extensions of one column of MODULES."""
    return [
        extension(wing, name, OPTIMIZATION[0 if name in FOR_SPEED else column])
        for wing, row in MODULES.items()
        for name in row[column].split()
    ]


def translated(column, directives, build_base):
    """Return the extensions of one column of MODULES, translated to C in parallel."""
    folder = Path(build_base, "cython")
    for file in folder.rglob("*.c"):
        # Cython does not notice that the directives in this file have changed.
        if file.stat().st_mtime < Path(__file__).stat().st_mtime:
            file.unlink()
    return cythonize(
        extensions(column),
        compiler_directives=EVERYWHERE | directives,
        build_dir=str(folder),
        nthreads=JOBS,
    )


class BuildExt(build_ext):
    """Builds the modules, and the crypto library if its source is given."""

    def run(self):
        super().run()
        if not CRYPTO_SOURCE:
            return
        source = Path(CRYPTO_SOURCE).resolve()
        target = CRYPTO_LIBRARY if self.inplace else Path(self.build_lib, CRYPTO_LIBRARY)
        if source.suffix == ".so":
            # Not in place: a process may have the previous file mapped.
            target.with_suffix(".new").write_bytes(source.read_bytes())
            target.with_suffix(".new").replace(target)
            target.chmod(0o755)
            return
        sys.path.insert(0, str(Path(__file__).resolve().parent / "crypto"))
        import build_crypto

        build_crypto.build(source, target, JOBS)


class PortableWheel(bdist_wheel):
    """Names the platforms that a wheel without compiled modules is for."""

    def get_tag(self):
        if sys.platform == "linux":
            return "py3", "none", PORTABLE_PLATFORMS
        return super().get_tag()


def write_counters():
    """Bring the C struct of the data plane's counters up to date with their table."""
    folder = Path("fastderp", "dataplane")
    text = runpy.run_path(str(folder / "counters.py"))["declarations"]()
    declared = folder / "counters.pxd"
    # A file without a change keeps its time, so that nothing is built again.
    if declared.read_text(encoding="utf-8") != text:
        declared.write_text(text, encoding="utf-8")


def main():
    """Run the command of the command line."""
    asked = set(sys.argv)
    in_tree = not asked.isdisjoint({"build_ext", "develop", "editable_wheel", "sdist"})
    if in_tree:
        # Only what has changed is built again. The two variants never share an object file.
        build_base = os.path.join("build", "checked" if CHECKED else "release")
    else:
        # Leaves nothing in the folder: after `sudo pip install .` it would be root's, and in the way of the next install.
        build_base = tempfile.mkdtemp(prefix="fastderp-build-")
        atexit.register(shutil.rmtree, build_base, ignore_errors=True)
    if not IS_COMPILED:
        modules = []
    elif asked.isdisjoint({"egg_info", "dist_info", "sdist"}):
        write_counters()
        modules = translated(0, {} if CHECKED else PACKET_PATH, build_base)
        modules += translated(1, {}, build_base)
    else:  # only names, versions and sources are asked for
        modules = extensions(0) + extensions(1)
    setup(
        cmdclass={"build_ext": BuildExt} if IS_COMPILED else {"bdist_wheel": PortableWheel},
        ext_modules=modules,
        license_expression=license_expression(),
        license_files=["LICENSE", *(["crypto/LICENSE.aws-lc"] if BRINGS_CRYPTO else [])],
        long_description=description(),
        long_description_content_type="text/markdown",
        options={
            "build": {"build_base": build_base},
            "build_ext": {"parallel": JOBS},
            "egg_info": {} if in_tree else {"egg_base": build_base},
        },
    )


def license_expression():
    """Return the licenses of what is built, as SPDX writes them, with those of a crypto library."""
    own = "BSD-3-Clause"
    if not BRINGS_CRYPTO:
        return own
    manifest = tomllib.loads(Path(__file__).with_name("crypto").joinpath("Cargo.toml").read_text())
    return f"{own} AND {manifest['package']['metadata']['license']}"


def description():
    """Return the README, whose links into the repository also work on the index's page."""
    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    return re.sub(r"\]\((?!https?:|#)", f"]({REPOSITORY}/blob/main/", text)


# `pip install` imports this file; the worker processes of cythonize do as well, where they are
# spawned instead of forked.
if __name__ == "__main__":
    main()
