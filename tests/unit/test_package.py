"""The package: public names, cheap imports, `python -m fastderp`."""

import subprocess
import sys

import pytest

import fastderp


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("name", [*fastderp.__all__, "__version__"])
def test_every_public_name_exists(name: str) -> None:
    assert getattr(fastderp, name) is not None
    assert name in dir(fastderp)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Sever'"):
        _ = fastderp.Sever


def test_reading_the_wire_needs_neither_crypto_nor_a_loop() -> None:
    loaded = run("-c", "import sys, fastderp.wire.protocol; print(*sys.modules)").stdout.split()
    assert "fastderp.wire.protocol" in loaded
    assert not {"nacl", "asyncio", "ssl", "cryptography", "fastderp.dataplane.plane"} & set(loaded)


def test_python_m_fastderp_shows_the_commands_and_the_installed_parts() -> None:
    shown = run("-m", "fastderp")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "fastderp-relay --dev" in shown.stdout
    assert "fastderp-bench http" in shown.stdout
    assert "uvloop" in shown.stdout
    assert shown.stderr == ""


def test_missing_parts_are_named_beside_the_others() -> None:
    hide = (
        "import sys; sys.modules['uvloop'] = None;"
        "from fastderp.__main__ import main; sys.exit(main())"
    )
    shown = run("-c", hide)
    assert shown.returncode == 69
    assert "uvloop     missing" in shown.stdout
    assert "repaired: uvloop" in shown.stdout
    assert "data plane compiled" in shown.stdout
