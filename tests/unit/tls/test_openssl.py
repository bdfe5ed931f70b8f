"""Finding OpenSSL at run time."""

import ssl
import subprocess
import sys

import pytest

from fastderp.tls import openssl


def version_without_ssl_module() -> str:
    """Return the OpenSSL that a Python without a loadable ssl module gets."""
    code = "import sys; sys.modules['_ssl'] = None; from fastderp.tls import openssl; print(openssl.VERSION)"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_openssl_in_use_is_the_one_python_has_loaded() -> None:
    assert openssl.VERSION == ssl.OPENSSL_VERSION


def test_a_python_without_its_own_libssl_gets_the_systems() -> None:
    try:
        version = version_without_ssl_module()
    except subprocess.CalledProcessError as error:
        assert "libssl" in error.stderr
        pytest.skip("no libssl in the system's library path")
    assert version.startswith("OpenSSL ")


def test_without_any_libssl_the_refusal_says_what_to_install_and_what_was_tried() -> None:
    with pytest.raises(
        ImportError,
        match=r"install.*libssl3.*/nowhere/libssl\.so: cannot be opened.*libc\.so\.6: no ",
    ):
        openssl.load_first(["/nowhere/libssl.so", "libc.so.6"])
