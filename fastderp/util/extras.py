"""The error for a library that only some features need: it belongs to an extra of the package."""

from __future__ import annotations


class MissingExtra(ImportError):
    """A library of an extra is not installed; the text has the command that installs it."""

    def __init__(self, extra: str, feature: str) -> None:
        """Name an extra of pyproject.toml, and what needs it, in the plural."""
        super().__init__(
            f"{feature} need libraries that are not installed: pip install 'fastderp[{extra}]'"
        )
