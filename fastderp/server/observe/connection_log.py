"""Counts connections and logs their ends, a bounded number of lines. PROTOCOL §14.

Loop thread only.
"""

from __future__ import annotations

import logging
from collections import Counter

from fastderp.dataplane.plane import ClosedEvent, DropEvent
from fastderp.server.observe.log_throttle import WINDOW_S, LogThrottle, more_text
from fastderp.server.observe.values import Value
from fastderp.util.log_lines import logger
from fastderp.util.net import address_text, format_address
from fastderp.util.reasons import errno_text
from fastderp.wire.keys import NodePublic

log: logging.Logger = logger("fastderp")

# Ends before the login that are normal on a public server; they are logged at level DEBUG only.
_QUIET = frozenset({"end", "reset", "idle", "shutdown"})

# Lines per window about dropped packets to a watched key, for each key, reason and kind.
DROP_LINES = 5
DROP_WINDOW_S = 30.0

# Lines per reason and window (10 s) about ended sessions; further ones are only counted.
SESSION_LINES = 100

# Limit for the logged characters of an unknown Upgrade; real ones are shorter.
UPGRADE_CHARACTERS = 40


class ConnectionLog:
    """Counts and logs the events of connections."""

    def __init__(self, *, prober_logs: bool = False) -> None:
        """Start at zero. `prober_logs` logs every prober without a limit."""
        self.websocket_failures: Counter[str] = Counter()
        self._n_accepts = 0
        self._n_websockets = 0
        self._n_shortages = 0
        self._refused: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()
        self._throttle = LogThrottle(log)
        self._ends = LogThrottle(log, lines=SESSION_LINES)
        self._drops = LogThrottle(log, lines=DROP_LINES, window_s=DROP_WINDOW_S)
        self._prober_logs = prober_logs
        self._probers: set[int] = set()

    # Before the login

    def note_accept(self) -> None:
        """Count a connection that begins a login."""
        self._n_accepts += 1

    def note_websocket(self) -> None:
        """Count a WebSocket that was opened."""
        self._n_websockets += 1

    def note_request(self, tls_version: str) -> None:
        """Count an HTTP request over TLS by version, "1.2" or "1.3"."""
        self._requests[tls_version] += 1

    def note_refused(
        self,
        stage: str,
        reason: str,
        remote: tuple[str, int],
        detail: str,
        *,
        is_visitor: bool = False,
    ) -> None:
        """Count and log a connection that ended before its login was complete.

        is_visitor: a page answers its last request. It wants no login, so a normal end does not
        count.
        """
        is_normal = reason in _QUIET and not detail
        if not (is_normal and is_visitor):
            self._refused[f"{stage}_{reason}"] += 1
        address = format_address(remote)
        if is_normal:
            log.debug("%s: closed at %s: %s", address, stage, reason)
        else:
            self._throttle.log(
                (stage, reason),
                "%s: refused at %s: %s",
                address,
                stage,
                detail or reason,
                event="refused",
                stage=stage,
                reason=reason,
                detail=detail,
                address=address,
            )

    def note_odd_upgrade(self, remote: tuple[str, int], upgrade: str) -> None:
        """Log a request for /derp that upgrades to neither DERP nor a WebSocket. PROTOCOL §9.3."""
        shown = ascii(upgrade[:UPGRADE_CHARACTERS]) + (
            "…" if len(upgrade) > UPGRADE_CHARACTERS else ""
        )
        address = format_address(remote)
        self._throttle.log(
            "upgrade",
            "%s: refused at http: odd upgrade %s",
            address,
            shown,
            event="refused",
            stage="http",
            reason="upgrade",
            detail=shown,
            address=address,
        )

    def note_lost_upgrade(self, remote: tuple[str, int]) -> None:
        """Log a request for /derp that came through a proxy without an upgrade."""
        address = format_address(remote)
        self._throttle.log(
            "lost upgrade",
            "%s: refused at http: no upgrade in a request for /derp: its proxy has to pass on the "
            "headers Upgrade and Connection",
            address,
            event="refused",
            stage="http",
            reason="lost_upgrade",
            address=address,
        )

    def note_shortage(self, error: OSError) -> None:
        """Count and log that accepting had to pause."""
        self._n_shortages += 1
        self._throttle.log(
            "shortage",
            "accepting connections pauses: %s",
            errno_text(error),
        )

    def note_too_fast(self, remote: tuple[str, int]) -> None:
        """Log a connection that exceeded the accept limit; its listener counts it."""
        address = format_address(remote)
        self._throttle.log(
            "too fast",
            "%s: closed: over the accept limit",
            address,
            event="refused",
            stage="accept",
            reason="rate",
            address=address,
        )

    # After the login

    def note_prober(self, handle: int, key: NodePublic, remote: tuple[str, int]) -> None:
        """Log the login of a prober if `prober_logs` is set; its end is logged later."""
        if self._prober_logs:
            self._probers.add(handle)
            fields = {"event": "login", "key": key.short, "address": format_address(remote)}
            log.info("%(key)s %(address)s: a prober logged in", fields, extra={"fields": fields})

    def note_drop(self, event: DropEvent) -> None:
        """Log a packet for a watched key that was dropped."""
        source = NodePublic(event.source).short if event.source else ""
        destination = NodePublic(event.destination).short
        self._drops.log(
            (event.destination, event.reason, event.kind),
            "drop: %s packet from %s to %s: %s",
            event.kind,
            source or "this relay",
            destination,
            event.reason,
            event="drop",
            kind=event.kind,
            source=source,
            destination=destination,
            reason=event.reason,
        )

    def note_closed(self, event: ClosedEvent) -> None:
        """Count and log a session's end: key, address, AppName, duration, reason, traffic."""
        self._ended[event.reason] += 1
        n_held = 0 if event.handle in self._probers else self._ends.n_held(event.reason)
        self._probers.discard(event.handle)
        if n_held is None:
            return
        totals = event.totals
        fields = {
            "event": "closed",
            "key": NodePublic(event.key).short,
            "address": format_address((address_text(event.addr), event.port)),
            "app": event.app_name.decode(),
            "seconds": round(totals.seconds, 3),
            "reason": event.reason,
            "detail": event.detail,
            "packets_in": totals.rx_packets,
            "bytes_in": totals.rx_bytes,
            "packets_out": totals.tx_packets,
            "bytes_out": totals.tx_bytes,
            "dropped": totals.dropped,
            "more": n_held or None,
        }
        log.info(
            "%s %s%s: closed after %.1f s: %s; in %d packets %d bytes, "
            "out %d packets %d bytes, dropped %d%s",
            fields["key"],
            fields["address"],
            f" ({fields['app']})" if event.app_name else "",
            totals.seconds,
            f"{event.reason} ({event.detail})" if event.detail else event.reason,
            totals.rx_packets,
            totals.rx_bytes,
            totals.tx_packets,
            totals.tx_bytes,
            totals.dropped,
            more_text(n_held),
            extra={"fields": fields},
        )

    def sum_up(self) -> None:
        """Log the number of ended sessions without a separate line in past windows."""
        self._tell_held(WINDOW_S)

    def close(self) -> None:
        """Log the counts of held-back lines before the end."""
        self._tell_held(0)

    def _tell_held(self, min_age_s: float) -> None:
        for reason, n_held in self._ends.take_held(min_age_s).items():
            log.info(
                "%d more sessions closed: %s",
                n_held,
                reason,
                extra={"fields": {"event": "closed_summary", "reason": reason, "sessions": n_held}},
            )

    @property
    def tls_versions(self) -> list[str]:
        """The TLS versions of the requests so far."""
        return list(self._requests)

    def metrics(self) -> dict[str, Value]:
        """Return the counters by the names of `metrics.METRICS`."""
        return {
            "derp_accepts": self._n_accepts,
            "derp_websocket_accepts": self._n_websockets,
            "derper_tls_request_version": dict(self._requests),
            "fastderp_closed_total": dict(self._refused),
            "fastderp_session_closed_total": dict(self._ended),
            "fastderp_websocket_failures_total": dict(self.websocket_failures),
            "fastderp_accept_shortages_total": self._n_shortages,
        }
