"""Prints the shipped systemd units; that of the service with the path of the installed command."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import fastderp
from fastderp.util.standard_streams import print_error

FOLDER = Path(fastderp.__file__).parent / "share" / "systemd"
NAME = "fastderp-relay"
# How the shipped unit names the command, which finds it in the directories of the system.
SHIPPED = f"ExecStart=/usr/bin/env {NAME} "
# Directories that ProtectHome= and PrivateTmp= of the unit hide from the service.
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")


def unit(kind: str) -> str:
    """Return the text of the unit of the `service` or of its `socket`.

    Warns on standard error about a command that the service could not run.
    """
    text = (FOLDER / f"{NAME}.{kind}").read_text(encoding="utf-8")
    if kind == "socket":
        return text
    command = command_path()
    if hidden := next(_hidden_paths(command), ""):
        print_error(
            f"{NAME} gen: the service cannot see {hidden}: install fastderp elsewhere, such as in "
            "/opt/fastderp, and print the unit with that command"
        )
    return text.replace(SHIPPED, f"ExecStart={quoted(command)} ")


def command_path() -> str:
    """Return the absolute path of the installed command; symbolic links stay."""
    started = sys.argv[0]
    if os.path.basename(started) != NAME:  # python -m
        started = str(Path(sys.executable).with_name(NAME))
    elif "/" not in started:
        started = shutil.which(started) or started
    return os.path.abspath(started)


def quoted(path: str) -> str:
    """Return a path as the first word of ExecStart=."""
    path = path.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{path}"' if any(character in path for character in " \t'\"\\;") else path


def _hidden_paths(command: str) -> Iterator[str]:
    """Yield what the command is made of and the service cannot see, with links followed."""
    for path in (command, sys.prefix, sys.base_prefix, str(FOLDER)):
        for place in (path, os.path.realpath(path)):
            if any(place == folder or place.startswith(folder + "/") for folder in HIDDEN):
                yield place
