# Frames in a line. A node belongs to the one Fifo it is in; who guards that says the struct it
# lives in.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef struct Node:                # one frame, allocated with its bytes behind it
    Node* next
    uint64_t queued_ns
    uint32_t n
    uint32_t offset              # bytes the wire has taken already
    uint8_t lane
    uint8_t data[1]

cdef struct Fifo:
    Node* head
    Node* tail
    uint32_t n
    uint32_t bytes


cdef inline void fifo_append(Fifo* f, Node* node) noexcept nogil:
    node.next = NULL
    if f.tail is NULL:
        f.head = node
    else:
        f.tail.next = node
    f.tail = node
    f.n += 1
    f.bytes += node.n


cdef inline Node* fifo_pop(Fifo* f) noexcept nogil:
    # Of a Fifo that is not empty.
    cdef Node* node = f.head
    f.head = node.next
    if f.head is NULL:
        f.tail = NULL
    f.n -= 1
    f.bytes -= node.n
    return node
