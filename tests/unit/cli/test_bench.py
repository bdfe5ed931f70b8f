"""The errors of `fastderp-bench` that no flag causes."""

from __future__ import annotations

import pytest

from fastderp.cli import bench


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("can't start new thread"), "No thread available"),
        (MemoryError(), "Cannot allocate memory"),
        (OSError(12, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory"),
    ],
)
def test_a_shortage_of_the_system_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    line: str,
) -> None:
    def short(*_: object) -> int:
        raise error

    monkeypatch.setattr(bench, "_bench", short)
    assert bench.main(["http://127.0.0.1:1/derp"]) == 71
    assert capsys.readouterr().err == f"fastderp-bench: {line}\n"


def test_another_internal_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> int:
        raise RuntimeError("wrong")

    monkeypatch.setattr(bench, "_bench", wrong)
    with pytest.raises(RuntimeError, match="wrong"):
        bench.main(["http://127.0.0.1:1/derp"])
