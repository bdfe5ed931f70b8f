"""Escapes text from peers and operators for a terminal and a log; finds what was mistyped."""

from __future__ import annotations

from collections.abc import Iterable

_LIMIT_CHARACTERS = 80


def printable(text: str) -> str:
    """Return a text as one line of up to 80 printable ASCII characters, the others escaped."""
    escaped = text.encode("unicode_escape").decode()
    return (
        escaped if len(escaped) <= _LIMIT_CHARACTERS else escaped[: _LIMIT_CHARACTERS - 3] + "..."
    )


def one_line(text: str) -> str:
    """Return a whole text as one line; characters that cannot be printed are escaped."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the one of `names` that a mistyped name probably means; "" if none is close."""
    import difflib

    return next(iter(difflib.get_close_matches(name, list(names), n=1)), "")


def html_text(text: str) -> str:
    """Escape a text for HTML, as `html.escape` does; importing that takes 0.4 MiB."""
    for character, name in (("&", "amp"), ("<", "lt"), (">", "gt"), ('"', "quot"), ("'", "#x27")):
        text = text.replace(character, f"&{name};")
    return text
