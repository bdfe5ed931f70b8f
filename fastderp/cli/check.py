"""`fastderp-relay check`: prints the effective settings and checks the files that a start reads.

Binds no socket, creates no file, shows no secret.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

from fastderp.cli.flag_table import flag_table
from fastderp.cli.flags import Flag, duration, number, size
from fastderp.cli.output import show
from fastderp.cli.sources import DEFAULT, Settings
from fastderp.errors import EX_OK, EX_UNAVAILABLE, DerpError
from fastderp.server.app import RelayApp
from fastderp.server.settings import RelaySettings
from fastderp.util.text import one_line

_SECRETS = {"acme-eab-key"}


def check(settings: RelaySettings, sources: Settings) -> int:
    """Print the settings and each component's findings.

    Return the exit code that a start would have, as far as it is predictable.
    """
    app = RelayApp(settings)
    findings, notes = asyncio.run(_check(app))
    codes = [code for _, _, code in findings if code != EX_OK]

    def write() -> None:
        _print_values(sources)
        print()
        for name, text, code in findings:
            print(f"{'ok   ' if code == EX_OK else 'WRONG'}  {name}: {text}")
        for warning in (*settings.warnings, *notes):
            print(f"note   {warning}")

    return max(show("fastderp-relay", write), codes[0] if codes else EX_OK)


async def _check(app: RelayApp) -> tuple[list[tuple[str, str, int]], list[str]]:
    """Return name, finding and exit code of each component, and their warnings."""
    findings, notes = [], []
    for component in app.components:
        try:
            findings += [(component.name, text, EX_OK) for text in await component.check()]
            notes += component.warnings()
        except DerpError as error:
            findings.append((component.name, str(error), error.exit_code))
        except ImportError as error:
            findings.append((component.name, str(error), EX_UNAVAILABLE))
        finally:
            await component.close()
    return findings, notes


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
        return f"{_decimal(value)}s"
    if flag.read is number:
        return _decimal(value)
    if flag.read is size:
        return f"{value >> 20}MiB"
    text = str(value)
    if "://" in text:
        parts = text.split(",") if flag.is_list else [text]
        text = ",".join(map(_without_secrets, parts))
    return one_line(text)


def _decimal(value: float) -> str:
    """Return a number as flags take it, without an exponent."""
    return f"{value:.9f}".rstrip("0").rstrip(".").replace("inf", "+Inf")


def _without_secrets(url: str) -> str:
    """Remove user and password from a URL, and the text of its query, which may have a token."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(not a URL)"
    _, at, place = parts.netloc.rpartition("@")
    if at:
        url = url.replace(parts.netloc, place, 1)
    return url.replace(f"?{parts.query}", "?(hidden)", 1) if parts.query else url
