"""The exceptions of the package can cross the border of a process."""

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Iterator

import pytest

import fastderp
from fastderp.errors import IssuanceError, LoginError
from fastderp.tls.errors import TlsError
from fastderp.util.extras import MissingExtra

# the arguments of those that take more than a text
ARGUMENTS: dict[type, tuple[str, ...]] = {
    LoginError: ("box", "a text"),
    TlsError: ("handshake", "a text"),
    MissingExtra: ("acme", "certificates"),
}


def exceptions() -> Iterator[type[Exception]]:
    """Yield the public classes of exceptions."""
    for module in pkgutil.walk_packages(fastderp.__path__, "fastderp."):
        if module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if (
                isinstance(value, type)
                and issubclass(value, fastderp.DerpError | MissingExtra)
                and value.__module__ == module.name
                and not name.startswith("_")
            ):
                yield value


@pytest.mark.parametrize("kind", list(exceptions()), ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling_and_copying(kind: type[Exception]) -> None:
    error = kind(*ARGUMENTS.get(kind, ("a text",)))
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is kind
        assert str(other) == str(error) and vars(other) == vars(error)
    assert str(error).startswith(("a text", "certificates"))


def test_an_error_keeps_its_attributes_when_it_is_pickled() -> None:
    assert pickle.loads(pickle.dumps(LoginError("denied", "no"))).reason == "denied"
    assert pickle.loads(pickle.dumps(IssuanceError("wait", rate_limited=True))).rate_limited
