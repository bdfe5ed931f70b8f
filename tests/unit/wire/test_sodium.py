"""NaCl's box, compiled and in plain Python, beside PyNaCl's own functions. PROTOCOL §1."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import nacl
import pytest
from nacl.public import Box, PrivateKey

from fastderp.wire import portable_sodium, sodium
from tests.kit.memory import sanitizer_variables

IMPLEMENTATIONS = (sodium, portable_sodium)
OURS, THEIRS = PrivateKey(bytes(range(1, 33))), PrivateKey(bytes(range(33, 65)))
NONCE = bytes(range(24))


@pytest.fixture(params=IMPLEMENTATIONS, ids=["compiled", "portable"])
def boxes(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


@pytest.fixture
def shared(boxes: ModuleType) -> bytes:
    key: bytes = boxes.shared_key(bytes(THEIRS.public_key), bytes(OURS))
    return key


def test_two_keys_agree_as_in_pynacl(boxes: ModuleType, shared: bytes) -> None:
    assert shared == Box(OURS, THEIRS.public_key).shared_key()
    assert boxes.shared_key(bytes(OURS.public_key), bytes(THEIRS)) == shared
    assert boxes.public_key(bytes(OURS)) == bytes(OURS.public_key)


@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17, 24, 4096, 70000])
def test_a_box_opens_in_pynacl_and_pynacls_box_opens_here(
    boxes: ModuleType, shared: bytes, n: int
) -> None:
    message = bytes(i % 251 for i in range(n))
    sealed = boxes.seal(shared, NONCE, message)
    assert sealed == Box(THEIRS, OURS.public_key).encrypt(message, NONCE).ciphertext
    assert boxes.open_sealed(shared, NONCE, sealed) == message


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 17, 20])
def test_a_box_that_is_cut_or_changed_does_not_open(
    boxes: ModuleType, shared: bytes, cut: int
) -> None:
    sealed = boxes.seal(shared, NONCE, b"packet")
    assert boxes.open_sealed(shared, NONCE, sealed[:cut]) is None
    for i in range(len(sealed)):
        changed = sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1 :]
        assert boxes.open_sealed(shared, NONCE, changed) is None
    assert boxes.open_sealed(shared, NONCE[:-1], sealed) is None
    assert boxes.open_sealed(shared, bytes(24), sealed) is None


def test_no_key_is_shared_with_a_key_of_low_order(boxes: ModuleType) -> None:
    assert boxes.shared_key(bytes(32), bytes(OURS)) is None
    assert boxes.shared_key(b"\1" + bytes(31), bytes(OURS)) is None


def test_secrets_are_compared(boxes: ModuleType) -> None:
    secret = bytes(range(32))
    assert boxes.are_equal(secret, bytes(range(32)))
    assert not boxes.are_equal(secret, bytes(31) + b"\1")


@pytest.mark.parametrize("n", [0, 31, 33])
def test_keys_of_another_size_are_refused(n: int) -> None:
    key, wrong = bytes(OURS), bytes(range(1, n + 1))
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        sodium.shared_key(wrong, key)
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        sodium.shared_key(key, wrong)
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        sodium.public_key(wrong)
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        sodium.seal(wrong, NONCE, b"")
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        sodium.open_sealed(wrong, NONCE, bytes(16))
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        sodium.are_equal(key, wrong)


def imported(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Open a box in a process that finds its `nacl` in `tmp_path`."""
    program = "from fastderp.wire.sodium import public_key; print(public_key(bytes(range(1, 33))))"
    path = os.pathsep.join([str(tmp_path), str(Path(sodium.__file__).parents[2])])
    environment = {"PYTHONPATH": path} | sanitizer_variables()
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("library", "text"),
    [
        (None, "ModuleNotFoundError: No module named 'nacl._sodium'"),
        (b"no library", "ImportError: "),
        (Path(sodium.__file__), "ImportError: "),
    ],
    ids=["missing", "broken", "other"],
)
def test_an_installation_without_libsodium_is_named(
    tmp_path: Path, library: bytes | Path | None, text: str
) -> None:
    (tmp_path / "nacl").mkdir()
    (tmp_path / "nacl/__init__.py").touch()
    file = tmp_path / f"nacl/_sodium{EXTENSION_SUFFIXES[0]}"
    if isinstance(library, bytes):
        file.write_bytes(library)
    elif library:
        shutil.copy(library, file)
    said = imported(tmp_path).stderr.splitlines()[-1]
    assert said.startswith(text) and ("_sodium" in said)


def test_a_pynacl_that_hides_the_symbols_of_libsodium_is_used_by_its_bindings(
    tmp_path: Path,
) -> None:
    [real] = Path(nacl.__file__).parent.glob("_sodium*.so")
    (tmp_path / "nacl").mkdir()
    (tmp_path / "nacl/__init__.py").touch()
    (tmp_path / "nacl/_sodium.py").write_text(f"""
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
spec = spec_from_loader("_sodium", ExtensionFileLoader("_sodium", {str(real)!r}))
module = module_from_spec(spec)
spec.loader.exec_module(module)
ffi, lib = module.ffi, module.lib
""")
    done = imported(tmp_path)
    assert done.stdout == f"{bytes(OURS.public_key)!r}\n", done.stderr
