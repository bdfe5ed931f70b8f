"""Building the crypto library of the wheels: the pin, and the list of functions."""

import ctypes
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "crypto" / "build_crypto.py"
BUILT = ROOT / "fastderp" / "tls" / "_crypto.so"
OF_OPENSSL_3 = {
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


def build(crate: Path, output: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, BUILD, "build", crate, "-o", output], capture_output=True, text=True
    )
    return done.returncode, done.stderr


def test_another_crate_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    crate = tmp_path / "aws-lc-sys-0.1.0.crate"
    crate.write_bytes(b"something else")
    code, said = build(crate, tmp_path / "_crypto.so")
    assert code == 1
    assert re.fullmatch(
        rf"build_crypto: {crate} is not aws-lc-sys [\d.]+: its SHA-256 is not [0-9a-f]{{64}}\n",
        said,
    )
    assert not (tmp_path / "_crypto.so").exists()


def test_a_crate_that_is_not_there_is_named(tmp_path: Path) -> None:
    crate = tmp_path / "none.crate"
    assert build(crate, tmp_path / "_crypto.so") == (
        1,
        f"build_crypto: {crate}: No such file or directory\n",
    )


def wanted() -> list[str]:
    """Return the functions of the table that AWS-LC has, sorted."""
    table = (ROOT / "fastderp" / "tls" / "openssl.pxd").read_text()
    declared = re.findall(r"\(\*(\w+)\)\([^()]*\) noexcept nogil", table.partition("Crypto:")[2])
    return sorted(set(declared) - OF_OPENSSL_3)


def test_each_function_of_the_table_is_listed_once() -> None:
    script = f"""
import sys
sys.path.insert(0, {str(BUILD.parent)!r})
import build_crypto as b
print(b.exports(b.TABLE.read_text(), b.SHIM.read_text()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert sorted(re.findall(r'^ +\{"(\w+)", \(void', done.stdout, re.M)) == wanted()


@pytest.mark.skipif(not BUILT.exists(), reason="no library is built")
def test_the_built_library_is_that_of_the_table() -> None:
    class Export(ctypes.Structure):
        _fields_ = (("name", ctypes.c_char_p), ("function", ctypes.c_void_p))

    export = ctypes.pointer(Export.in_dll(ctypes.CDLL(str(BUILT)), "fastderp_crypto"))
    named = (export[i].name for i in itertools.count())
    assert sorted(name.decode() for name in itertools.takewhile(bool, named)) == wanted()
