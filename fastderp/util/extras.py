"""Libraries that are missing: those of an extra of the package, or of a broken installation."""

from __future__ import annotations


class MissingExtra(ImportError):
    """A library of an extra is not installed; the text has the command that installs it."""

    def __init__(self, extra: str, feature: str) -> None:
        """Name an extra of pyproject.toml, and what needs it, in the plural."""
        # `args` are the arguments of the constructor, so that the error can be pickled.
        super().__init__(extra, feature)

    def __str__(self) -> str:
        extra, feature = self.args
        return f"{feature} need libraries that are not installed: pip install 'fastderp[{extra}]'"


def import_text(error: ImportError) -> str:
    """Return the text of a failed import, with the command that repairs an installation."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error}: repair the installation: pip install --force-reinstall fastderp"
    return str(error)
