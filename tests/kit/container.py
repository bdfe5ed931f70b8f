"""The shipped image's command in a separate root directory, as a container engine runs it.

The user, the variables, the entry point and the health check are read from `deploy/Dockerfile`.
The root directory is read-only; its interpreter and packages are this test's. It has separate
namespaces (mounts, processes, network) and no capabilities. The engine's filter of system calls is
left out. Needs root.

FASTDERP_TEST_IMAGE names another root directory, in which the Dockerfile's steps have been done.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import fastderp
from tests.kit.command import RunningRelay, started

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
STATE = "/var/lib/fastderp"
IMAGE = os.environ.get("FASTDERP_TEST_IMAGE", "")

_DEVICES = ("null", "zero", "full", "random", "urandom")
_SCRIPT = """\
#!/opt/fastderp/bin/python
import sys
from fastderp.cli.relay import main
sys.exit(main())
"""


def instruction(name: str) -> str:
    """Return the arguments of an instruction of the Dockerfile's last stage."""
    stage = DOCKERFILE.read_text().rpartition("\nFROM ")[2].replace("\\\n", "")
    found: list[str] = re.findall(rf"^{name} (.*)$", stage, re.M)
    return found[-1]


def image_variables() -> dict[str, str]:
    """Return the variables that the image sets; $PATH is that of the image below it."""
    words = instruction("ENV").replace("$PATH", "/usr/local/bin:/usr/bin:/bin").split()
    return dict(word.split("=", 1) for word in words)


def children(parent: int) -> list[int]:
    """Return the children of a process that its first thread waits for."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@dataclass
class Container:
    """A running container."""

    relay: RunningRelay
    variables: dict[str, str]

    @property
    def pid(self) -> int:
        """The relay's process number outside; inside it is 1."""
        return children(self.relay.process.pid)[0]

    def children(self) -> list[int]:
        """The children of the relay, with those that it has adopted."""
        return children(self.pid)

    def is_healthy(self) -> tuple[int, str]:
        """Run the image's health check inside; return its exit code and what it printed."""
        command = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
        inside = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--root", "--wd"]
        done = subprocess.run(
            [*inside, "/bin/sh", "-c", _as_user(self.variables, command)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr

    def beside(self, program: str) -> str:
        """Run a Python program of this test in the container's network; return its output."""
        command = ["nsenter", f"--target={self.pid}", "--net", sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self) -> tuple[int, str]:
        """Send what the engine sends to stop it; return its exit code and its log."""
        os.kill(self.pid, signal.Signals[instruction("STOPSIGNAL")])
        _, rest = self.relay.process.communicate(timeout=60)
        self.relay.lines += rest.decode().splitlines(keepends=True)
        return self.relay.process.returncode, self.relay.said


@contextlib.contextmanager
def container(
    folder: Path, variables: Mapping[str, str], *flags: str, before: str = ""
) -> Iterator[Container]:
    """Start the image's entry point and wait until the relay serves.

    Args:
        folder: an empty directory, where the root directory is made.
        variables: those of `docker run -e`.
        flags: the container's command.
        before: shell commands that run inside the network before the relay.
    """
    everything = image_variables() | {"HOME": "/"} | dict(variables)
    command = [*json.loads(instruction("ENTRYPOINT")), *flags]
    lines = ["set -e", *_root_directory(folder), "ip link set lo up", before]
    # An engine sets it for each network namespace.
    lines.append("echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start")
    lines.append(f"exec chroot {folder} /bin/sh -c {shlex.quote(_as_user(everything, command))}")
    namespaces = ["--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child"]
    with started(["unshare", *namespaces, "/bin/sh", "-c", "\n".join(lines)]) as relay:
        running = Container(relay, everything)
        pid = running.pid
        try:
            yield running
        finally:
            # A change of user clears the parent-death signal.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _as_user(variables: Mapping[str, str], command: Sequence[str]) -> str:
    """Return a shell command that runs `command` with the rights and variables of the image."""
    user, _, group = instruction("USER").partition(":")
    rights = [f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs"]
    rights += ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
    words = [f"{name}={value}" for name, value in variables.items()]
    # The shell looks for `setpriv` and `env`; `env` finds the command on the image's PATH.
    return "cd / && umask 022 && exec setpriv " + shlex.join(
        [*rights, "env", "-i", *words, *command]
    )


def _root_directory(folder: Path) -> list[str]:
    """Return shell commands that mount the container's root directory at `folder`."""
    if IMAGE:
        lines = [f"mount --bind {shlex.quote(IMAGE)} {folder}"]
    else:
        lines = [f"mount -t tmpfs -o mode=755 tmpfs {folder}", *_own_image(folder)]
    user, _, group = instruction("USER").partition(":")
    lines += [f"mkdir -p {folder}/proc {folder}/dev {folder}/tmp {folder}{STATE}"]
    lines += [f"mount -o remount,bind,ro {folder}"]
    lines += [f"mount -t proc proc {folder}/proc"]
    lines += [f"mount -t tmpfs -o mode=755 tmpfs {folder}/dev"]
    lines += [
        f"touch {folder}/dev/{device} && mount --bind /dev/{device} {folder}/dev/{device}"
        for device in _DEVICES
    ]
    lines += [f"ln -s /proc/self/fd {folder}/dev/fd"]
    lines += [f"mount -t tmpfs -o mode=1777 tmpfs {folder}/tmp"]
    lines += [f"mount -t tmpfs -o mode=700,uid={user},gid={group} tmpfs {folder}{STATE}"]
    return lines


def _own_image(folder: Path) -> list[str]:
    """Return shell commands that fill the root: system, interpreter, package, entry point."""
    package = str(Path(fastderp.__file__).parents[1])
    paths = [package, *(path for path in sys.path if path and os.path.isdir(path))]
    paths = [path for path in dict.fromkeys(paths) if not path.startswith(sys.base_prefix)]
    places = {path: f"/opt/packages/{number}" for number, path in enumerate(paths)}
    places[sys.base_prefix] = "/opt/python"
    lines = []
    # A list: a system's own interpreter is in /usr, too.
    for path, place in [*places.items(), ("/usr", "/usr"), ("/etc/ssl", "/etc/ssl")]:
        lines += [
            f"mkdir -p {folder}{place}",
            f"mount --bind {shlex.quote(path)} {folder}{place}",
            f"mount -o remount,bind,ro {folder}{place}",
        ]
    lines += [f"ln -s usr/{name} {folder}/{name}" for name in ("bin", "lib", "lib64", "sbin")]
    lines += [
        f"echo root:x:0:0:root:/root:/bin/sh > {folder}/etc/passwd",
        f"echo 127.0.0.1 localhost > {folder}/etc/hosts",
        f"mkdir -p {folder}/opt/fastderp/bin",
    ]
    python = f"/opt/python/bin/{Path(sys.executable).resolve().name}"
    modules = ":".join(places[path] for path in paths)
    wrapper = (
        f"#!/bin/sh\nexport PYTHONPATH={modules} LD_LIBRARY_PATH=/opt/python/lib\n"
        f'exec {python} "$@"\n'
    )
    for name, text in (("python", wrapper), ("fastderp-relay", _SCRIPT)):
        target = f"{folder}/opt/fastderp/bin/{name}"
        lines += [f"printf %s {shlex.quote(text)} > {target}", f"chmod 755 {target}"]
    entrypoint = f"{folder}/opt/fastderp/bin/fastderp-entrypoint"
    lines += [
        f"cp {shlex.quote(str(ROOT / 'deploy/entrypoint.py'))} {entrypoint}",
        f"chmod 755 {entrypoint}",
        f"ln -s python {folder}/opt/fastderp/bin/python3",
    ]
    return lines
