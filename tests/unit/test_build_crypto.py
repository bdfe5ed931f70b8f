"""Building the crypto library of the wheels: the pin, and the list of functions."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "crypto" / "build_crypto.py"
OF_OPENSSL_3 = {
    "EVP_CIPHER_fetch",
    "EVP_default_properties_is_fips_enabled",
    "OPENSSL_init_crypto",
    "OSSL_PROVIDER_add_builtin",
    "OSSL_PROVIDER_try_load",
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
    listed = re.findall(r'^ +\{"(\w+)", \(void', done.stdout, re.M)
    table = (ROOT / "fastderp" / "tls" / "openssl.pxd").read_text()
    declared = re.findall(r"\(\*(\w+)\)\([^()]*\) noexcept nogil", table.partition("Crypto:")[2])
    assert sorted(listed) == sorted(set(declared) - OF_OPENSSL_3)
