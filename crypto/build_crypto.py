"""Build the crypto library that a wheel brings: AWS-LC as one shared object with one symbol.

    python crypto/build_crypto.py fetch DIRECTORY                        the crate, by cargo
    python crypto/build_crypto.py build CRATE -o fastderp/tls/_crypto.so

Cargo.toml beside this file pins the crate. Building needs CMake (`pip install cmake` will do), make
and a C and C++ compiler; no Perl, no Go, no Rust. The result needs the C library alone. Its symbol
`fastderp_crypto` lists names and functions, in which fastderp/tls/openssl.pyx looks up its tables
as it looks them up in a system's library: it cannot clash with another OpenSSL of the process.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
MANIFEST = HERE / "Cargo.toml"
SHIM = HERE / "awslc.c"
LICENSE = HERE / "LICENSE.aws-lc"
TABLE = HERE.parent / "fastderp" / "tls" / "openssl.pxd"

CRATE = "aws-lc-sys"
# of OpenSSL 3; optional in openssl.pyx
ABSENT = {
    "EVP_CIPHER_fetch",
    "EVP_default_properties_is_fips_enabled",
    "OPENSSL_init_crypto",
    "OSSL_PROVIDER_add_builtin",
    "OSSL_PROVIDER_available",
    "OSSL_PROVIDER_get0_provider_ctx",
    "OSSL_PROVIDER_get_capabilities",
    "OSSL_PROVIDER_query_operation",
    "OSSL_PROVIDER_try_load",
    "RAND_priv_bytes",
    "SSL_CTX_new_ex",
}

COMPILE = [
    "-O2",
    "-DNDEBUG",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffunction-sections",
    "-fdata-sections",
]
CHECK = ["-Wall", "-Werror=cast-function-type", "-Werror=implicit-function-declaration"]
LINK = [
    "-shared",
    "-Wl,--gc-sections",
    "-Wl,--exclude-libs,ALL",
    "-Wl,-Bsymbolic",
    "-Wl,-z,relro,-z,now,-z,noexecstack",
    "-Wl,--no-undefined",
    "-Wl,-s",
]
CMAKE = {
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_POSITION_INDEPENDENT_CODE": "ON",
    "BUILD_SHARED_LIBS": "OFF",
    "BUILD_LIBSSL": "ON",
    "BUILD_TESTING": "OFF",
    "BUILD_TOOL": "OFF",
    "DISABLE_PERL": "ON",
    "DISABLE_GO": "ON",
    # It would cost 45 ms of CPU at the first random number; the kernel's random numbers suffice.
    "DISABLE_CPU_JITTER_ENTROPY": "ON",
}

_MEMBER = re.compile(
    r"^    (?P<returns>[\w ]+?\**) \(\*(?P<name>\w+)\)\((?P<arguments>[^()]*)\) noexcept nogil",
    re.M,
)
_CALLBACK = re.compile(r"^ctypedef (\w+) \(\*(\w+)\)\(([^()]*)\) noexcept nogil", re.M)


class BuildError(Exception):
    """The library cannot be built; the text has the cause and the next step."""


def pinned() -> tuple[str, str]:
    """Return version and SHA-256 of the crate."""
    manifest = tomllib.loads(MANIFEST.read_text())
    version = manifest["dependencies"][CRATE].removeprefix("=")
    return version, manifest["package"]["metadata"]["checksum"]


def crate_is_pinned(crate: Path) -> bool:
    return hashlib.sha256(crate.read_bytes()).hexdigest() == pinned()[1]


def fetch(directory: Path) -> Path:
    """Have cargo download the crate, copy it into `directory` and return its path there."""
    name = f"{CRATE}-{pinned()[0]}.crate"
    with tempfile.TemporaryDirectory(prefix="fastderp-crypto-") as temporary:
        manifest = shutil.copy(MANIFEST, temporary)
        Path(temporary, "lib.rs").touch()
        run(["cargo", "fetch", "--quiet", "--manifest-path", manifest], "install Rust's cargo")
    home = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
    for crate in home.glob(f"registry/cache/*/{name}"):
        if crate_is_pinned(crate):
            directory.mkdir(parents=True, exist_ok=True)
            return Path(shutil.copy(crate, directory))
    raise BuildError(f"no {name} with the checksum of {MANIFEST} in {home}/registry/cache")


def build(crate: Path, output: Path, jobs: int = 0) -> None:
    """Build the library from `crate` into the file `output`, with up to `jobs` processes.

    Raises BuildError.
    """
    jobs = jobs or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="fastderp-crypto-") as temporary:
        work = Path(temporary)
        source = unpack(crate, work)
        # Error messages have names of source files in them.
        compile_flags = [*COMPILE, f"-ffile-prefix-map={work}=."]
        configure(source, work / "build", compile_flags)
        # Relative paths, because a path of the separate build directory would prevent hits of
        # ccache.
        environment = os.environ | {"CCACHE_BASEDIR": temporary, "CCACHE_NOHASHDIR": "1"}
        targets = ["--target", "crypto", "ssl", "-j", str(jobs)]
        run(["cmake", "--build", work / "build", *targets], environment=environment)
        listing = work / "exports.c"
        listing.write_text(exports(TABLE.read_text(), SHIM.read_text()))
        archives = [work / "build/ssl/libssl.a", work / "build/crypto/libcrypto.a"]
        includes = [f"-I{source / 'include'}", f"-I{HERE}"]
        output.parent.mkdir(parents=True, exist_ok=True)
        linked = work / "_crypto.so"
        run(
            [*(c_compiler() or ["cc"]), *compile_flags, *CHECK, *includes]
            + ["-o", linked, listing, *LINK, *archives, "-lpthread"]
        )
        # Not in place: a process may have the previous file mapped.
        shutil.copy(linked, output.with_suffix(".new"))
        output.with_suffix(".new").replace(output)


def unpack(crate: Path, directory: Path) -> Path:
    """Check the crate against the pin and return the directory of AWS-LC's sources."""
    version, checksum = pinned()
    try:
        is_pinned = crate_is_pinned(crate)
    except OSError as error:
        raise BuildError(f"{crate}: {error.strerror}") from None
    if not is_pinned:
        raise BuildError(f"{crate} is not {CRATE} {version}: its SHA-256 is not {checksum}")
    with tarfile.open(crate) as archive:
        archive.extractall(directory, filter="data")
    unpacked = directory / f"{CRATE}-{version}"
    if (unpacked / "LICENSE").read_bytes() != LICENSE.read_bytes():
        raise BuildError(f"the license of {CRATE} {version} has changed: copy it to {LICENSE}")
    declared = tomllib.loads((unpacked / "Cargo.toml").read_text())["package"]["license"]
    if declared != tomllib.loads(MANIFEST.read_text())["package"]["metadata"]["license"]:
        raise BuildError(f"{CRATE} {version} is under {declared}: put that into {MANIFEST}")
    return unpacked / "aws-lc"


def configure(source: Path, directory: Path, compile_flags: list[str]) -> None:
    flags = " ".join(compile_flags)
    options = CMAKE | {"CMAKE_C_FLAGS_RELEASE": flags, "CMAKE_CXX_FLAGS_RELEASE": flags}
    if shutil.which("ccache"):
        options |= {f"CMAKE_{name}_COMPILER_LAUNCHER": "ccache" for name in ("C", "CXX")}
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    # A CC with arguments ("ccache gcc") is for the linker above; CMake would take it apart.
    environment = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")}
    if len(c_compiler()) == 1:
        environment = dict(os.environ)
    run(["cmake", "-S", source, "-B", directory, *definitions], "pip install cmake", environment)


def c_compiler() -> list[str]:
    """Return the compiler of $CC with its arguments, for example `ccache gcc`; [] without CC."""
    return shlex.split(os.environ.get("CC", ""))


def exports(table: str, shim: str) -> str:
    """Return the C source of the list, in which the compiler checks each function's prototype."""
    members = [member for member in _MEMBER.finditer(table) if member["name"] not in ABSENT]
    taken = " ".join(member["arguments"] for member in members)
    lines = [f'#include "{SHIM.name}"', ""]
    lines += [
        f"typedef {returns} (*{name})({arguments});"
        for returns, name, arguments in _CALLBACK.findall(table)
        if re.search(rf"\b{name}\b", taken)
    ]
    listed = []
    for member in members:
        returns, name, arguments = member["returns"], member["name"], member["arguments"]
        function = f"own_{name}" if re.search(rf"\bown_{name}\(", shim) else name
        # GCC's -Wcast-function-type finds other integers; it takes all pointers for one another.
        lines.append(
            f"static {returns} (*const table_{name})({' '.join(arguments.split())})"
            f" __attribute__((unused)) = ({returns} (*)({' '.join(arguments.split())})){function};"
        )
        listed.append(f'    {{"{name}", (void (*)(void)){function}}},')
    return "\n".join(
        [
            *lines,
            "",
            "typedef struct { const char *name; void (*function)(void); } Export;",
            '__attribute__((visibility("default"))) extern const Export fastderp_crypto[];',
            "const Export fastderp_crypto[] = {",
            *listed,
            "    {0, 0},",
            "};",
            "",
        ]
    )


def run(
    command: list[str | Path], missing: str = "", environment: dict[str, str] | None = None
) -> None:
    """Run a command silently; raise BuildError with the end of its output when it fails."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
    except FileNotFoundError:
        hint = f": {missing}" if missing else ""
        raise BuildError(f"{words[0]} is not installed{hint}") from None
    if done.returncode:
        end = "\n".join(done.stdout.splitlines()[-40:])
        raise BuildError(f"{' '.join(words[:4])} … failed with {done.returncode}:\n{end}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", help="download the crate with cargo")
    fetching.add_argument("directory", type=Path)
    building = commands.add_parser("build", help="build the library from the crate")
    building.add_argument("crate", type=Path)
    building.add_argument("-o", "--output", type=Path, required=True)
    building.add_argument("-j", "--jobs", type=int, default=0)
    arguments = parser.parse_args()
    try:
        if arguments.command == "fetch":
            print(fetch(arguments.directory))
        else:
            build(arguments.crate, arguments.output, arguments.jobs)
            print(f"{arguments.output}: {arguments.output.stat().st_size} bytes")
    except BuildError as error:
        sys.exit(f"build_crypto: {error}")


if __name__ == "__main__":
    main()
