"""Public docstrings have the purpose, every argument and the section of the protocol."""

import ast
import asyncio
import builtins
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

import fastderp

NOT_IN_PROTOCOL = {
    "DerpError",  # the base of all errors
}
# in a compiled module that only relays import; Server's docstring names the module
PLANE_ERROR = "PlaneError"
# special methods that users call with arguments
CALLED_BY_USERS = {"__init__", "__call__"}

EXPORTED = {name: getattr(fastderp, name) for name in fastderp.__all__}
CLASSES = {name: value for name, value in EXPORTED.items() if inspect.isclass(value)}
FUNCTIONS = {name: value for name, value in EXPORTED.items() if inspect.isfunction(value)}
VALUES = EXPORTED.keys() - CLASSES.keys() - FUNCTIONS.keys()


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield our public methods and properties of a class, inherited ones included."""
    for base in cls.__mro__:
        if base.__module__.startswith("fastderp."):
            for name, member in vars(base).items():
                if name in CALLED_BY_USERS or not name.startswith("_"):
                    yield name, member


def function_of(member: Any) -> Callable[..., object] | None:
    """Return the function in a method or property; None for anything else."""
    if isinstance(member, property):
        return member.fget
    if isinstance(member, cached_property):
        return member.func
    function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
    # `typing` adds its own __init__ to a Protocol.
    return (
        function
        if inspect.isfunction(function) and function.__module__.startswith("fastderp.")
        else None
    )


def documented() -> Iterator[tuple[str, Callable[..., object], str]]:
    """Yield each public function, method and property getter with its documentation.

    For `__init__` that includes the class's.
    """
    for name, function in FUNCTIONS.items():
        yield name, function, function.__doc__ or ""
    for class_name, cls in CLASSES.items():
        for name, member in members(cls):
            method = function_of(member)
            if method is None:
                continue
            text = method.__doc__ or ""
            if name == "__init__":
                text += cls.__doc__ or ""
            yield f"{class_name}.{name}", method, text


DOCUMENTED = {name: (function, text) for name, function, text in documented()}


def string_after(module: str, name: str) -> str:
    """Return the string after the assignment of a name, its documentation in editors."""
    source = Path(str(sys.modules[module].__file__)).read_text()
    body = ast.parse(source).body
    for statement, following in zip(body, body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.target.id == name
        ):
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                return str(following.value.value)
    return ""


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_class_has_a_docstring(name: str) -> None:
    text = vars(CLASSES[name]).get("__doc__") or ""
    # A dataclass without a docstring gets its signature as one.
    assert text and not text.startswith(f"{name}(")


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_public_function_has_a_docstring(name: str) -> None:
    _, text = DOCUMENTED[name]
    assert text


@pytest.mark.parametrize("name", sorted(VALUES))
def test_every_public_value_has_a_docstring(name: str) -> None:
    assert "PROTOCOL §" in string_after(fastderp._HOME_OF[name], name)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_argument_is_named_in_its_functions_docstring(name: str) -> None:
    function, text = DOCUMENTED[name]
    arguments = inspect.signature(function).parameters.keys() - {"self", "cls"}
    assert {argument for argument in arguments if not re.search(rf"\b{argument}\b", text)} == set()


@pytest.mark.parametrize("name", [*CLASSES, *FUNCTIONS])
def test_every_public_class_and_function_names_its_section_of_the_protocol(name: str) -> None:
    assert ("PROTOCOL §" in (EXPORTED[name].__doc__ or "")) != (name in NOT_IN_PROTOCOL)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_error_that_a_public_docstring_names_is_public(name: str) -> None:
    _, text = DOCUMENTED[name]
    errors = set(re.findall(r"\b[A-Z]\w+(?:Error|Lost|Closed|Timeout)\b", text))
    known = {*EXPORTED, *vars(builtins), *vars(asyncio), PLANE_ERROR}
    assert errors - known == set()
