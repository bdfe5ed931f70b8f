"""`fastderp-relay` with the mounts, user and capabilities of the shipped unit, in namespaces.

The directives are read from the shipped unit. The filters of system calls (SystemCallFilter,
MemoryDenyWriteExecute and the like) are left out. The tests need root.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import fastderp
from tests.kit.command import RunningRelay, started
from tests.kit.memory import sanitizer_variables

PACKAGE = Path(fastderp.__file__).parent
UNIT = PACKAGE / "share" / "systemd" / "fastderp-relay.service"
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("setpriv")),
    reason="making namespaces needs root, unshare and setpriv",
)

# from systemd's range for DynamicUser
SERVICE_USER = 61184
_DEVICES = ("null", "zero", "full", "random", "urandom")
_ASK = """
import fastderp, json, sys, os
print(json.dumps([sys.base_prefix, os.path.basename(os.path.realpath(sys.executable)),
    [os.path.dirname(os.path.dirname(os.path.abspath(fastderp.__file__))),
     *filter(os.path.isdir, sys.path)]]))
"""


def directives() -> dict[str, str]:
    """Return the directives of the unit; the last of a name counts."""
    lines = [line for line in UNIT.read_text().splitlines() if line and line[0] not in "#[;"]
    return dict(line.split("=", 1) for line in lines)


def pythons() -> list[str]:
    """Return this interpreter and those of FASTDERP_TEST_PYTHONS (separated by `:`)."""
    others = os.environ.get("FASTDERP_TEST_PYTHONS", "")
    return [sys.executable, *filter(None, others.split(":"))]


@dataclass
class Sandbox:
    """The environment of the service.

    Args:
        python: interpreter with fastderp.
        user: uid and gid.
        env: variables that a service manager sets additionally; an empty value removes one.
        umask: octal digits.
        folder: shell commands that change to the working folder.
        private_network: whether it has its own network namespace, where every port is free.
    """

    python: str = sys.executable
    user: int = SERVICE_USER
    env: dict[str, str] = field(default_factory=dict)
    umask: str = field(default_factory=lambda: directives()["UMask"])
    folder: str = "cd /"
    private_network: bool = True

    def command(self, arguments: str) -> list[str]:
        """Return a shell command that runs the relay with these arguments in the sandbox."""
        asked = subprocess.run(
            [self.python, "-c", _ASK], capture_output=True, text=True, check=True, cwd="/"
        )
        prefix, executable, paths = json.loads(asked.stdout)
        # The relay's modules may be below /root or /home, which are hidden, so they are mounted
        # elsewhere.
        places = {path: f"/mnt/{number}" for number, path in enumerate(dict.fromkeys(paths))}
        places[prefix] = "/mnt/python"
        lines = ["set -e", "mount -t tmpfs -o mode=755 tmpfs /mnt"]
        for path, place in places.items():
            lines += [
                f"mkdir -p {place}",
                f"mount --bind {shlex.quote(path)} {place}",
                f"mount -o remount,bind,ro {place}",
            ]
        program = shlex.quote("from fastderp.cli.relay import main; main()")
        modules = ":".join(places[path] for path in paths if not path.startswith(prefix + "/lib"))
        env = {
            "PATH": "/usr/bin:/bin",
            "HOME": "/",
            "STATE_DIRECTORY": "/var/lib/fastderp",
            "LANG": "C.UTF-8",
            "LD_LIBRARY_PATH": "/mnt/python/lib",
            "PYTHONPATH": modules,
            "PYTHONSAFEPATH": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            **sanitizer_variables(),
            **self.env,
        }
        variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in env.items() if value)
        lines += [
            *self._mounts(),
            self.folder,
            f"umask {self.umask}",
            f"exec env -i {variables} setpriv {self._rights()} /bin/sh -c "
            + shlex.quote(f"exec /mnt/python/bin/{executable} -c {program} {arguments}"),
        ]
        namespaces = ["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        if self.private_network:
            namespaces.append("--net")
            lines.insert(1, "ip link set lo up 2>/dev/null || true")
        return ["unshare", *namespaces, "/bin/sh", "-c", "\n".join(lines)]

    def _mounts(self) -> list[str]:
        unit = directives()
        lines = []
        state = f"/var/lib/{unit['StateDirectory']}"
        # No folder is made on the machine itself: /var/lib is a mount here.
        lines += [
            "mount -t tmpfs -o mode=755 tmpfs /var/lib",
            f"mkdir -m {unit['StateDirectoryMode']} {state}",
            f"chown {self.user}:{self.user} {state}",
        ]
        if unit["PrivateTmp"] == "yes":
            lines.append("mount -t tmpfs -o mode=1777 tmpfs /tmp")
        if unit["PrivateDevices"] == "yes":
            lines.append("mkdir /mnt/dev && touch " + " ".join(f"/mnt/dev/{d}" for d in _DEVICES))
            lines += [f"mount --bind /dev/{device} /mnt/dev/{device}" for device in _DEVICES]
            lines.append("mount --rbind /mnt/dev /dev")
        if unit["ProtectHome"] == "yes":
            hide = "mount -t tmpfs -o mode=000,ro tmpfs"
            lines += [f"[ ! -d {d} ] || {hide} {d}" for d in ("/run/user", "/home", "/root")]
        if unit["ProtectProc"] == "invisible":
            lines.append("mount -o remount,hidepid=2 /proc")
        if unit["ProtectSystem"] == "strict":
            lines.append("mount -o remount,bind,ro /")
            lines.append(f"mount --bind {state} {state}")
            lines.append("mount -o remount,bind,ro /var/lib")
        return lines

    def _rights(self) -> str:
        if self.user == 0:
            return "--no-new-privs"
        capabilities = directives()["AmbientCapabilities"].removeprefix("CAP_").lower()
        sets = [
            f"--{name}=-all,+{capabilities}"
            for name in ("inh-caps", "ambient-caps", "bounding-set")
        ]
        user = f"--reuid={self.user} --regid={self.user} --clear-groups --no-new-privs"
        return " ".join((user, *sets))

    @contextlib.contextmanager
    def started(self, arguments: str) -> Iterator[RunningRelay]:
        """Run the relay until the block ends; it serves when the block begins."""
        with started(self.command(arguments)) as running:
            try:
                yield running
            finally:
                _kill_children(running.process.pid)

    def run(self, arguments: str) -> tuple[int, str]:
        """Run it to its end; return its exit code and output."""
        process = subprocess.Popen(
            self.command(arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            said, _ = process.communicate(timeout=30)
        except BaseException:
            _kill_children(process.pid)
            process.kill()
            raise
        return process.returncode, said


def _kill_children(pid: int) -> None:
    """Kill the child of unshare: a change of user clears its parent-death signal."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
