"""The crypto library of this process, found at run time: the wheel's own, or an OpenSSL.

The environment variable FASTDERP_CRYPTO chooses: `bundled`, `system`, or the path of a libssl.
Without it the bundled library is used if there is one. An unusable library raises ImportError when
this module is imported, an invalid value UsageError.
"""

from typing import Final

BUNDLED: Final[str]
"""The path of a wheel's crypto library."""

MINIMUM: Final[int]
"""Oldest OpenSSL accepted, in its own numbering."""

LIBRARY: Final[str]
"""`OpenSSL` or `AWS-LC`."""

VERSION: Final[str]
"""Version text of the library in use, which begins with its name."""

SOURCE: Final[str]
"""`bundled`, `system`, or the path that FASTDERP_CRYPTO gives."""

def system_libraries() -> list[str]:
    """Name what `system` opens, best first: the extension of Python's ssl loads its libraries."""

def choose(wanted: str) -> tuple[str, str]:
    """Use the library that FASTDERP_CRYPTO=wanted selects; return VERSION and SOURCE.

    Runs at import. Raises ImportError for a library that cannot be used, UsageError for an invalid
    value; the previous library stays in use.
    """

def load_first(candidates: list[str]) -> str:
    """Use the first library that has every function; return its version.

    A candidate is the path or name of a library that is or loads libssl; "" is the program itself.
    Raises ImportError with the package to install and the reason for each refused candidate; the
    previous library stays in use.
    """
