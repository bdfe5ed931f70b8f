"""The base of immutable objects whose constructor checks or derives attributes.

Objects without such a constructor are named tuples. Dataclasses take more memory: the module and the
methods that it compiles for each class stay in every idle relay.
"""

from __future__ import annotations

from typing import NoReturn


class Value:
    """An immutable object, compared and hashed by the arguments of its constructor.

    A subclass names these arguments in `__match_args__`, and sets the attributes with `_set`.
    """

    __slots__ = ()

    def _set(self, **attributes: object) -> None:
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    def _names(self) -> tuple[str, ...]:
        return type(self).__match_args__  # type: ignore[attr-defined, no-any-return]

    def _arguments(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self._names())

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"cannot assign {name!r}: {type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"cannot delete {name!r}: {type(self).__name__} is immutable")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._arguments() == other._arguments()

    def __hash__(self) -> int:
        return hash(self._arguments())

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), self._arguments()

    def __repr__(self) -> str:
        pairs = zip(self._names(), self._arguments(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in pairs)})"
