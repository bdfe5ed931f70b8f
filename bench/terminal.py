"""Tables on the terminal, by rich, which an extra of the package brings."""

from __future__ import annotations

from fastderp.util.extras import MissingExtra

try:
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise MissingExtra("bench", "the tables of the benches") from error

__all__ = ["Console", "Table"]
