"""Keys that may, and keys that may not, use the relay: text files that are read again whenever they change.

One `nodekey:…` per line; a `#` and what follows it is a comment. Once there is a good list, a broken file never
replaces it. Judged on the loop thread; reloading may take a while and may run in another.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from fastderp.errors import ConfigError
from fastderp.server.admission.verdict import ALLOWED, Verdict
from fastderp.util import files
from fastderp.wire.keys import NodePublic

log = logging.getLogger("fastderp")

# A million keys; more is not a list of keys.
FILE_LIMIT_BYTES = 96 * 1024 * 1024


@dataclass(slots=True)
class KeyList:
    """The keys of one file, at `path`. `required`: a list without keys is a mistake. `n_refused` counts changes that were of no use."""

    path: Path
    required: bool
    keys: frozenset[bytes] = frozenset()
    n_refused: int = 0
    _seen: tuple[int, ...] = field(default=())

    @classmethod
    def load(cls, path: Path, *, required: bool) -> KeyList:
        """Read the list at `path` at the start. Raises ConfigError that names file and line, also for one without keys if `required`."""
        found = cls(path, required)
        found._seen = _fingerprint(path)
        found.keys = found._read()
        return found

    def reload(self, *, force: bool = False) -> bool:
        """Read the file again if it has changed, or with `force`; return whether the keys have.

        A file that cannot be used is logged once and changes nothing.
        """
        fingerprint = _fingerprint(self.path)
        if fingerprint == self._seen and not force:
            return False
        self._seen = fingerprint
        before = self.keys
        try:
            self.keys = self._read(reloading=True)
        except ConfigError as error:
            self.n_refused += 1
            log.error("%s; the %d keys read before stay in force", error, len(self.keys))
            return False
        log.info("%s: read again, %d keys", self.path, len(self.keys))
        return self.keys != before

    def _read(self, *, reloading: bool = False) -> frozenset[bytes]:
        try:
            text = files.read(self.path, limit_bytes=FILE_LIMIT_BYTES)
        except OSError as error:
            raise ConfigError(f"key list {self.path}: cannot read it: {error.strerror}") from None
        if reloading and not text.strip():
            # An editor that truncates before it writes would open the relay to everybody on a deny list.
            raise ConfigError(f"key list {self.path}: it is empty (write a # comment to mean that)")
        keys = self._parse(text)
        if self.required and not keys:
            raise ConfigError(
                f"key list {self.path}: no keys in it, so that nobody could use the relay"
            )
        return keys

    def _parse(self, text: bytes) -> frozenset[bytes]:
        keys = set()
        for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), 1):
            entry = line.partition("#")[0].strip()
            if entry:
                try:
                    keys.add(NodePublic.from_text(entry).raw)
                except ValueError as error:
                    raise ConfigError(f"key list {self.path}, line {number}: {error}") from None
        return frozenset(keys)


@dataclass(slots=True)
class KeyLists:
    """An allow list, a deny list or both, for what PROTOCOL §8 calls admission; the lists are fastderp's own idea.

    Args:
        allow: who may use the relay; None for everybody.
        deny: who may not, also when it is on the other list; None for nobody.
    """

    allow: KeyList | None = None
    deny: KeyList | None = None

    @classmethod
    def load(cls, allow: Path | None, deny: Path | None) -> KeyLists:
        """Read the files that are given. Raises ConfigError that names file and line, also for an `allow` list without keys.

        A line of `allow` or `deny` is a key, `nodekey:` and 64 hex digits, a comment after a `#`, or both.
        """
        return cls(
            allow=KeyList.load(allow, required=True) if allow else None,
            deny=KeyList.load(deny, required=False) if deny else None,
        )

    def __str__(self) -> str:
        counts = (("allowed", self.allow), ("denied", self.deny))
        return ", ".join(
            f"{len(found.keys)} keys {what}" for what, found in counts if found is not None
        )

    def judge(self, key: NodePublic) -> Verdict:
        """Tell whether the lists let the `key` in."""
        if self.deny is not None and key.raw in self.deny.keys:
            return Verdict(False, "denied", "on the deny list")
        if self.allow is not None and key.raw not in self.allow.keys:
            return Verdict(False, "denied", "not on the allow list")
        return ALLOWED

    def reload(self, *, force: bool = False) -> bool:
        """Read again the files that have changed, or all with `force`; return whether any keys have.

        A file that cannot be used is logged and changes nothing.
        """
        return any(
            [found.reload(force=force) for found in (self.allow, self.deny) if found is not None]
        )


def _fingerprint(path: Path) -> tuple[int, ...]:
    """Return what changes with the file; () when it cannot be seen."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino
