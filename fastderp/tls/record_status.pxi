# Included by record.pyx: the text, the alert and the cause of each status (RFC 8446 §6).

cdef const char* record_status_text(RecordStatus status) noexcept nogil:
    if status == RECORD_OK:
        return "ok"
    if status == RECORD_CLOSE_NOTIFY:
        return "closed by the peer"
    if status == RECORD_ALERT:
        return "alert from the peer"
    if status == RECORD_BAD_MAC:
        return "record does not authenticate"
    if status == RECORD_OVERFLOW:
        return "record too large"
    if status == RECORD_UNEXPECTED:
        return "unexpected record or message"
    if status == RECORD_DECODE:
        return "malformed record"
    if status == RECORD_STORM:
        return "too many KeyUpdates or empty records"
    if status == RECORD_NO_ROOM:
        return "no room in the output buffer"
    return "out of memory"


cdef uint8_t record_status_alert(RecordStatus status) noexcept nogil:
    if status == RECORD_UNEXPECTED or status == RECORD_STORM:
        return 10  # unexpected_message
    if status == RECORD_BAD_MAC:
        return 20  # bad_record_mac
    if status == RECORD_OVERFLOW:
        return 22  # record_overflow
    if status == RECORD_DECODE:
        return 50  # decode_error
    if status == RECORD_NO_MEMORY:
        return 80  # internal_error
    return NO_ALERT


_CAUSE = {
    RECORD_ALERT: "alert",
    RECORD_BAD_MAC: "bad_mac",
    RECORD_OVERFLOW: "overflow",
    RECORD_UNEXPECTED: "unexpected",
    RECORD_DECODE: "decode",
    RECORD_STORM: "storm",
    RECORD_NO_MEMORY: "no_memory",
}
CAUSES = (*_CAUSE.values(), "moved", "closed")
