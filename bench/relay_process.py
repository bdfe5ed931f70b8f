"""The installed `fastderp-relay` as a process whose log, descriptors and memory can be read."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fastderp.loadgen.process import Process
from fastderp.wire.keys import NodePublic

COMMAND = str(Path(sys.executable).with_name("fastderp-relay"))
START_LIMIT_S = 60.0


class RelayProcess:
    """A started relay; a thread reads its log."""

    def __init__(self, flags: Sequence[str], command: Sequence[str] = (COMMAND,)) -> None:
        """Start it; `wait_for` waits until it is ready."""
        self.process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._is_over = False
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._more:
                self.lines.append(line)
                self._more.notify_all()
        with self._more:
            self._is_over = True
            self._more.notify_all()

    def wait_for(self, text: str, n_times: int = 1, limit_s: float = START_LIMIT_S) -> None:
        """Wait until `n_times` log lines have a text. Raises RuntimeError with the log's end."""
        with self._more:
            self._more.wait_for(lambda: self._is_over or self.count(text) >= n_times, limit_s)
            if self.count(text) < n_times:
                raise RuntimeError(f"no {text!r} in the log: {''.join(self.lines[-5:])}")

    def count(self, text: str) -> int:
        """Return the number of log lines with a text."""
        return sum(text in line for line in self.lines)

    def find(self, pattern: str) -> str:
        """Return the first group of a pattern in the log."""
        match = re.search(pattern, "".join(self.lines))
        if match is None:
            raise RuntimeError(f"{pattern!r} is not in the log")
        return match[1]

    @property
    def port(self) -> int:
        """The first TCP port that it serves."""
        return int(self.find(r"serves https? on \S+?:(\d+)[,;]"))

    @property
    def public_key(self) -> NodePublic:
        """The relay's key."""
        return NodePublic.from_text(self.find(r"public key (nodekey:\w+)"))

    @property
    def n_files(self) -> int:
        """The number of its open descriptors."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    @property
    def resident_kib(self) -> int:
        """Its resident memory."""
        return Process(self.process.pid).rss_kib()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, limit_s: float) -> int:
        """Wait for its end; return the exit code."""
        code = self.process.wait(limit_s)
        self._reader.join(5)
        return code

    def close(self) -> None:
        """Kill it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(5)


@contextmanager
def relay(*flags: str) -> Iterator[RelayProcess]:
    """Run a relay that is ready when the block begins."""
    started = RelayProcess(flags)
    try:
        started.wait_for("ready")
        yield started
    finally:
        started.close()
