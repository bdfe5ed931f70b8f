"""Tables on the terminal, by rich, which an extra of the package brings."""

from __future__ import annotations

from functools import partial

from fastderp.util.extras import MissingExtra

try:
    import rich.console
    from rich.table import Table
except ImportError as error:
    raise MissingExtra("bench", "the tables of the benches") from error

__all__ = ["Console", "Table"]

# Names and errors may have brackets, which are not markup.
Console = partial(rich.console.Console, markup=False)
