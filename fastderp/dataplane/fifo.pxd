# A first-in, first-out list of frames. A node belongs to the one Fifo that holds it; the struct
# that contains the Fifo names its lock.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef struct Node:                # one frame; its bytes follow in the same allocation
    Node* next
    uint64_t queued_ns
    uint32_t n
    uint32_t offset              # bytes already written to the socket
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
    # The Fifo must not be empty.
    cdef Node* node = f.head
    f.head = node.next
    if f.head is NULL:
        f.tail = NULL
    f.n -= 1
    f.bytes -= node.n
    return node
