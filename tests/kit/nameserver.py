"""A nameserver on loopback UDP that answers from a table, in its own thread."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

# A name with this instead of records is never answered.
SILENCE = "silence"
# Answered SERVFAIL.
FAILURE = "failure"

Records = dict[str, str | list[str]]


@dataclass
class Nameserver:
    """A running nameserver.

    `records` may change while it runs: `{"name": ["A 192.0.2.1", 'TXT "50"']}`; other names
    do not exist.
    """

    sock: socket.socket
    records: Records
    asked: list[tuple[str, str]] = field(default_factory=list)

    @property
    def port(self) -> int:
        """The server's UDP port."""
        return int(self.sock.getsockname()[1])

    def run(self) -> None:
        # A socket that is shut down reads an empty datagram.
        while (datagram := self.sock.recvfrom(4096))[0]:
            query, sender = datagram
            answer = self._answer(dns.message.from_wire(query))
            if answer is not None:
                self.sock.sendto(answer.to_wire(), sender)

    def _answer(self, query: dns.message.Message) -> dns.message.Message | None:
        [question] = query.question
        name = question.name.to_text(omit_final_dot=True)
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        records = self.records.get(name)
        if records == SILENCE:
            return None
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA | dns.flags.AA
        if records == FAILURE:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif records is None:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        else:
            texts = [text.partition(" ")[2] for text in records if text.partition(" ")[0] == kind]
            if texts:
                answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", kind, *texts))
        return answer


@contextlib.contextmanager
def nameserver(records: Records, address: str = "127.0.0.1", port: int = 0) -> Iterator[Nameserver]:
    """Run a nameserver while the block lasts."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        server = Nameserver(sock, records)
        thread = threading.Thread(target=server.run, name="nameserver")
        thread.start()
        try:
            yield server
        finally:
            # `close` alone leaves the thread in recvfrom; `shutdown` wakes it and raises ENOTCONN.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RD)
            thread.join(10)
