"""`fastderp-relay check`: prints the effective settings and checks the files that a start reads.

Binds no socket, creates no file, shows no secret.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

from fastderp.cli.flag_table import flag_table
from fastderp.cli.flags import Flag, duration, size
from fastderp.cli.output import show
from fastderp.cli.sources import DEFAULT, Settings
from fastderp.errors import EX_OK, EX_UNAVAILABLE, DerpError
from fastderp.server.app import RelayApp
from fastderp.server.settings import RelaySettings
from fastderp.util.text import printable

_SECRETS = {"acme-eab-key"}


def check(settings: RelaySettings, sources: Settings) -> int:
    """Print the settings and each component's findings.

    Return the exit code that a start would have, as far as it is predictable.
    """
    app = RelayApp(settings)
    findings = asyncio.run(_check(app))
    codes = [code for _, _, code in findings if code != EX_OK]

    def write() -> None:
        _print_values(sources)
        print()
        for name, text, code in findings:
            print(f"{'ok   ' if code == EX_OK else 'WRONG'}  {name}: {text}")
        for warning in settings.warnings:
            print(f"note   {warning}")

    return max(show("fastderp-relay", write), codes[0] if codes else EX_OK)


async def _check(app: RelayApp) -> list[tuple[str, str, int]]:
    """Return name, finding and exit code of each component."""
    findings = []
    for component in app.components:
        try:
            findings += [(component.name, text, EX_OK) for text in await component.check()]
        except DerpError as error:
            findings.append((component.name, str(error), error.exit_code))
        except ImportError as error:
            findings.append((component.name, str(error), EX_UNAVAILABLE))
        finally:
            await component.close()
    return findings


def _print_values(sources: Settings) -> None:
    rows = [
        (flag.name, _shown(flag, sources.values[flag.name]), sources.origins[flag.name])
        for flag in flag_table({})
        if flag.section
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        mark = " " if origin == DEFAULT else "*"
        print(f"{mark} {name:<{widths[0]}}  {value:<{min(widths[1], 40)}}  {origin}")


def _shown(flag: Flag, value: Any) -> str:
    """Return a value as an operator writes it, without its secrets."""
    if flag.name in _SECRETS:
        return "(set)" if value else ""
    if flag.is_boolean:
        return str(value).lower()
    if flag.read is duration:
        return f"{value:g}s"
    if flag.read is size:
        return f"{value >> 20}MiB"
    text = str(value)
    if "://" in text:
        text = ",".join(_without_password(part) for part in text.split(","))
    return printable(text)


def _without_password(url: str) -> str:
    """Remove user and password from a URL."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(not a URL)"
    _, at, place = parts.netloc.rpartition("@")
    return url.replace(parts.netloc, place, 1) if at else url
