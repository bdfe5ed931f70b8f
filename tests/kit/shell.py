"""Interactive shells on a terminal: what a user types, and the words that a command then gets."""

from __future__ import annotations

import os
import pty
import select
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

SHELLS = ("bash", "zsh", "fish")
PROMPT = "ready> "
TIMEOUT_S = 30.0


def typed(shell: str, command: str, script: Path, keys: str, folder: Path) -> list[str]:
    """Type keys and Return in a shell that has read the script; return the command's arguments.

    The command stands in for the one of that name, in the empty `folder`, which is also the
    shell's working directory.
    """
    got = folder / "got"
    _write_program(folder / ".bin" / command, got)
    line, variables = _start(shell, script, folder)
    environment = {
        "PATH": f"{folder / '.bin'}:{os.environ['PATH']}",
        "HOME": str(folder),
        "TERM": "xterm",
        "LANG": "C.UTF-8",
        **variables,
    }
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(folder)
        os.execvpe(line[0], line, environment)
    try:
        shown = _read(terminal, lambda shown: PROMPT.encode() in shown)
        os.write(terminal, f"{keys}\n".encode())
        shown += _read(terminal, lambda _: got.exists())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)
    assert got.exists(), shown.decode(errors="replace")
    words = got.read_text().splitlines()
    got.unlink()
    return words


def _write_program(path: Path, got: Path) -> None:
    """Write a program that writes its arguments, one a line; they appear all at once."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >{got}.new\nmv {got}.new {got}\n")
    path.chmod(0o755)


def _start(shell: str, script: Path, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command line of a shell without the user's files, and its variables."""
    source = f"source {shlex.quote(str(script))}"
    if shell == "fish":
        prompt = f"function fish_prompt; echo -n '{PROMPT}'; end"
        return ["fish", "--no-config", "-i", "-C", f"{prompt}; {source}"], {}
    if shell == "zsh":
        lines = f"autoload -Uz compinit\ncompinit -D\n{source}\nPS1='{PROMPT}'\n"
        (folder / ".zshrc").write_text(lines)
        return ["zsh", "-d", "-i"], {"ZDOTDIR": str(folder)}
    (folder / ".bashrc").write_text(f"{source}\nPS1='{PROMPT}'\n")
    return ["bash", "--noprofile", "--rcfile", str(folder / ".bashrc"), "-i"], {}


def _read(terminal: int, is_done: Callable[[bytes], bool]) -> bytes:
    """Read the terminal until the condition holds; return what was shown."""
    shown = b""
    end = time.monotonic() + TIMEOUT_S
    while not is_done(shown) and time.monotonic() < end:
        if select.select([terminal], [], [], 0.02)[0]:
            shown += os.read(terminal, 4096)
    return shown
