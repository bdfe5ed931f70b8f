"""Finding the crypto library at run time: the wheel's own, Python's, the system's, a given one."""

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from bench.relays import c_compiler
from fastderp.errors import UsageError
from fastderp.tls import openssl
from tests.kit.compiler import has_c_compiler

HAS_BUNDLED = os.path.exists(openssl.BUNDLED)
needs_bundled = pytest.mark.skipif(not HAS_BUNDLED, reason="this installation brings no library")
needs_none = pytest.mark.skipif(HAS_BUNDLED, reason="this installation brings a library")


def library_with(
    crypto: str | None, before: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    """Have a fresh Python print VERSION and SOURCE with FASTDERP_CRYPTO=crypto."""
    env = {name: value for name, value in os.environ.items() if name != "FASTDERP_CRYPTO"} | more
    if crypto is not None:
        env["FASTDERP_CRYPTO"] = crypto
    code = f"{before}\nfrom fastderp.tls import openssl as o; print(o.VERSION, o.SOURCE, sep='\\n')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)


def test_the_systems_library_is_the_one_that_python_has_loaded() -> None:
    assert library_with("system").stdout.split("\n")[:2] == [ssl.OPENSSL_VERSION, "system"]


@needs_bundled
@pytest.mark.parametrize("crypto", [None, "", "bundled"])
def test_a_bundled_library_is_used_unless_another_one_is_selected(
    crypto: str | None,
) -> None:
    version, source = library_with(crypto).stdout.splitlines()
    assert version.startswith("AWS-LC ")
    assert source == "bundled"


@needs_bundled
def test_the_bundled_library_shows_the_process_no_other_symbol_than_its_list() -> None:
    defined = subprocess.run(
        ["nm", "-D", "--defined-only", openssl.BUNDLED], capture_output=True, text=True, check=True
    )
    assert [line.split()[-1] for line in defined.stdout.splitlines()] == ["fastderp_crypto"]


@needs_none
def test_without_a_bundled_library_the_systems_is_used() -> None:
    assert library_with(None).stdout.split("\n")[1] == "system"


@needs_none
def test_selecting_an_absent_bundled_library_names_the_next_step() -> None:
    with pytest.raises(ImportError, match=r"bundled.*as wheels do.*leave the variable out"):
        openssl.choose("bundled")


def test_a_python_without_its_own_libssl_gets_the_systems() -> None:
    found = library_with("system", before="import sys; sys.modules['_ssl'] = None")
    if found.returncode:
        assert "libssl" in found.stderr
        pytest.skip("no libssl in the system's library path")
    assert found.stdout.startswith("OpenSSL ")


def test_without_any_libssl_the_error_names_the_package_and_the_tried_paths() -> None:
    with pytest.raises(
        ImportError,
        match=r"install.*libssl3.*/nowhere/libssl\.so: cannot open.*libc\.so\.6: has no ",
    ):
        openssl.load_first(["/nowhere/libssl.so", "libc.so.6"])


def test_a_path_is_the_library_in_use() -> None:
    path = next(
        name for name in reversed(openssl.system_libraries()) if name.startswith("/")
    )  # Python's extension, which loads libssl
    version, source = library_with(path).stdout.splitlines()
    assert (version, source) == (ssl.OPENSSL_VERSION, path)


def test_a_path_without_a_library_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(
        ImportError, match=r"^the crypto library /nowhere/libssl\.so cannot be used"
    ):
        openssl.choose("/nowhere/libssl.so")
    (tmp_path / "libssl.so").write_text("no library")
    with pytest.raises(ImportError, match=r"libssl\.so cannot be used: .*(header|short)"):
        openssl.choose(str(tmp_path / "libssl.so"))


@pytest.mark.skipif(not has_c_compiler(), reason="no C compiler")
def test_a_library_that_needs_a_newer_libcrypto_is_refused_with_the_way_to_use_it(
    tmp_path: Path,
) -> None:
    source, library = tmp_path / "ssl.c", tmp_path / "libssl.so"
    source.write_text("int newer(void); int (*use)(void) = newer;")
    subprocess.run([*c_compiler(), "-shared", "-fPIC", "-o", library, source], check=True)
    with pytest.raises(
        ImportError, match=rf"undefined symbol: newer; .*LD_LIBRARY_PATH={tmp_path}$"
    ):
        openssl.choose(str(library))


def test_an_invalid_choice_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(UsageError, match=r"^FASTDERP_CRYPTO='openssl': it is bundled, system, or "):
        openssl.choose("openssl")


def test_a_refused_choice_leaves_the_library_in_use_alone() -> None:
    version = openssl.VERSION
    for wanted in ("/nowhere/libssl.so", "openssl"):
        with pytest.raises((ImportError, UsageError)):
            openssl.choose(wanted)
    assert version == openssl.VERSION
