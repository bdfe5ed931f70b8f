# DERP frames as bytes (PROTOCOL §2, §5): header, limits and reception rules. The functions own
# nothing and work on the caller's buffer; any thread may call them.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp

cdef enum FrameType:
    FRAME_SERVER_KEY = 0x01      # magic[8] key[32]
    FRAME_CLIENT_INFO = 0x02     # key[32] nonce[24] box
    FRAME_SERVER_INFO = 0x03     # nonce[24] box
    FRAME_SEND_PACKET = 0x04     # dst[32] data[0..65536]
    FRAME_RECV_PACKET = 0x05     # src[32] data[0..65536]
    FRAME_KEEP_ALIVE = 0x06      # empty
    FRAME_NOTE_PREFERRED = 0x07  # home[1]
    FRAME_PEER_GONE = 0x08       # key[32] reason[1]
    FRAME_PEER_PRESENT = 0x09    # key[32] addr[16] port[2] flags[1]
    FRAME_FORWARD_PACKET = 0x0A  # src[32] dst[32] data[0..65536]
    FRAME_WATCH_CONNS = 0x10     # empty
    FRAME_CLOSE_PEER = 0x11      # key[32]
    FRAME_PING = 0x12            # data[8] future[0..992]
    FRAME_PONG = 0x13            # data[8]
    FRAME_HEALTH = 0x14          # text
    FRAME_RESTARTING = 0x15      # reconnect_in_ms[4] try_for_ms[4]

cdef enum:
    FRAME_HEADER = 5
    KEY_SIZE = 32
    PACKET_MAX = 65536
    PACKET_OVERHEAD = 37         # FRAME_HEADER + KEY_SIZE of SendPacket and RecvPacket
    FORWARD_OVERHEAD = 69        # FRAME_HEADER + two keys of ForwardPacket
    SKIPPED_MAX = 65568          # payload of a frame that a client may send and the relay ignores
    FRAME_MAX = 65605            # a ForwardPacket of the largest packet, header included
    PING_DATA = 8
    PING_MAX = 1000
    DISCO_MIN = 62               # magic 6 + key 32 + nonce 24
    GONE_DISCONNECTED = 0x00
    GONE_NOT_HERE = 0x01
    PEER_GONE_SIZE = 38          # FRAME_HEADER + key 32 + reason 1

# The other end of a connection; the role decides which frames it may send.
cdef enum Role:
    ROLE_CLIENT                  # a node
    ROLE_MESH                    # a client with the mesh key: it may forward, watch and close
    ROLE_LINK                    # a relay of the region that this relay dialed; it is the server

# The verdict of the reception rules on the bytes at a frame boundary.
cdef enum FrameStatus:
    FRAME_READY                  # a whole frame that this relay acts on
    FRAME_PARTIAL                # more bytes are needed
    FRAME_SKIP                   # a frame of any length to discard without buffering it
    FRAME_BAD_SIZE
    FRAME_NOT_PERMITTED

cdef FrameStatus frame_next(const uint8_t* p, size_t n, uint8_t role, size_t* total) noexcept nogil


cdef inline uint32_t frame_payload_size(const uint8_t* p) noexcept nogil:
    return <uint32_t>p[1] << 24 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 8 | <uint32_t>p[4]


cdef inline void frame_put_header(uint8_t* p, uint8_t type, uint32_t n_payload) noexcept nogil:
    p[0] = type
    p[1] = <uint8_t>(n_payload >> 24)
    p[2] = <uint8_t>(n_payload >> 16)
    p[3] = <uint8_t>(n_payload >> 8)
    p[4] = <uint8_t>n_payload


cdef inline size_t frame_size(const uint8_t* p) noexcept nogil:
    return FRAME_HEADER + <size_t>frame_payload_size(p)


cdef inline bint frame_is_known(uint8_t type) noexcept nogil:
    # True for every type named in PROTOCOL §2, whichever side may send it.
    return (FRAME_SERVER_KEY <= type <= FRAME_FORWARD_PACKET
            or FRAME_WATCH_CONNS <= type <= FRAME_RESTARTING)


cdef inline bint frame_is_disco(const uint8_t* data, size_t n) noexcept nogil:
    return n >= DISCO_MIN and memcmp(data, b"TS\xf0\x9f\x92\xac", 6) == 0


cdef inline bint frame_is_packet(const uint8_t* frame) noexcept nogil:
    return (frame[0] == FRAME_RECV_PACKET or frame[0] == FRAME_SEND_PACKET
            or frame[0] == FRAME_FORWARD_PACKET)


cdef inline size_t frame_data_offset(const uint8_t* frame) noexcept nogil:
    # The frame must be a packet.
    return FORWARD_OVERHEAD if frame[0] == FRAME_FORWARD_PACKET else PACKET_OVERHEAD


cdef inline bint frame_carries_disco(const uint8_t* frame, size_t size) noexcept nogil:
    # The frame must be a whole packet.
    cdef size_t offset = frame_data_offset(frame)
    return offset <= size and frame_is_disco(frame + offset, size - offset)


cdef inline size_t frame_data_size(const uint8_t* frame, size_t size) noexcept nogil:
    # The frame must be a whole packet. RecvPacket without a key (§6.6) may be shorter than the
    # offset.
    cdef size_t offset = frame_data_offset(frame)
    return size - offset if offset <= size else 0
