"""The values that `fastderp-relay check` prints."""

from __future__ import annotations

import pytest

from fastderp.cli.check import _shown
from fastderp.cli.flag_table import flag_table
from fastderp.cli.flags import Flag

FLAGS = {flag.name: flag for flag in flag_table({})}


@pytest.mark.parametrize(
    ("name", "given", "shown"),
    [
        ("verify-interval", "36s", "36s"),
        ("verify-interval", "1234567ms", "1234.567s"),
        ("tcp-write-timeout", "8760h", "31536000s"),
        ("logins-per-address", "0", "0"),
        ("logins-per-address", "0.25", "0.25"),
        ("accept-connection-limit", "1000000", "1000000"),
        ("accept-connection-limit", "+Inf", "+Inf"),
        ("login-memory", "1GiB", "1024MiB"),
        ("stun-port", "0x10", "16"),
        ("stun", "F", "false"),
        ("c", "clés/relay.key", "clés/relay.key"),
        ("mesh-with", ",".join(f"derp{n}.example.com" for n in range(9)), None),
    ],
)
def test_a_value_is_shown_as_its_flag_takes_it(name: str, given: str, shown: str | None) -> None:
    flag, shown = FLAGS[name], shown or given
    assert _shown(flag, flag.value(given)) == shown
    assert flag.value(shown) == flag.value(given)


@pytest.mark.parametrize(
    "flag", [flag for flag in FLAGS.values() if flag.section], ids=lambda flag: flag.name
)
def test_every_default_is_shown_as_its_flag_takes_it(flag: Flag) -> None:
    assert flag.value(_shown(flag, flag.value(flag.default))) == flag.value(flag.default)


def test_a_value_cannot_control_the_terminal() -> None:
    assert _shown(FLAGS["c"], "k\n\x1b[31m") == "k\\n\\x1b[31m"
