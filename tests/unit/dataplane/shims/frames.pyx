"""The reception rules of frames as Python calls."""

from libc.stdint cimport uint8_t

from fastderp.dataplane.frame cimport (
    FRAME_BAD_SIZE, FRAME_NOT_PERMITTED, FRAME_PARTIAL, FRAME_READY, FRAME_SKIP, ROLE_CLIENT,
    ROLE_LINK, ROLE_MESH, frame_carries_disco, frame_data_size, frame_next,
)

ROLES = {"client": ROLE_CLIENT, "mesh": ROLE_MESH, "link": ROLE_LINK}
STATUSES = {
    FRAME_READY: "ready", FRAME_PARTIAL: "partial", FRAME_SKIP: "skip",
    FRAME_BAD_SIZE: "bad size", FRAME_NOT_PERMITTED: "not permitted",
}


def judge(bytes data not None, str role not None):
    """Return (status, size of the whole frame) for a buffer that begins with data."""
    cdef size_t total = 0
    cdef const uint8_t* p = data
    status = frame_next(p, <size_t>len(data), <uint8_t>ROLES[role], &total)
    return STATUSES[status], total


def carries_disco(bytes frame not None):
    cdef const uint8_t* p = frame
    return bool(frame_carries_disco(p, <size_t>len(frame)))


def data_size(bytes frame not None):
    cdef const uint8_t* p = frame
    return frame_data_size(p, <size_t>len(frame))
