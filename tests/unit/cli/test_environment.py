"""derper's environment variables for the relay. PROTOCOL §19."""

from __future__ import annotations

import pytest

from fastderp.cli.environment import Environment
from fastderp.errors import ConfigError
from fastderp.wire.keys import NodePrivate

KEY = NodePrivate.generate().public_key
DEPTH = "TS_DEBUG_DERP_PER_CLIENT_SEND_QUEUE_DEPTH"


def test_without_variables_the_defaults_hold() -> None:
    assert Environment.read({}) == Environment()
    empty = dict.fromkeys(
        (
            "DERP_DEBUG_LOGS",
            "DERP_PROBER_DEBUG_LOGS",
            "TS_DERP_DISABLE_RTT_STATS",
            DEPTH,
            "TS_DEBUG_VERBOSE_DROPS",
            "TS_DERP_SENDER_CARDINALITY",
        ),
        "",
    )
    assert Environment.read(empty) == Environment()


@pytest.mark.parametrize(
    ("variables", "means"),
    [
        ({"DERP_DEBUG_LOGS": "1"}, Environment(debug_logs=True)),
        ({"DERP_DEBUG_LOGS": "false"}, Environment()),
        ({"DERP_PROBER_DEBUG_LOGS": "true"}, Environment(prober_logs=True)),
        ({"TS_DERP_DISABLE_RTT_STATS": "t"}, Environment(rtt_stats=False)),
        ({DEPTH: "64"}, Environment(queue_packets=64)),
        ({DEPTH: "0"}, Environment()),
        ({DEPTH: "-1"}, Environment()),
        ({"TS_DERP_SENDER_CARDINALITY": "true"}, Environment(sender_cardinality=True)),
        ({"TS_DEBUG_VERBOSE_DROPS": KEY.hex}, Environment(watched_drops=(KEY,))),
        (
            {"TS_DEBUG_VERBOSE_DROPS": f" {KEY.text}, {KEY.hex.upper()},"},
            Environment(watched_drops=(KEY, KEY)),
        ),
    ],
)
def test_a_variable_means_the_same_as_in_derper(
    variables: dict[str, str], means: Environment
) -> None:
    assert Environment.read(variables) == means


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DERP_DEBUG_LOGS", "yes please"),
        ("DERP_PROBER_DEBUG_LOGS", "2"),
        ("TS_DERP_DISABLE_RTT_STATS", "on"),
        ("TS_DERP_SENDER_CARDINALITY", "on"),
        (DEPTH, "many"),
        (DEPTH, "1048577"),
        (DEPTH, "6.4"),
        ("TS_DEBUG_VERBOSE_DROPS", "all"),
        ("TS_DEBUG_VERBOSE_DROPS", KEY.hex + "0"),
        ("TS_DEBUG_VERBOSE_DROPS", ",".join([KEY.hex] * 65)),
    ],
)
def test_a_malformed_variable_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^\${name}: ") as refused:
        Environment.read({name: value})
    assert len(str(refused.value)) < 200
