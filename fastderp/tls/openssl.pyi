"""The OpenSSL this process uses: found at run time, the one of Python's own ssl module where there is one."""

from typing import Final

MINIMUM: Final[int]
"""Oldest OpenSSL accepted, in its own numbering."""

VERSION: Final[str]
"""Version text of the OpenSSL in use."""

def load_first(candidates: list[str]) -> str:
    """Use the first library that has everything; return its version. Runs at import.

    A candidate is the path or name of a library that is or brings libssl, "" the program itself. Raises ImportError
    that says what to install and what was wrong with each candidate; what was in use stays in use.
    """
