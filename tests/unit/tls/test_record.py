"""The TLS 1.3 record layer against a second implementation, and its refusals."""

import os
import threading
from collections.abc import Callable

import pytest

from fastderp.tls.errors import TlsError
from fastderp.tls.record import RecordLayer
from tests.kit.records import (
    ALERT,
    CLOSE_NOTIFY,
    DATA,
    HANDSHAKE,
    KEY_UPDATE,
    KEY_UPDATE_REQUESTED,
    SUITES,
    Direction,
    secret_size,
)

REKEY_RECORDS = 1 << 22
AES = "TLS_AES_128_GCM_SHA256"
TICKET = bytes([4, 0, 0, 9]) + bytes(9)


class Pair:
    """Return our layer, and the second implementation at the other end."""

    def __init__(self, suite: str = AES, *, client: bool = False) -> None:
        theirs, ours = os.urandom(secret_size(suite)), os.urandom(secret_size(suite))
        self.layer = RecordLayer(suite, theirs, ours, client=client)
        self.peer = Direction(suite, theirs)
        self.reader = Direction(suite, ours)


@pytest.fixture(params=SUITES)
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param)


def refused(layer: RecordLayer, wire: bytes) -> str:
    """Return the cause of the layer's refusal of these bytes."""
    with pytest.raises(TlsError) as error:
        layer.open(wire)
    return error.value.cause


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 1400, 16383, 16384, 16385, 32768, 70_000])
def test_data_of_any_size_arrives_whole_in_both_directions(pair: Pair, size: int) -> None:
    data = os.urandom(size)
    records = pair.reader.open(pair.layer.seal(data))
    assert {kind for kind, _ in records} == {DATA}
    assert b"".join(content for _, content in records) == data
    assert [len(content) for _, content in records[:-1]] == [16384] * ((size - 1) // 16384)
    wire = b"".join(pair.peer.seal(data[at : at + 16384]) for at in range(0, size, 16384))
    assert pair.layer.open(wire) == data


def test_no_data_makes_no_record(pair: Pair) -> None:
    assert pair.layer.seal(b"") == b""


def test_a_record_that_arrives_byte_by_byte_is_opened_with_its_last_byte(pair: Pair) -> None:
    wire = pair.peer.seal(b"slowly")
    for at in range(len(wire) - 1):
        assert pair.layer.open(wire[at : at + 1]) == b""
    assert pair.layer.pending == wire[:-1]
    assert pair.layer.open(wire[-1:]) == b"slowly"
    assert pair.layer.pending == b""


def test_bytes_read_behind_the_handshake_are_opened_first() -> None:
    secret = os.urandom(32)
    wire = Direction(AES, secret).seal(b"early")
    layer = RecordLayer(AES, secret, os.urandom(32), pending=wire[:9])
    assert layer.open(wire[9:]) == b"early"


@pytest.mark.parametrize("padding", [1, 100, 16384 - 5])
def test_padding_is_removed(pair: Pair, padding: int) -> None:
    assert pair.layer.open(pair.peer.seal(b"data\0", padding=padding)) == b"data\0"


def test_a_whole_record_of_padding_up_to_the_limit_is_accepted(pair: Pair) -> None:
    assert pair.layer.open(pair.peer.seal(b"", padding=16384)) == b""


def test_every_single_flipped_bit_is_refused_and_nothing_is_released() -> None:
    secret = os.urandom(32)
    wire = Direction(AES, secret).seal(b"some secret text")
    for bit in range(len(wire) * 8):
        changed = bytearray(wire)
        changed[bit // 8] ^= 1 << bit % 8
        layer = RecordLayer(AES, secret, secret)
        # A larger length waits for more bytes, which then do not authenticate.
        assert refused(layer, bytes(changed) + bytes(17_000)) in {
            "bad_mac",
            "unexpected",
            "overflow",
            "decode",
        }


def flipped(record: bytes) -> bytes:
    return record[:-1] + bytes([record[-1] ^ 1])


ENDS: dict[str, Callable[[Direction], bytes]] = {
    "bad_mac": lambda peer: flipped(peer.seal(b"bad")),
    "alert": lambda peer: peer.seal(bytes([2, 40]), ALERT),
    "unexpected": lambda peer: peer.seal(KEY_UPDATE + KEY_UPDATE, HANDSHAKE),
    "overflow": lambda peer: bytes([DATA, 3, 3, 0x41, 0x12]),
    "decode": lambda peer: peer.seal(bytes([24, 0, 0, 2, 0, 0]), HANDSHAKE),
    "storm": lambda peer: b"".join(peer.seal(b"") for _ in range(33)),
}


@pytest.mark.parametrize("cause", ENDS)
@pytest.mark.parametrize("n_before", [0, 1, 16_410])
def test_good_data_before_a_broken_record_is_delivered_and_then_the_failure(
    pair: Pair, cause: str, n_before: int
) -> None:
    """In one read, also when the first n_before bytes of it came earlier."""
    good = pair.peer.seal(bytes(16384)) + pair.peer.seal(b"good")
    wire = good + ENDS[cause](pair.peer) + b"trailing bytes"
    opened = pair.layer.open(wire[:n_before])
    opened += pair.layer.open(wire[n_before:])
    assert opened == bytes(16384) + b"good"
    assert pair.layer.failure is not None and pair.layer.failure.cause == cause
    assert refused(pair.layer, b"more") == cause
    assert not pair.layer.eof


@pytest.mark.parametrize("cause", [cause for cause in ENDS if cause != "storm"])
def test_the_next_owner_of_the_keys_finds_the_broken_record_again(cause: str) -> None:
    """The data plane gets the keys after a login, with what is pending."""
    peer = Direction(AES, bytes(32))
    layer = RecordLayer(AES, bytes(32), bytes(32))
    assert layer.open(peer.seal(b"good") + ENDS[cause](peer)) == b"good"
    again = RecordLayer(AES, bytes(32), bytes(32), read_sequence=1, pending=layer.pending)
    assert refused(again, b"") == cause


@pytest.mark.parametrize(
    ("cause", "alert"), [("bad_mac", 20), ("unexpected", 10), ("overflow", 22), ("alert", None)]
)
def test_a_failed_layer_ends_its_output_with_the_alert(
    pair: Pair, cause: str, alert: int | None
) -> None:
    assert refused(pair.layer, ENDS[cause](pair.peer)) == cause
    sent = pair.reader.open(pair.layer.close_notify())
    assert sent == ([] if alert is None else [(ALERT, bytes([2, alert]))])


def test_a_truncated_record_with_a_matching_header_is_refused(pair: Pair) -> None:
    wire = pair.peer.seal(b"whole record")
    cut = wire[:3] + (len(wire) - 6).to_bytes(2) + wire[5:-1]
    assert refused(pair.layer, cut) == "bad_mac"


def test_a_replayed_record_is_refused(pair: Pair) -> None:
    wire = pair.peer.seal(b"once")
    pair.layer.open(wire)
    assert refused(pair.layer, wire) == "bad_mac"


def test_reordered_records_are_refused(pair: Pair) -> None:
    first, second = pair.peer.seal(b"first"), pair.peer.seal(b"second")
    assert refused(pair.layer, second + first) == "bad_mac"


def test_a_dropped_record_is_noticed(pair: Pair) -> None:
    pair.peer.seal(b"lost")
    assert refused(pair.layer, pair.peer.seal(b"next")) == "bad_mac"


def test_reflected_records_are_refused(pair: Pair) -> None:
    assert refused(pair.layer, pair.layer.seal(b"mirror")) == "bad_mac"


@pytest.mark.parametrize("length", range(17))
def test_a_record_without_room_for_tag_and_type_is_refused(length: int) -> None:
    assert (
        refused(Pair().layer, bytes([DATA, 3, 3]) + length.to_bytes(2) + bytes(length)) == "decode"
    )


def test_a_record_beyond_the_limit_is_refused_by_its_header_alone() -> None:
    assert refused(Pair().layer, bytes([DATA, 3, 3]) + (16384 + 18).to_bytes(2)) == "overflow"
    assert refused(Pair().layer, bytes([DATA, 3, 3, 255, 255])) == "overflow"


def test_the_largest_record_is_accepted(pair: Pair) -> None:
    assert pair.layer.open(pair.peer.seal(bytes(16384))) == bytes(16384)


@pytest.mark.parametrize("outer", [0, 20, ALERT, HANDSHAKE, 24, 128, 255])
def test_unprotected_records_are_refused_after_the_handshake(outer: int) -> None:
    assert refused(Pair().layer, bytes([outer, 3, 3, 0, 1, 1])) == "unexpected"


@pytest.mark.parametrize("inner", [0, 1, 20, 24, 255])
def test_protected_records_of_other_types_are_refused(pair: Pair, inner: int) -> None:
    assert (
        refused(pair.layer, pair.peer.seal_inner(b"x" + bytes([inner]) if inner else bytes(20)))
        == "unexpected"
    )


def test_a_record_of_zeros_only_is_refused(pair: Pair) -> None:
    assert refused(pair.layer, pair.peer.seal_inner(bytes(1))) == "unexpected"


def test_close_notify_ends_reading_and_later_bytes_are_ignored(pair: Pair) -> None:
    wire = (
        pair.peer.seal(b"last words")
        + pair.peer.seal(CLOSE_NOTIFY, ALERT)
        + b"trailing bytes of any kind"
    )
    assert pair.layer.open(wire) == b"last words"
    assert pair.layer.eof
    assert pair.layer.open(b"more") == b""


def test_our_close_notify_and_alerts_are_sealed_alerts(pair: Pair) -> None:
    assert pair.reader.open(pair.layer.close_notify()) == [(ALERT, CLOSE_NOTIFY)]
    assert pair.reader.open(pair.layer.alert(20)) == [(ALERT, bytes([2, 20]))]


def test_a_fatal_alert_is_reported_with_its_number(pair: Pair) -> None:
    with pytest.raises(TlsError, match="40") as error:
        pair.layer.open(pair.peer.seal(bytes([2, 40]), ALERT))
    assert error.value.cause == "alert"


@pytest.mark.parametrize("alert", [b"", b"\1", b"\1\0\1\0"])
def test_alerts_of_a_wrong_length_are_refused(pair: Pair, alert: bytes) -> None:
    assert refused(pair.layer, pair.peer.seal(alert, ALERT)) == "decode"


def test_user_canceled_is_only_an_announcement(pair: Pair) -> None:
    assert (
        pair.layer.open(pair.peer.seal(bytes([1, 90]), ALERT) + pair.peer.seal(b"still here"))
        == b"still here"
    )


def test_the_peer_may_change_its_key(pair: Pair) -> None:
    for text in (b"one", b"two", b"three"):
        wire = pair.peer.seal(KEY_UPDATE, HANDSHAKE)
        pair.peer.update()
        assert pair.layer.open(wire + pair.peer.seal(text)) == text
    assert pair.reader.open(pair.layer.seal(b"old key")) == [(DATA, b"old key")]


def test_several_requests_for_a_new_key_are_answered_once_before_the_next_data(pair: Pair) -> None:
    for _ in range(3):
        wire = pair.peer.seal(KEY_UPDATE_REQUESTED, HANDSHAKE)
        pair.peer.update()
        pair.layer.open(wire)
    assert pair.reader.open(pair.layer.seal(b"answer")) == [
        (HANDSHAKE, KEY_UPDATE),
        (DATA, b"answer"),
    ]
    assert pair.reader.open(pair.layer.seal(b"next")) == [(DATA, b"next")]


def test_we_can_ask_for_a_new_key_without_data(pair: Pair) -> None:
    pair.layer.ask_key_update()
    assert pair.reader.open(pair.layer.seal(b"")) == [(HANDSHAKE, KEY_UPDATE_REQUESTED)]
    assert pair.reader.open(pair.layer.seal(b"new key")) == [(DATA, b"new key")]


def test_the_old_key_ends_with_its_key_update(pair: Pair) -> None:
    wire = pair.peer.seal(KEY_UPDATE, HANDSHAKE) + pair.peer.seal(b"old key still")
    assert refused(pair.layer, wire) == "bad_mac"


def test_a_key_update_in_pieces_is_understood(pair: Pair) -> None:
    wire = b"".join(pair.peer.seal(KEY_UPDATE[at : at + 1], HANDSHAKE) for at in range(5))
    pair.peer.update()
    assert pair.layer.open(wire + pair.peer.seal(b"whole")) == b"whole"


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (b"", "unexpected"),
        (KEY_UPDATE + KEY_UPDATE, "unexpected"),
        (KEY_UPDATE + b"\x18", "unexpected"),
        (bytes([24, 0, 0, 1, 2]), "decode"),
        (bytes([24, 0, 0, 0]), "decode"),
        (bytes([24, 0, 0, 2, 0, 0]), "decode"),
        (bytes([24, 1, 0, 1, 0]), "decode"),
        (bytes([1, 0, 0, 0]), "unexpected"),
        (bytes([13, 0, 0, 0]), "unexpected"),
        (bytes([20, 0, 0, 0]), "unexpected"),
    ],
)
@pytest.mark.parametrize("client", [False, True])
def test_other_handshake_messages_are_refused(message: bytes, cause: str, client: bool) -> None:
    pair = Pair(client=client)
    assert refused(pair.layer, pair.peer.seal(message, HANDSHAKE)) == cause


@pytest.mark.parametrize("then", [(b"data", DATA), (CLOSE_NOTIFY, ALERT)])
def test_nothing_may_come_between_the_pieces_of_a_message(
    pair: Pair, then: tuple[bytes, int]
) -> None:
    assert (
        refused(pair.layer, pair.peer.seal(KEY_UPDATE[:2], HANDSHAKE) + pair.peer.seal(*then))
        == "unexpected"
    )


def test_clients_skip_session_tickets_in_any_pieces() -> None:
    pair = Pair(client=True)
    together = pair.peer.seal(TICKET + TICKET, HANDSHAKE)
    pieces = b"".join(
        pair.peer.seal(TICKET[at : at + 5], HANDSHAKE) for at in range(0, len(TICKET), 5)
    )
    with_update = pair.peer.seal(TICKET + KEY_UPDATE, HANDSHAKE)
    pair.peer.update()
    assert pair.layer.open(together + pieces + with_update + pair.peer.seal(b"data")) == b"data"


def test_servers_are_not_sent_tickets() -> None:
    pair = Pair(client=False)
    assert refused(pair.layer, pair.peer.seal(TICKET, HANDSHAKE)) == "unexpected"


def test_a_ticket_above_the_limit_is_refused() -> None:
    pair = Pair(client=True)
    assert refused(pair.layer, pair.peer.seal(bytes([4, 255, 255, 255]), HANDSHAKE)) == "decode"


def barren_records(pair: Pair) -> dict[str, Callable[[], bytes]]:
    def update() -> bytes:
        wire = pair.peer.seal(KEY_UPDATE_REQUESTED, HANDSHAKE)
        pair.peer.update()
        return wire

    return {
        "empty": lambda: pair.peer.seal(b""),
        "update": update,
        "canceled": lambda: pair.peer.seal(bytes([1, 90]), ALERT),
        "update between data": lambda: update() + pair.peer.seal(b"x"),
    }


@pytest.mark.parametrize("kind", ["empty", "update", "canceled", "update between data"])
def test_a_storm_of_records_without_data_is_refused(kind: str) -> None:
    pair = Pair()
    make = barren_records(pair)[kind]
    for _ in range(32):
        pair.layer.open(make())
    assert refused(pair.layer, make()) == "storm"


def test_key_updates_with_enough_data_between_them_are_never_a_storm() -> None:
    pair = Pair()
    update = barren_records(pair)["update"]
    for _ in range(100):
        wire = update() + b"".join(pair.peer.seal(b"x") for _ in range(64))
        assert pair.layer.open(wire) == b"x" * 64


def test_one_thread_may_read_while_another_writes() -> None:
    pair = Pair()
    update = barren_records(pair)["update"]
    wires = [update() + b"".join(pair.peer.seal(bytes(200)) for _ in range(64)) for _ in range(100)]
    sealed: list[bytes] = []
    reading = threading.Event()

    def write() -> None:
        reading.wait()
        sealed.extend(pair.layer.seal(bytes(1000)) for _ in range(2000))

    writer = threading.Thread(target=write)
    writer.start()
    reading.set()
    read = sum(len(pair.layer.open(wire)) for wire in wires)
    writer.join()
    records = pair.reader.open(b"".join(sealed) + pair.layer.seal(b""))
    assert read == 100 * 64 * 200
    assert [content for kind, content in records if kind == DATA] == [bytes(1000)] * 2000
    assert 1 <= sum(kind == HANDSHAKE for kind, _ in records) <= 100


def test_we_change_our_key_long_before_the_limit_of_the_cipher(pair: Pair) -> None:
    secret = pair.reader.secret
    layer = RecordLayer(pair.layer.suite, secret, secret, write_sequence=REKEY_RECORDS - 1)
    pair.reader.sequence = REKEY_RECORDS - 1
    assert pair.reader.open(layer.seal(b"last")) == [(DATA, b"last")]
    assert pair.reader.open(layer.seal(b"first")) == [(HANDSHAKE, KEY_UPDATE), (DATA, b"first")]


def test_a_peer_that_never_changes_its_key_is_asked_to(pair: Pair) -> None:
    secret = pair.peer.secret
    layer = RecordLayer(
        pair.layer.suite, secret, pair.reader.secret, read_sequence=REKEY_RECORDS - 1
    )
    pair.peer.sequence = REKEY_RECORDS - 1
    assert layer.open(pair.peer.seal(b"a") + pair.peer.seal(b"b")) == b"ab"
    assert pair.reader.open(layer.seal(b"x")) == [(HANDSHAKE, KEY_UPDATE_REQUESTED), (DATA, b"x")]


def test_record_numbers_beyond_32_bits_work(pair: Pair) -> None:
    secret = pair.peer.secret
    layer = RecordLayer(pair.layer.suite, secret, secret, read_sequence=(1 << 40) + 7)
    pair.peer.sequence = (1 << 40) + 7
    assert layer.open(pair.peer.seal(b"far")) == b"far"


@pytest.mark.parametrize(
    ("suite", "read", "write"),
    [
        ("TLS_AES_128_CCM_SHA256", 32, 32),
        (0, 32, 32),
        (0x1304, 32, 32),
        (AES, 31, 32),
        (AES, 32, 48),
    ],
)
def test_unknown_suites_and_secrets_of_a_wrong_length_are_refused(
    suite: str | int, read: int, write: int
) -> None:
    with pytest.raises(ValueError):
        RecordLayer(suite, bytes(read), bytes(write))
