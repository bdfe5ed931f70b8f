"""ClientInfo texts are accepted or refused as by the real derper (PROTOCOL 3.1)."""

import json
import random
from collections.abc import AsyncIterator

import pytest

from fastderp.errors import LoginError
from fastderp.wire import login
from fastderp.wire.keys import NodePrivate

from .conftest import StartRelay
from .logins import lets_in
from .relays import Relay

pytestmark = pytest.mark.timeout(600)

HEX = "ab" * 32
KEY = NodePrivate.generate()

EDGES = [
    "", " ", "null", "nul", "true", "[]", "{}", " \t\r\n{}\n ", "\v{}", "{}\0", "{}{}", "{},",
    "[{}]", '"{}"', "{", "}",
    '{"version":2}', '{"Version":2}', '{"VERSION":2}', '{"ver\u017fion":2.5}',
    '{"i\u017fProber":1}', '{"me\u017fh\u212aey":""}',
    '{"version":2,}', '{,"version":2}', '{"version" : 2}', "{'version':2}", '{version:2}',
    '{"version"}', '{"version":}',
    '{"version":null}', '{"version":"2"}', '{"version":2.5}', '{"version":2.0}',
    '{"version":2e0}', '{"version":-0}',
    '{"version":02}', '{"version":+2}', '{"version":0x2}', '{"version":2,"version":"x"}',
    '{"version":"x","version":2}',
    '{"version":9223372036854775807}', '{"version":9223372036854775808}',
    '{"version":-9223372036854775808}',
    '{"version":-9223372036854775809}', '{"version":1e400}', '{"later":1e400}',
    '{"version":' + "9" * 5000 + "}",
    '{"version":true}', '{"version":[]}', '{"version":{}}', '{"CanAckPings":true}',
    '{"canackpings":null}', '{"CanAckPings":1}',
    '{"CanAckPings":"true"}', '{"IsProber":false}', '{"IsProber":{}}', '{"AppName":"x"}',
    '{"AppName":null}',
    '{"AppName":"\\ud800"}', '{"AppName":"\\u00"}', '{"AppName":"\\x41"}', '{"AppName":"\n"}',
    '{"AppName":"\x7f"}',
    f'{{"AppName":"{"x" * 32}"}}', f'{{"AppName":"{"x" * 33}"}}', '{"AppName":"a~ "}',
    '{"AppName":"\\u00e9"}', '{"AppName":"\\u001f"}',
    '{"later":NaN}', '{"later":Infinity}', '{"later":-Infinity}', '{"later":nan}',
    '{"later":"\ud7ff"}', '{"":""}',
    '\ufeff{"version":2}', '{"version":2}//', '{"a":{"version":"x"}}', '{"a":[{"version":"x"}]}',
    f'{{"meshKey":"{HEX}"}}', f'{{"MESHKEY":"{HEX.upper()}"}}', f'{{"meshKey":"{HEX}0"}}',
    f'{{"meshKey":"{HEX[1:]}"}}',
    f'{{"meshKey":" {HEX[1:]}"}}', f'{{"meshKey":"{HEX[2:]}zz"}}', f'{{"meshKey":"{"0" * 64}"}}',
    '{"meshKey":""}',
    '{"meshKey":null}', '{"meshKey":5}', '{"meshKey":{}}', f'{{"meshKey":"","meshKey":"{HEX}"}}',
    f'{{"meshKey":"{HEX}","meshKey":null}}',
    '{"a":' * 500 + "1" + "}" * 500, "[" * 100_000, '{"a":' * 40_000,
]  # fmt: skip

NAMES = [
    *("meshKey", "version", "CanAckPings", "IsProber", "AppName"),
    *("VERSION", "meshkey", "isprober", "appname", "x"),
]
VALUES = [
    "null",
    "true",
    "false",
    "0",
    "2",
    "-1",
    "2.5",
    "1e3",
    '""',
    '"a"',
    f'"{HEX}"',
    "[]",
    "{}",
    "[1,{}]",
]


def invented(n: int) -> list[str]:
    """Return `n` objects with plausible members, the same ones in each run."""
    choose = random.Random(3)
    return [
        "{"
        + ",".join(
            f"{json.dumps(choose.choice(NAMES))}:{choose.choice(VALUES)}"
            for _ in range(choose.randint(1, 3))
        )
        + "}"
        for _ in range(n)
    ]


@pytest.fixture
async def relay(start_derper: StartRelay) -> AsyncIterator[Relay]:
    async with start_derper() as relay:
        yield relay


def we_let_in(text: bytes) -> bool:
    try:
        login.parse_client_info(text)
    except LoginError:
        return False
    return True


async def test_the_same_client_infos_are_accepted(relay: Relay) -> None:
    texts = [text.encode() for text in (*EDGES, *invented(300))]
    texts += [
        b'{"AppName":"\xff"}',
        b'{"AppName":"\xed\xa0\x80"}',
        b'{"version":2}\xff',
        b"\xff\xfe{\0}\0",
        b'{"\xff":2}',
    ]
    judged = {text: (await lets_in(relay, KEY, text), we_let_in(text)) for text in texts}
    assert {
        text[:100]: verdicts for text, verdicts in judged.items() if verdicts[0] != verdicts[1]
    } == {}
    assert {theirs for theirs, _ in judged.values()} == {True, False}
