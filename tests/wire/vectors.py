"""Byte-exact samples of the wire, as commented hex (PROTOCOL section 20).

Tests read them with `wire`, which drops comments and white space.
"""


def wire(text: str) -> bytes:
    """Return the bytes of hex text in which `#` starts a comment."""
    return bytes.fromhex("".join(line.partition("#")[0] for line in text.splitlines()))


SERVER_PRIVATE = wire("0002030405060708090a0b0c0d0e0f10 1112131415161718191a1b1c1d1e1f60")
SERVER_PUBLIC = wire("07a37cbc142093c8b755dc1b10e86cb4 26374ad16aa853ed0bdfc0b2b86d1c7c")
CLIENT_PRIVATE = wire("2022232425262728292a2b2c2d2e2f30 3132333435363738393a3b3c3d3e3f40")
CLIENT_PUBLIC = wire("5869aff450549732cbaaed5e5df9b30a 6da31cb0e5742bad5ad4a1a768f1a67b")
NONCE = bytes(range(24))

SERVER_KEY_FRAME = wire("""
    01 00000028                         # ServerKey, 40 bytes
    44455250 f09f9491                   # "DERP", U+1F511
    07a37cbc142093c8b755dc1b10e86cb4    # server public key
    26374ad16aa853ed0bdfc0b2b86d1c7c
""")

CLIENT_INFO_JSON = b'{"version":2,"CanAckPings":true}'
CLIENT_INFO_FRAME = wire("""
    02 00000068                         # ClientInfo, 104 bytes
    5869aff450549732cbaaed5e5df9b30a    # client public key
    6da31cb0e5742bad5ad4a1a768f1a67b
    000102030405060708090a0b0c0d0e0f    # nonce
    1011121314151617
    176bdffac6239dc06abd2678210731e1    # Poly1305 tag
    69d7ad3c284e14bd97d07b31d36052dc    # the JSON above, sealed
    1b4b776d33dac1529db871ecd021683e
""")

SERVER_INFO_JSON = b'{"version":2}'
SERVER_INFO_FRAME = wire("""
    03 00000035                         # ServerInfo, 53 bytes
    000102030405060708090a0b0c0d0e0f    # nonce
    1011121314151617
    06540bddef85b7931c207e81d7751d64    # Poly1305 tag
    69d7ad3c284e14bd97d07b3182          # the JSON above, sealed
""")

KEEP_ALIVE_FRAME = wire("06 00000000")
PING_FRAME = wire("12 00000008 0102030405060708")
PONG_FRAME = wire("13 00000008 0102030405060708")

# PeerPresent of 127.0.0.1:48620 for CLIENT_PUBLIC, a regular client.
PEER_PRESENT_FRAME = wire("""
    09 00000036                         # PeerPresent, 54 bytes
    5869aff450549732cbaaed5e5df9b30a    # peer
    6da31cb0e5742bad5ad4a1a768f1a67b
    00000000000000000000ffff 7f000001   # ::ffff:127.0.0.1
    bdec                                # port
    01                                  # regular
    02 6f6b                             # AppName "ok"
""")
PEER_GONE_NOT_HERE_FRAME = wire("""
    08 00000021                         # PeerGone, 33 bytes
    5869aff450549732cbaaed5e5df9b30a    # peer
    6da31cb0e5742bad5ad4a1a768f1a67b
    01                                  # not here
""")
RESTARTING_FRAME = wire("""
    15 00000008
    00000001                            # reconnect in 1 ms
    00000002                            # try for 2 ms
""")
