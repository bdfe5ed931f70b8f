"""Texts about the crypto library in use."""

from pathlib import Path

import pytest

from fastderp.tls import library

SKYLAKE = "flags\t\t: fpu aes avx512f avx512bw avx512dq avx512vl"
ICE_LAKE = f"{SKYLAKE} vaes vpclmulqdq"


@pytest.fixture
def on_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(library, "_CPUINFO", str(cpuinfo))
    return cpuinfo


def test_the_description_has_name_version_and_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "VERSION", "OpenSSL 3.0.19 27 Jan 2026")
    monkeypatch.setattr(library, "LIBRARY", "OpenSSL")
    monkeypatch.setattr(library, "SOURCE", "system")
    assert library.description() == "OpenSSL 3.0.19 (system)"
    assert library.labels() == ("OpenSSL", "3.0.19", "system")


@pytest.mark.parametrize(
    ("version", "uses"),
    [
        ("OpenSSL 1.1.1w  11 Sep 2023", False),
        ("OpenSSL 3.0.19 27 Jan 2026", False),
        ("OpenSSL 3.1.0 14 Mar 2023", True),
        ("OpenSSL 4.0.3 29 Sep 2026", True),
        ("AWS-LC 5.12.0", True),
    ],
)
def test_only_a_slow_library_on_a_fast_processor_gets_a_line(
    version: str, uses: bool, on_processor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "VERSION", version)
    on_processor.write_text(f"processor : 0\n{SKYLAKE}\n")
    assert library.hint() is None
    on_processor.write_text(f"processor : 0\n{ICE_LAKE}\n")
    assert (library.hint() is None) is uses


def test_the_line_names_the_library_in_use_and_the_better_one(
    on_processor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "VERSION", "OpenSSL 3.0.19 27 Jan 2026")
    on_processor.write_text(ICE_LAKE)
    hint = library.hint()
    assert hint is not None
    assert "that OpenSSL 3.0.19 does not use" in hint
    assert "OpenSSL 3.1 or later" in hint
    assert "FASTDERP_CRYPTO=bundled" in hint


def test_a_system_without_cpuinfo_gets_no_line(
    on_processor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "VERSION", "OpenSSL 3.0.19 27 Jan 2026")
    assert library.hint() is None
