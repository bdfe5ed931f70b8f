"""Finds members of JSON objects by name in any case, as Go programs do. Any thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

V = TypeVar("V")


def folded(document: Mapping[str, V]) -> dict[str, V]:
    """Return an object's members by case-folded name; the last of several that differ in case."""
    return {name.casefold(): value for name, value in document.items()}
