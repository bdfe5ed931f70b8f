"""The OpenSSL of this process, found at run time: the one of Python's ssl module, if any."""

from typing import Final

MINIMUM: Final[int]
"""Oldest OpenSSL accepted, in its own numbering."""

VERSION: Final[str]
"""Version text of the OpenSSL in use."""

def load_first(candidates: list[str]) -> str:
    """Use the first library that has every function; return its version. Runs at import.

    A candidate is the path or name of a library that is or loads libssl; "" is the program itself.
    Raises ImportError that says what to install and why each candidate was refused; the previous
    library stays in use.
    """
