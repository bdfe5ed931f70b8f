"""The TLS 1.3 key derivation that OpenSSL takes from us, beside OpenSSL's own."""

import _ssl
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastderp.tls import openssl

pytestmark = pytest.mark.skipif(
    not openssl.VERSION.startswith(("OpenSSL 3", "OpenSSL 4")) or openssl.SOURCE != "system",
    reason="the library is not an OpenSSL with providers that Python has loaded",
)

EXTRACT_ONLY, EXPAND_ONLY = 1, 2
INTEGER, UTF8_STRING, OCTET_STRING = 1, 4, 5
HASH_SIZES = {b"SHA2-256": 32, b"SHA2-384": 48}
AVAILABLE = """
import ctypes, _ssl
import fastderp.tls.context
library = ctypes.CDLL(getattr(_ssl, "__file__", None))
print(library.OSSL_PROVIDER_available(None, b"fastderp"))
"""
FIPS = """
openssl_conf = init
[init]
alg_section = algorithms
[algorithms]
default_properties = fips=yes
"""


class Param(ctypes.Structure):
    _fields_ = (
        ("key", ctypes.c_char_p),
        ("data_type", ctypes.c_uint),
        ("data", ctypes.c_void_p),
        ("data_size", ctypes.c_size_t),
        ("return_size", ctypes.c_size_t),
    )


def crypto() -> ctypes.CDLL:
    """Return the libcrypto of this process, with the results of the functions used here."""
    library = ctypes.CDLL(getattr(_ssl, "__file__", None))
    for name in ("EVP_KDF_fetch", "EVP_KDF_CTX_new", "EVP_KDF_get0_provider"):
        getattr(library, name).restype = ctypes.c_void_p
    library.OSSL_PROVIDER_get0_name.restype = ctypes.c_char_p
    return library


@contextmanager
def fetched(query: bytes | None) -> Iterator[ctypes.c_void_p]:
    library = crypto()
    kdf = ctypes.c_void_p(library.EVP_KDF_fetch(None, b"TLS13-KDF", query))
    assert kdf
    yield kdf
    library.EVP_KDF_free(kdf)


def derive(provider: str, size: int, arguments: dict[bytes, int | str | bytes]) -> bytes | None:
    """Return what a provider derives from the parameters; None when it refuses them."""
    library = crypto()
    parameters = (Param * (len(arguments) + 1))()
    kept = []
    for parameter, (key, value) in zip(parameters, arguments.items(), strict=False):
        parameter.key = key
        if isinstance(value, int):
            buffer: ctypes.Array[ctypes.c_char] = ctypes.create_string_buffer(
                value.to_bytes(4, sys.byteorder), 4
            )
            parameter.data_type = INTEGER
        elif isinstance(value, str):
            buffer = ctypes.create_string_buffer(value.encode())
            parameter.data_type = UTF8_STRING
        else:
            buffer = ctypes.create_string_buffer(value, max(1, len(value)))
            parameter.data_type = OCTET_STRING
        kept.append(buffer)
        parameter.data = ctypes.addressof(buffer)
        parameter.data_size = len(value) if not isinstance(value, int) else 4
    out = ctypes.create_string_buffer(size)
    with fetched(f"provider={provider}".encode()) as kdf:
        context = ctypes.c_void_p(library.EVP_KDF_CTX_new(kdf))
        done = library.EVP_KDF_derive(context, out, ctypes.c_size_t(size), parameters)
        library.EVP_KDF_CTX_free(context)
        library.ERR_clear_error()
    return out.raw if done == 1 else None


@given(data=st.data(), name=st.sampled_from(sorted(HASH_SIZES)), label=st.binary(max_size=12))
def test_expanded_secrets_are_those_of_openssl(
    data: st.DataObject, name: bytes, label: bytes
) -> None:
    size = HASH_SIZES[name]
    arguments: dict[bytes, int | str | bytes] = {
        b"mode": EXPAND_ONLY,
        b"digest": name.decode(),
        b"key": data.draw(st.binary(min_size=size, max_size=size)),
        b"prefix": b"tls13 ",
        b"label": label,
    }
    if data.draw(st.booleans()):
        arguments[b"data"] = data.draw(st.binary(min_size=size, max_size=size))
    n = data.draw(st.integers(1, size))
    expected = derive("default", n, arguments)
    assert expected is not None
    assert derive("fastderp", n, arguments) == expected


@given(
    data=st.data(),
    name=st.sampled_from(sorted(HASH_SIZES)),
    key=st.none() | st.binary(min_size=1, max_size=1200),
)
def test_extracted_secrets_are_those_of_openssl(
    data: st.DataObject, name: bytes, key: bytes | None
) -> None:
    size = HASH_SIZES[name]
    arguments: dict[bytes, int | str | bytes] = {
        b"mode": EXTRACT_ONLY,
        b"digest": name.decode(),
        b"prefix": b"tls13 ",
        b"label": b"derived",
    }
    if key is not None:
        arguments[b"key"] = key
    if data.draw(st.booleans()):
        arguments[b"salt"] = data.draw(st.binary(min_size=size, max_size=size))
    expected = derive("default", size, arguments)
    assert expected is not None
    assert derive("fastderp", size, arguments) == expected


@pytest.mark.parametrize(
    "changed",
    [
        {b"mode": 0},
        {b"digest": "SHA2-512"},
        {b"key": bytes(31)},
        {b"prefix": b"dtls13"},
        {b"prefix": b""},
        {b"label": bytes(33)},
        {b"data": bytes(33)},
    ],
)
def test_arguments_that_tls_13_does_not_use_are_refused(
    changed: dict[bytes, int | str | bytes],
) -> None:
    arguments: dict[bytes, int | str | bytes] = {
        b"mode": EXPAND_ONLY,
        b"digest": "SHA2-256",
        b"key": bytes(32),
        b"prefix": b"tls13 ",
        b"label": b"key",
        b"data": b"",
    }
    assert derive("fastderp", 16, arguments) is not None
    assert derive("fastderp", 16, arguments | changed) is None
    assert derive("fastderp", 33, arguments) is None


def test_other_users_of_openssl_keep_its_own_derivation() -> None:
    library = crypto()
    with fetched(None) as kdf:
        provider = ctypes.c_void_p(library.EVP_KDF_get0_provider(kdf))
        assert library.OSSL_PROVIDER_get0_name(provider) == b"default"


@pytest.mark.parametrize(("config", "n_providers"), [("", 1), (FIPS, 0)])
def test_with_fips_openssls_derivation_stays_in_use(
    tmp_path: Path, config: str, n_providers: int
) -> None:
    (tmp_path / "openssl.cnf").write_text(config)
    done = subprocess.run(
        [sys.executable, "-c", AVAILABLE],
        capture_output=True,
        text=True,
        env=os.environ | {"OPENSSL_CONF": str(tmp_path / "openssl.cnf")},
    )
    assert done.stdout.split() == [str(n_providers)], done.stderr
