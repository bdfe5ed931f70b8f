"""derper and fastderp-relay give the same bootstrap DNS answers. PROTOCOL §9.6.

Each runs where /etc/resolv.conf is the test's; skipped where the system does not allow that.
"""

import json
from pathlib import Path

import pytest

from tests.kit.nameserver import Records
from tests.kit.own_network import Outcome, Trial, is_possible, outcome_of

from .gokit import GoPrograms

pytestmark = pytest.mark.skipif(not is_possible(), reason="no network namespaces for this user")

RECORDS: Records = {
    "a.example.com": ["A 192.0.2.1", "AAAA 2001:db8::1"],
    "b.example.com": ["A 192.0.2.2"],
    "hidden.example.com": ["A 192.0.2.3"],
    "nobody.example.com": ["A 192.0.2.4"],
    "wrong.example.com": ["A 192.0.2.5"],
    "all.rollout.example.com": ['TXT "100"'],
    "none.rollout.example.com": ['TXT "0"'],
    "wrong.rollout.example.com": ['TXT "many"'],
}
FLAGS = [
    "-bootstrap-dns-names=a.example.com,b.example.com,missing.example.com",
    "-unpublished-bootstrap-dns-names=nobody.example.com/none.rollout.example.com,"
    "wrong.example.com/wrong.rollout.example.com,"
    "missing.example.com,hidden.example.com/all.rollout.example.com",
]
QUESTIONS = [
    *(
        "",
        "a.example.com",
        "hidden.example.com",
        "nobody.example.com",
        "wrong.example.com",
        "missing.example.com",
    ),
    *(
        "other.example.com",
        "HIDDEN.example.com",
        "hidden.example.com&q=a.example.com",
        "%68idden.example.com",
    ),
]


def meant(outcome: Outcome) -> list[object]:
    """Return the answers without the order of addresses, which is shuffled."""
    found: list[object] = []
    for status, content_type, body in outcome.answers:
        names = json.loads(body) if body else None
        found.append(
            (
                status,
                content_type,
                names and {name: sorted(addresses) for name, addresses in names.items()},
            )
        )
    return found


@pytest.mark.parametrize(
    ("flags", "until"),
    [
        (FLAGS, ["a.example.com", "hidden.example.com"]),
        (FLAGS[:1], ["a.example.com"]),
        (FLAGS[1:], ["hidden.example.com"]),
        ([], []),
    ],
    ids=["both lists", "published", "unpublished", "none"],
)
def test_both_relays_give_the_same_answers_and_counters(
    flags: list[str], until: list[str], go_programs: GoPrograms, fastderp_relay: Path
) -> None:
    theirs, ours = (
        outcome_of(Trial(str(program), flags, RECORDS, until, QUESTIONS))
        for program in (go_programs.derper, fastderp_relay)
    )
    assert meant(ours) == meant(theirs)
    assert ours.counted == theirs.counted
