"""Checks of the types of arguments that callers give to the library. Any thread."""

from __future__ import annotations


def check_type(name: str, value: object, wanted: type) -> None:
    """Raise TypeError that names the argument, the expected type and the given type.

    It never quotes the value, which may be a secret.
    """
    if not isinstance(value, wanted):
        reads_text = isinstance(value, str) and hasattr(wanted, "from_text")
        remedy = f"; {wanted.__name__}.from_text reads its text" if reads_text else ""
        article = "an" if wanted.__name__[0] in "AEIOU" else "a"
        raise TypeError(
            f"{name} must be {article} {wanted.__name__}, not {type(value).__name__}{remedy}"
        )
