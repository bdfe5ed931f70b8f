"""Reads the settings from flags, FASTDERP_ variables and the file of -config, in this precedence.

Errors are one line that names the place, the value and the accepted values.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastderp.cli.flag_table import SECTIONS, flag_table
from fastderp.cli.flags import Flag, parse
from fastderp.errors import ConfigError, UsageError
from fastderp.util import files
from fastderp.util.text import nearest, printable

PREFIX = "FASTDERP_"
# Variables of the build, the tests, and fastderp.tls.openssl.
_NOT_OURS = (
    "FASTDERP_BUILD_",
    "FASTDERP_CHECKED",
    "FASTDERP_CRYPTO",
    "FASTDERP_EXTENSIONS",
    "FASTDERP_FREE_THREADING",
    "FASTDERP_TEST_",
)
DEFAULT = "default"
# metavars of flags whose value is a path
_PATHS = {"FILE", "DIR", "PATH"}


class Settings(NamedTuple):
    """The value of each flag by its name, and its origin.

    An origin is `default`, `-NAME`, `$VARIABLE` or `FILE [SECTION]`.
    """

    values: dict[str, Any]
    origins: dict[str, str]

    @property
    def given(self) -> set[str]:
        """The names of the flags that any source has set."""
        return {name for name, origin in self.origins.items() if origin != DEFAULT}


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Read the command line, the variables and the file.

    Raises UsageError for the command line, ConfigError for a variable or the file.
    """
    table = {flag.name: flag for flag in flag_table(environment)}
    values, given = parse(table.values(), arguments)
    settings = Settings(values, {name: f"-{name}" if name in given else DEFAULT for name in table})
    if values["help"] or values["h"] or values["version"]:
        return settings
    for flag, text, variable in _variables(table, environment):
        _set(settings, flag, text, f"${variable}", f"${variable}")
    if settings.values["config"]:
        path = Path(settings.values["config"])
        for flag, text, section in _entries(table, path):
            place = f"-config {path}: [{section}] {flag.name}"
            _set(settings, flag, text, f"{path} [{section}]", place)
    return settings


def _set(settings: Settings, flag: Flag, text: str, origin: str, place: str) -> None:
    """Check a source's text for a flag; use it unless a source of higher precedence has set it."""
    try:
        value = flag.value(text)
    except UsageError as error:
        reason = str(error).replace(f" for -{flag.name}", "")
        raise ConfigError(f"{place}: {reason}") from None
    if settings.origins[flag.name] == DEFAULT:
        settings.values[flag.name] = value
        settings.origins[flag.name] = origin


# Variables


def variable_of(flag: Flag) -> str:
    """Return the name of a flag's variable."""
    return PREFIX + flag.name.upper().replace("-", "_")


def _variables(
    table: Mapping[str, Flag], environment: Mapping[str, str]
) -> Iterator[tuple[Flag, str, str]]:
    """Yield flag, text and variable of each variable that is not empty."""
    known = {
        variable_of(flag): flag for flag in table.values() if flag.section or flag.name == "config"
    }
    links = _service_links(environment)
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable.startswith(_NOT_OURS):
            continue
        if variable.startswith(links) and (variable not in known or "://" in text):
            continue
        if variable not in known:
            raise ConfigError(
                f"${printable(variable)}: unknown variable{_suggestion(variable, known)}"
            )
        if text:
            yield known[variable], text, variable


def _service_links(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return how the variables begin that Kubernetes sets for the services of a namespace.

    A service `fastderp` causes FASTDERP_SERVICE_HOST=10.0.0.1, FASTDERP_PORT=tcp://10.0.0.1:443
    and more, a service `fastderp-stun` FASTDERP_STUN_PORT=udp://….
    """
    services = [
        name.removesuffix("SERVICE_HOST") for name in environment if name.endswith("_SERVICE_HOST")
    ]
    return tuple(service + part for service in services for part in ("SERVICE_", "PORT"))


# The file


def _entries(table: Mapping[str, Flag], path: Path) -> Iterator[tuple[Flag, str, str]]:
    """Yield flag, text and section of each entry of a TOML file."""
    for section, entries in _load(path).items():
        if section not in SECTIONS:
            raise ConfigError(f"-config {path}: {_misplaced(section, entries, table)}")
        if not isinstance(entries, dict):
            raise ConfigError(f"-config {path}: {section} is a section: write [{section}]")
        for name, value in entries.items():
            place = f"-config {path}: [{section}] {printable(name)}"
            flag = table.get(name)
            if flag is None or flag.section != section:
                raise ConfigError(f"{place}: {_unknown(name, table)}")
            yield flag, _text(value, flag, place), section


def _load(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(files.read(path).decode())
    except OSError as error:
        raise ConfigError(f"-config {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"-config {path}: not a text file in UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"-config {path}: not TOML: {printable(str(error))}") from None


def _misplaced(name: str, value: object, table: Mapping[str, Flag]) -> str:
    """Describe the error of a name at the top of the file."""
    if not isinstance(value, dict):
        if name in table and table[name].section:
            return f"{name} belongs in [{table[name].section}]"
        return f"{printable(name)}: unknown key{_suggestion(name, _settable(table))}"
    return f"unknown section [{printable(name)}]{_suggestion(name, SECTIONS)}"


def _unknown(name: str, table: Mapping[str, Flag]) -> str:
    flag = table.get(name)
    if flag is not None and flag.section:
        return f"belongs in [{flag.section}]"
    return f"unknown key{_suggestion(name, _settable(table))}"


def _settable(table: Mapping[str, Flag]) -> list[str]:
    return [flag.name for flag in table.values() if flag.section]


def _text(value: object, flag: Flag, place: str) -> str:
    """Return a TOML value as the flag's text. Raises ConfigError for a wrong type."""
    if isinstance(value, list) and all(isinstance(item, str) and "," not in item for item in value):
        if flag.is_list:
            return ",".join(value)
    elif isinstance(value, bool):
        if flag.is_boolean:
            return str(value).lower()
    elif isinstance(value, str):
        if not flag.is_boolean:
            if flag.metavar in _PATHS:
                _check_path(value, place)
            return value
    elif isinstance(value, int | float) and flag.read is not str:
        return str(value).replace("inf", "Inf")
    raise ConfigError(f"{place}: want {flag.wanted}")


def _check_path(path: str, place: str) -> None:
    """Raise ConfigError for a path that the system cannot have."""
    if "\0" in path:
        raise ConfigError(f"{place}: a path has no character NUL")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise ConfigError(
            f"{place}: the locale has no such characters; start the relay with LC_ALL=C.UTF-8"
        ) from None


def _suggestion(name: str, names: Iterable[str]) -> str:
    meant = nearest(name, names)
    return f"; did you mean {meant}?" if meant else ""
