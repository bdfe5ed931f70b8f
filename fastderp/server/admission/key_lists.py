"""Lists of keys that are allowed or denied: text files, read again when they change.

One `nodekey:…` per line; a `#` begins a comment. An unusable file never replaces a good list. The
loop thread uses and applies the lists; `read` changes nothing, may take long, and may run in
another thread.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fastderp.errors import ConfigError
from fastderp.server.admission.verdict import ALLOWED, Verdict
from fastderp.util import files
from fastderp.util.shortage import shortage_of
from fastderp.wire.keys import NodePublic

log: logging.Logger = logging.getLogger("fastderp")

# Limit that holds a million keys; a larger file is not a list of keys.
FILE_LIMIT_BYTES = 96 * 1024 * 1024
# A file written less than this before its reading may change again with the same time stamp.
RACY_S = 2.0


class Reading(NamedTuple):
    """The result of reading a changed file: its keys, or the error."""

    fingerprint: files.Fingerprint
    keys: frozenset[bytes] | None
    error: ConfigError | None
    forced: bool


@dataclass(slots=True)
class KeyList:
    """The keys of one file.

    Args:
        path: the file.
        required: a list without keys is an error.
        keys: the keys in force.
        n_refused: number of unusable changes of the file.
    """

    path: Path
    required: bool
    keys: frozenset[bytes] = frozenset()
    n_refused: int = 0
    # The fingerprint of the last reading, usable or not.
    _seen: files.Fingerprint | None = None
    _complaint: str = ""

    @classmethod
    def load(cls, path: Path, *, required: bool) -> KeyList:
        """Read the list at `path` at the start.

        Raises ConfigError that names file and line, also for a list without keys if `required`.
        """
        found = cls(path, required)
        fingerprint = files.fingerprint(path)
        found.keys = found._read_keys()
        found._seen = _settled(fingerprint)
        return found

    def read(self, *, force: bool = False) -> Reading | None:
        """Read the file if it has changed, or with `force`; else return None. Changes nothing."""
        # Take it before the reading, so that the next check detects a change in between.
        fingerprint = files.fingerprint(self.path)
        if fingerprint == self._seen and not force:
            return None
        try:
            return Reading(fingerprint, self._read_keys(reloading=True), None, force)
        except ConfigError as error:
            return Reading(fingerprint, None, error, force)

    def apply(self, reading: Reading | None) -> bool:
        """Put a reading in force; return whether the keys have changed.

        An unusable file changes nothing and is logged once, unless the reading was forced. The next
        check reads it again if the system caused the error, not its content.
        """
        if reading is None:
            return False
        if reading.keys is None:
            assert reading.error is not None
            self._refuse(reading.fingerprint, reading.error, forced=reading.forced)
            return False
        previous, self.keys = self.keys, reading.keys
        self._seen = _settled(reading.fingerprint)
        self._complaint = ""
        if self.keys != previous and not reading.forced:
            log.info("%s: read again, %d keys", self.path, len(self.keys))
        return self.keys != previous

    def _refuse(self, fingerprint: files.Fingerprint, error: ConfigError, *, forced: bool) -> None:
        complaint = str(error)
        cause = error.__cause__
        content_is_to_blame = not isinstance(cause, OSError) or cause.errno == errno.EFBIG
        if complaint != self._complaint:
            self._complaint = complaint
            if not shortage_of(error):
                self.n_refused += 1
            if not forced:
                log.error("%s; the previous %d keys stay in force", error, len(self.keys))
        self._seen = _settled(fingerprint) if content_is_to_blame else None

    def _read_keys(self, *, reloading: bool = False) -> frozenset[bytes]:
        try:
            text = files.read(self.path, limit_bytes=FILE_LIMIT_BYTES)
        except OSError as error:
            raise ConfigError(f"key list {self.path}: cannot read it: {error.strerror}") from error
        if reloading and not text.strip():
            # An editor may truncate the file before it writes; denied clients could log in
            # meanwhile.
            raise ConfigError(f"key list {self.path}: it is empty (write a # comment to mean none)")
        keys = self._parse(text)
        if self.required and not keys:
            raise ConfigError(
                f"key list {self.path}: no keys in it, which would refuse every client"
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
    """An allow list, a deny list or both: an addition of fastderp to the admission of PROTOCOL §8.

    Args:
        allow: keys that may use the relay; None for all.
        deny: keys that may not, even on the allow list; None for none.
    """

    allow: KeyList | None = None
    deny: KeyList | None = None

    @classmethod
    def load(cls, allow: Path | None, deny: Path | None) -> KeyLists:
        """Read the files.

        A line of `allow` or `deny` is a key (`nodekey:` and 64 hex digits), a comment after a `#`,
        or both. Raises ConfigError that names file and line, also for an `allow` list without keys.
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

    def __iter__(self) -> Iterator[KeyList]:
        """Yield the configured lists."""
        yield from (found for found in (self.allow, self.deny) if found is not None)

    @property
    def in_force(self) -> tuple[frozenset[bytes], ...]:
        """The keys that `judge` uses; compare it to detect a change."""
        return tuple(found.keys for found in self)

    def judge(self, key: NodePublic) -> Verdict:
        """Return whether the lists admit `key`."""
        if self.deny is not None and key.raw in self.deny.keys:
            return Verdict(False, "denied", "on the deny list")
        if self.allow is not None and key.raw not in self.allow.keys:
            return Verdict(False, "denied", "not on the allow list")
        return ALLOWED

    def read(self, *, force: bool = False) -> list[Reading | None]:
        """Read the files that have changed, or all with `force`. Changes nothing; any thread."""
        return [found.read(force=force) for found in self]

    def apply(self, readings: list[Reading | None]) -> bool:
        """Put the `readings` of `read` in force; return whether any keys have changed.

        Unusable files are logged and change nothing.
        """
        # A list, because any() over a generator would skip readings after the first change.
        changed = [found.apply(reading) for found, reading in zip(self, readings, strict=True)]
        return any(changed)

    def reload(self, *, force: bool = False) -> bool:
        """Read the changed files, or all with `force`, and put them in force.

        Returns whether any keys have changed.
        """
        return self.apply(self.read(force=force))


def _settled(fingerprint: files.Fingerprint) -> files.Fingerprint | None:
    """Return the fingerprint to remember; None while the file could still change unnoticed."""
    newest_ns = max(fingerprint[:2], default=0)
    return fingerprint if abs(time.time_ns() - newest_ns) > RACY_S * 1e9 else None
